//! How long a restore takes, and what the VMM costs in memory: `cargo bench -p node-shim --bench restore [-- --markdown]`.
//!
//! It runs on this machine's own `/dev/kvm`, with the guest of the native tests. Of each restore it measures the time from starting the
//! process to vCPUs that run, by the process's own clock, and to the end of a process whose guest does nothing but power off: more than
//! restore-to-running can be.
#![allow(missing_docs, reason = "a benchmark")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use self::vm::{Place, Vm};

#[path = "../tests/native/guest/mod.rs"]
mod guest;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/native/vm.rs"]
mod vm;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RUNS: usize = 20;

fn main() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("*** SKIPPED: this needs /dev/kvm, which cannot be opened here: {error} ***");
        return;
    }
    let place = Place::new();
    let mut vm = Vm::boot(&place, GIB, "[]");
    vm.type_in("t");
    assert_eq!(vm.line(), "touched");
    let folder = place.path("snapshot");
    let answer = vm.ask(&["snapshot", folder.to_str().unwrap(), "--stay-paused"]);
    eprintln!("snapshot of a 1 GiB guest: {answer:?}");
    vm.ask(&["power", "off"]);
    vm.end();

    let mut to_running = Vec::new();
    let mut to_end = Vec::new();
    for _ in 0..RUNS {
        let (running, end) = restore(&folder);
        to_running.push(running);
        to_end.push(end);
    }
    let small = Place::new();
    let mut vm = Vm::boot(&small, 128 * MIB, "[]");
    vm.report();
    let fresh = beyond_guest_memory(vm.pid(), 128 * MIB);
    drop(vm);
    let mut vm = Vm::restore(&folder, &place.path("other"), place.path("other.sock"));
    vm.report();
    let restored = beyond_guest_memory(vm.pid(), GIB);
    drop(vm);

    let rows = [
        ("restore to running, 1 GiB guest", spread(&mut to_running), "<= 10 ms"),
        ("restore, guest powers off, process ends", spread(&mut to_end), ""),
        ("memory beyond guest RAM, 1 vCPU, 128 MiB", kib(fresh), "<= 4 MiB"),
        (
            "memory beyond guest RAM, restored 1 GiB guest",
            kib(restored),
            "<= 4 MiB",
        ),
        (
            "binary",
            kib(std::fs::metadata(env!("CARGO_BIN_EXE_node-shim")).unwrap().len()),
            "<= 6 MB",
        ),
    ];
    let markdown = std::env::args().any(|argument| argument == "--markdown");
    if markdown {
        println!("| figure | measured | bar |\n|---|---|---|");
    }
    for (figure, measured, bar) in rows {
        if markdown {
            println!("| {figure} | {measured} | {bar} |");
        } else {
            println!("{figure:48} {measured:32} {bar}");
        }
    }
}

/// Restores a VM whose guest is told to power off. The time to running vCPUs, and that to the end of the process.
fn restore(folder: &Path) -> (Duration, Duration) {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_node-shim"))
        .args(["run", "--restore"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"q").unwrap();
    let code = child.wait().unwrap().code();
    let ended = started.elapsed();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(code, Some(0), "{errors}");
    let (_, after) = errors.split_once("restored in ").unwrap();
    let micros = after.split_whitespace().next().unwrap().parse().unwrap();
    (Duration::from_micros(micros), ended)
}

/// Resident bytes of a process, private and shared, but for the mapping that is its guest's memory.
fn beyond_guest_memory(pid: u32, guest_bytes: u64) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut resident_kib = 0;
    let mut size_kib = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next().and_then(|value| value.parse::<u64>().ok()));
        match (name, value) {
            (Some("Size:"), Some(kib)) => size_kib = kib,
            (Some("Rss:"), Some(kib)) if size_kib * 1024 < guest_bytes => resident_kib += kib,
            _ => {}
        }
    }
    resident_kib * 1024
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes / 1024)
}

/// Median, least and most.
fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let median = times[times.len() / 2];
    format!(
        "{:.2} ms ({:.2} to {:.2})",
        ms(median),
        ms(times[0]),
        ms(times[times.len() - 1])
    )
}
