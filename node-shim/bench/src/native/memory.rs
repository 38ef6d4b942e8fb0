//! What a monitor costs beside its guest's memory.

use std::fs;

use anyhow::{Context, Result};

use super::{Bench, SMALL};
use crate::figure::Figure;
use crate::report;
use crate::sample::OURS;

const GUEST_MIB: u32 = 128;
const ROUNDS: u32 = 5;

/// Resident pages of the whole process, private and shared, while the guest waits for a command.
pub(super) fn measure(bench: &Bench) -> Result<()> {
    for _ in 0..bench.rounds.unwrap_or(ROUNDS) {
        for monitor in SMALL {
            let place = bench.place()?;
            let mut vm = bench.start_up(monitor, &bench.machine(GUEST_MIB.into()), place.path())?;
            vm.tell("ping")?;
            vm.line_after("pong")?;
            let kib = beyond_guest_kib(&smaps(vm.pid())?, GUEST_MIB * 1024);
            report(Figure::Memory, &monitor.to_string(), f64::from(kib));
        }
    }
    Ok(())
}

/// The binary's size.
pub(super) fn measure_binary(bench: &Bench) -> Result<()> {
    let bytes = fs::metadata(&bench.shim)
        .with_context(|| bench.shim.display().to_string())?
        .len();
    let kib = u32::try_from(bytes / 1024).context("a binary of terabytes")?;
    report(Figure::Binary, OURS, f64::from(kib));
    Ok(())
}

fn smaps(pid: u32) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/smaps")).context("failed to read the monitor's mappings")
}

/// Resident KiB of all mappings but the one that is large enough to be the guest's memory.
fn beyond_guest_kib(smaps: &str, guest_kib: u32) -> u32 {
    let (mut resident, mut size) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next().and_then(|value| value.parse().ok()));
        match (name, value) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Rss:"), Some(kib)) if size < guest_kib => resident += kib,
            _ => {}
        }
    }
    resident
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_guests_memory_is_left_out() {
        let smaps = "7f00-7f01 rw-p 0 00:00 0\nSize: 131072 kB\nRss: 5000 kB\n\
                     7f02-7f03 rw-p 0 00:00 0 [heap]\nSize: 132 kB\nRss: 24 kB\n\
                     7f04-7f05 r-xp 0 00:00 0 /lib\nSize: 1000 kB\nRss: 100 kB\n";
        assert_eq!(super::beyond_guest_kib(smaps, 131_072), 124);
    }
}
