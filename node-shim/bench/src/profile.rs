//! What a monitor spends on each operation of its guest: where a rate is low, this says why.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::figure::Figure;

/// Where debugfs is (Linux Documentation/filesystems/debugfs.rst).
const DEBUGFS: &str = "/sys/kernel/debug/kvm";
/// Ticks of a second in `/proc/PID/stat`: `USER_HZ` (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Counters of a process, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    switches: u64,
    /// Guests' exits to KVM; 0 where debugfs is not mounted.
    exits: u64,
    ticks: u64,
}

impl Counters {
    /// As they are now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut counters = Self::default();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("the monitor is gone")?;
        for task in tasks.flatten() {
            // A thread may end meanwhile.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else {
                continue;
            };
            counters.switches += switches(&status);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the monitor is gone")?;
        counters.ticks = ticks(&stat).with_context(|| format!("/proc/{pid}/stat is {stat}"))?;
        counters.exits = exits(Path::new(DEBUGFS), pid);
        Ok(counters)
    }

    /// What was spent since earlier ones. A thread that has ended since takes its own with it.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            switches: self.switches.saturating_sub(earlier.switches),
            exits: self.exits.saturating_sub(earlier.exits),
            ticks: self.ticks.saturating_sub(earlier.ticks),
        }
    }
}

/// What was spent on some operations.
pub(crate) struct Profile<'m> {
    /// Of which figure.
    pub(crate) figure: Figure,
    /// By whom.
    pub(crate) monitor: &'m str,
    /// How many.
    pub(crate) operations: f64,
    /// For all of them.
    pub(crate) spent: Counters,
}

impl fmt::Display for Profile<'_> {
    #[allow(clippy::cast_precision_loss, reason = "counts of seconds")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |count: u64| count as f64 / self.operations;
        write!(
            f,
            "PROFILE\t{}\t{}\t{:.0} operations, each with {:.2} exits, {:.2} context switches and {:.3} ms of the monitor's CPU, guest included",
            self.figure.name(),
            self.monitor,
            self.operations,
            each(self.spent.exits),
            each(self.spent.switches),
            each(self.spent.ticks) * 1000.0 / TICKS_PER_SECOND,
        )
    }
}

/// Voluntary and other ones of a thread's `status`.
fn switches(status: &str) -> u64 {
    let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
    counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
}

/// Fields 14 and 15 of a process's `stat`; the second is a name in parentheses, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(field(14)? + field(15)?)
}

/// KVM has a directory for each VM, called after the process and its descriptor of the VM.
fn exits(directory: &Path, pid: u32) -> u64 {
    let start = format!("{pid}-");
    let vms = fs::read_dir(directory).into_iter().flatten().flatten();
    let own = vms.filter(|vm| vm.file_name().to_string_lossy().starts_with(&start));
    own.filter_map(|vm| fs::read_to_string(vm.path().join("exits")).ok())
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found() {
        let status = "Name:\tvcpu0\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t30\n";
        assert_eq!(switches(status), 42);
        let stat = "12 (a b) c) S 1 12 12 0 -1 4194304 100 0 0 0 7 5 0 0 20 0 1 0 100 1 2";
        assert_eq!(ticks(stat), Some(12));
        assert_eq!(ticks("12 (short) S 1"), None);
        let place = tempfile::tempdir().unwrap();
        for (name, count) in [("12-5", "3\n"), ("123-5", "100\n"), ("12-9", "4\n")] {
            fs::create_dir(place.path().join(name)).unwrap();
            fs::write(place.path().join(name).join("exits"), count).unwrap();
        }
        assert_eq!(exits(place.path(), 12), 7);
        assert_eq!(exits(&place.path().join("none"), 12), 0);
    }

    #[test]
    fn the_counters_of_this_process_grow() {
        let before = Counters::of(std::process::id()).unwrap();
        std::thread::yield_now();
        std::thread::sleep(std::time::Duration::from_millis(1));
        let after = Counters::of(std::process::id()).unwrap();
        assert!(after.switches > before.switches && after.ticks >= before.ticks);
        assert_eq!(after.since(before).switches, after.switches - before.switches);
    }
}
