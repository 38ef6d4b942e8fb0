//! From the start of the monitor to the init of an unmodified Debian kernel.

use anyhow::{Context, Result};

use super::Bench;
use crate::figure::Figure;
use crate::monitor::{Aio, Monitor};
use crate::report;

const ROUNDS: u32 = 5;
const MONITORS: [Monitor; 3] = [Monitor::NodeShim, Monitor::Microvm, Monitor::Q35(Aio::Uring)];

/// Each in turn, with the same kernel as a PVH ELF file, the same initrd and the same command line. The first round only warms caches.
pub(super) fn measure(bench: &Bench) -> Result<()> {
    let place = tempfile::tempdir().context("failed to make a directory")?;
    for round in 0..=bench.rounds.unwrap_or(ROUNDS) {
        for monitor in MONITORS {
            let mut vm = bench.start(monitor, &bench.machine(), place.path())?;
            let uptime = vm.line_after("INIT ").with_context(|| monitor.to_string())?;
            let took = vm.started.elapsed();
            let uptime: f64 = uptime
                .parse()
                .with_context(|| format!("the guest's uptime is `{uptime}`"))?;
            if round > 0 {
                report(Figure::Boot, &monitor.to_string(), took.as_secs_f64());
                report(Figure::BootKernel, &monitor.to_string(), uptime);
            }
        }
    }
    Ok(())
}
