//! From starting the monitor to its guest.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Bench, SMALL};
use crate::figure::Figure;
use crate::report;

const GUEST_MIB: u64 = 128;
const ROUNDS: u32 = 40;
/// Between two starts, for what the last process left to the kernel.
const PAUSE: Duration = Duration::from_millis(20);

/// The guest's third instruction writes a `!` to the serial port; the time until that was read is a little more than that to the first.
pub(super) fn measure(bench: &Bench) -> Result<()> {
    let machine = bench.machine(GUEST_MIB);
    let place = bench.place()?;
    // The first of each also reads its files from the disk.
    for round in 0..=bench.rounds.unwrap_or(ROUNDS) {
        for monitor in SMALL {
            let mut vm = bench.start(monitor, &machine, place.path())?;
            let byte = vm.first_byte()?;
            let took = vm.started.elapsed();
            ensure!(byte == b'!', "the guest begins with {byte:#x}");
            if round > 0 {
                report(Figure::Start, &monitor.to_string(), took.as_secs_f64() * 1000.0);
            }
            drop(vm);
            sleep(PAUSE);
        }
    }
    Ok(())
}
