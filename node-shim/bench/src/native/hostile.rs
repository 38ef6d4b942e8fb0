//! A hostile driver at full speed: see the polling guest's own `hostile`.

use anyhow::{Context, Result};

use super::Bench;
use crate::monitor::{Machine, Monitor};

const GUEST_MIB: u64 = 128;
const ROUNDS: u32 = 4;
const CHAINS: u32 = 4096;
/// Device types that every machine has, or that this one is given (virtio 1.2, 5): block, console, entropy. Not the balloon, which would take
/// the guest's own pages away as it is told.
const DEVICES: [u32; 3] = [2, 3, 4];

/// Ends well if `node-shim` serves its guest after every attack.
pub(super) fn attack(bench: &Bench) -> Result<()> {
    let place = bench.place()?;
    let machine = Machine {
        disk_bytes: Some(64 << 20),
        ..bench.machine(GUEST_MIB)
    };
    let rounds = bench.rounds.unwrap_or(ROUNDS);
    for seed in 0..rounds {
        let mut vm = bench.start_up(Monitor::NodeShim, &machine, place.path())?;
        for device in DEVICES {
            vm.tell(&format!("hostile {device} {seed} {CHAINS}"))?;
            vm.line_after("survived ")
                .with_context(|| format!("device type {device}, seed {seed}"))?;
        }
        vm.tell("block write 4096 8 100")?;
        vm.line_after("block 100")
            .with_context(|| format!("a good driver after seed {seed}"))?;
        let lines = vm.errors().lines().count();
        eprintln!(
            "seed {seed}: {CHAINS} hostile chains for each of {} devices, and the VM runs; {lines} lines of log",
            DEVICES.len()
        );
    }
    Ok(())
}
