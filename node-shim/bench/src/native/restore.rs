//! From a snapshot to a guest that runs.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Bench, LIMIT};
use crate::figure::Figure;
use crate::monitor::Monitor;
use crate::report;
use crate::sample::OURS;
use crate::vm::Vm;

const GUEST_MIB: u64 = 1024;
/// Of it, what the guest has written to.
const TOUCHED_MIB: u64 = 256;
const ROUNDS: u32 = 30;

/// Each restored guest is asked whether it is there.
pub(super) fn measure(bench: &Bench) -> Result<()> {
    let place = bench.place()?;
    let folder = place.path().join("snapshot");
    let mut vm = bench.start_up(Monitor::NodeShim, &bench.machine(GUEST_MIB), place.path())?;
    vm.tell(&format!("touch {TOUCHED_MIB}"))?;
    vm.line_after("touched")?;
    let output = Command::new(&bench.shim)
        .args(["control", "--socket"])
        .arg(place.path().join("control.sock"))
        .arg("snapshot")
        .arg(&folder)
        .output()
        .context("failed to ask for a snapshot")?;
    ensure!(
        output.status.success(),
        "no snapshot: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    drop(vm);
    for _ in 0..bench.rounds.unwrap_or(ROUNDS) {
        let mut command = Command::new(&bench.shim);
        command.args(["run", "--restore"]).arg(&folder);
        let mut vm = Vm::start(command, place.path(), LIMIT)?;
        vm.tell("ping")?;
        vm.line_after("pong")?;
        report(Figure::RestoreAnswer, OURS, vm.started.elapsed().as_secs_f64() * 1000.0);
        let errors = vm.errors();
        let micros = errors
            .split_once("restored in ")
            .and_then(|(_, rest)| rest.split_whitespace().next());
        let micros: f64 = micros
            .and_then(|micros| micros.parse().ok())
            .context("node-shim does not say how long it took")?;
        report(Figure::Restore, OURS, micros / 1000.0);
    }
    Ok(())
}
