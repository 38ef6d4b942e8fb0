//! Block IO by the polling guest: its requests come as fast as the monitor answers, and no interrupt is ever needed.

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};

use super::Bench;
use crate::figure::Figure;
use crate::monitor::{Aio, Machine, Monitor};
use crate::report;
use crate::vm::Vm;

const GUEST_MIB: u64 = 128;
const DISK_BYTES: u64 = 1 << 30;
const ROUNDS: u32 = 5;
const MONITORS: [Monitor; 3] = [Monitor::NodeShim, Monitor::Q35(Aio::Uring), Monitor::Q35(Aio::Threads)];

struct Load {
    figure: Figure,
    operation: &'static str,
    bytes: u32,
    depth: u32,
    count: u32,
}

const fn load(figure: Figure, operation: &'static str, bytes: u32, depth: u32, count: u32) -> Load {
    Load {
        figure,
        operation,
        bytes,
        depth,
        count,
    }
}

const MIB: u32 = 1 << 20;
const LOADS: [Load; 6] = [
    load(Figure::Read1, "read", 4096, 1, 10_000),
    load(Figure::Read32, "read", 4096, 32, 50_000),
    load(Figure::Write1, "write", 4096, 1, 10_000),
    load(Figure::Write32, "write", 4096, 32, 50_000),
    load(Figure::ReadMib, "readseq", MIB, 4, 1024),
    load(Figure::WriteMib, "writeseq", MIB, 4, 1024),
];

/// In rounds, each monitor in turn on the same file, which is in the page cache.
pub(super) fn measure(bench: &Bench) -> Result<()> {
    let place = bench.place()?;
    fill(&place.path().join("data.raw")).context("failed to make the disk")?;
    let machine = Machine {
        disk_bytes: Some(DISK_BYTES),
        ..bench.machine(GUEST_MIB)
    };
    for _ in 0..bench.rounds.unwrap_or(ROUNDS) {
        for monitor in MONITORS {
            let mut vm = bench.start_up(monitor, &machine, place.path())?;
            for load in &LOADS {
                let rate = run(&mut vm, load).with_context(|| format!("{monitor}, {}", load.figure.name()))?;
                report(load.figure, &monitor.to_string(), rate);
            }
        }
    }
    Ok(())
}

/// A disk without holes.
fn fill(path: &std::path::Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let chunk: Vec<u8> = (0..MIB).map(|index| u8::try_from(index % 251).unwrap_or(0)).collect();
    for _ in 0..DISK_BYTES / u64::from(MIB) {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

/// Requests a second, or MiB.
fn run(vm: &mut Vm, load: &Load) -> Result<f64> {
    let Load {
        operation,
        bytes,
        depth,
        count,
        ..
    } = load;
    let mut measure = |count: u32| {
        let started = Instant::now();
        vm.tell(&format!("block {operation} {bytes} {depth} {count}"))?;
        vm.line_after("block ")?;
        anyhow::Ok(started.elapsed().as_secs_f64())
    };
    // The guest's first touch of its buffers is not the monitor's to answer for.
    measure(count / 20)?;
    let rate = f64::from(*count) / measure(*count)?;
    Ok(if *bytes == MIB { rate } else { rate.round() })
}
