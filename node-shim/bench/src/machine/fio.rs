//! Block IO by fio in the guest.

use anyhow::{Context, Result};

use super::{Bench, fill, told_at_cost};
use crate::figure::Figure;
use crate::monitor::{Aio, Machine, Monitor};
use crate::profile::Profile;
use crate::{report, say};

const DISK_BYTES: u64 = 256 << 20;
const ROUNDS: u32 = 3;
const SECONDS: u32 = 4;
const RAMP_SECONDS: u32 = 1;
const MONITORS: [Monitor; 3] = [Monitor::NodeShim, Monitor::Q35(Aio::Uring), Monitor::Q35(Aio::Threads)];
/// The figure, and what fio is told: pattern, block size, depth.
const LOADS: [(Figure, &str, &str, u32); 6] = [
    (Figure::FioRead1, "randread", "4k", 1),
    (Figure::FioRead32, "randread", "4k", 32),
    (Figure::FioWrite1, "randwrite", "4k", 1),
    (Figure::FioWrite32, "randwrite", "4k", 32),
    (Figure::FioReadMib, "read", "1M", 4),
    (Figure::FioWriteMib, "write", "1M", 4),
];

/// In rounds, each monitor in turn on the same file, which is in memory.
pub(super) fn measure(bench: &Bench) -> Result<()> {
    let place = tempfile::tempdir().context("failed to make a directory")?;
    fill(&place.path().join("data.raw"), DISK_BYTES)?;
    for _ in 0..bench.rounds.unwrap_or(ROUNDS) {
        for monitor in MONITORS {
            let machine = Machine {
                disk_bytes: Some(DISK_BYTES),
                ..bench.machine()
            };
            let mut vm = bench.start_with_tools(monitor, machine, place.path())?;
            for (figure, pattern, size, depth) in LOADS {
                let job = format!(
                    "fio --name=load --filename=$(disk_named data) --ioengine=libaio --direct=1 --time_based --runtime={SECONDS} --ramp_time={RAMP_SECONDS} \
                     --thread --output-format=terse --terse-version=3 --rw={pattern} --bs={size} --iodepth={depth} | sed 's/^3;/RESULT &/'"
                );
                let (results, spent) = told_at_cost(&mut vm, &job)?;
                let line = results
                    .first()
                    .with_context(|| format!("fio says nothing of {}", figure.name()))?;
                let rate = rate(line, pattern.ends_with("write")).with_context(|| format!("fio says: {line}"))?;
                let monitor = monitor.to_string();
                say(&Profile {
                    figure,
                    monitor: &monitor,
                    operations: rate.operations * f64::from(SECONDS + RAMP_SECONDS),
                    spent,
                });
                report(
                    figure,
                    &monitor,
                    if size == "1M" {
                        rate.kib / 1024.0
                    } else {
                        rate.operations
                    },
                );
            }
        }
    }
    Ok(())
}

/// A second.
#[derive(Debug, PartialEq)]
struct Rate {
    kib: f64,
    operations: f64,
}

/// Of a line in fio's terse format, version 3: fields 7 and 8 are of reads, 48 and 49 of writes, counted from 1.
fn rate(line: &str, is_write: bool) -> Option<Rate> {
    let fields: Vec<&str> = line.split(';').collect();
    let first = if is_write { 47 } else { 6 };
    let number = |index: usize| fields.get(index)?.parse().ok().filter(|number| *number > 0.0);
    Some(Rate {
        kib: number(first)?,
        operations: number(first + 1)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_are_found_in_fios_line() {
        let mut fields = vec!["0".to_owned(); 130];
        for (index, value) in [(6, "4096"), (7, "1024"), (47, "8192"), (48, "8")] {
            value.clone_into(&mut fields[index]);
        }
        let line = fields.join(";");
        assert_eq!(
            rate(&line, false),
            Some(Rate {
                kib: 4096.0,
                operations: 1024.0
            })
        );
        assert_eq!(
            rate(&line, true),
            Some(Rate {
                kib: 8192.0,
                operations: 8.0
            })
        );
        assert_eq!(rate("3;fio", false), None);
        assert_eq!(rate(&vec!["0"; 130].join(";"), false), None, "nothing was read");
    }
}
