//! Figures of an unmodified Linux guest, in whatever machine this runs in that has KVM: in `hack/bench`, an emulated one, whose clock is
//! good for ratios only.
//!
//! The guest's init says `INIT` and its uptime, and then does what it is told, a line of shell at a time: see `hack/bench-machine/guest-init`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::monitor::{self, Monitor};
use crate::profile::Counters;
use crate::vm::Vm;

mod boot;
mod fio;
mod iperf;
mod request_response;

pub(crate) use request_response::{answer, ask};

/// After this a monitor is killed.
const LIMIT: Duration = Duration::from_mins(15);

/// Figures that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Start to init.
    Boot,
    /// Block IO by fio.
    Fio,
    /// TCP and UDP, by iperf3, and request and response.
    Iperf,
}

impl Group {
    /// For errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Fio => "fio",
            Self::Iperf => "iperf",
        }
    }
}

/// What is measured with what.
pub(crate) struct Bench {
    pub(crate) shim: PathBuf,
    pub(crate) guest: PathBuf,
    pub(crate) rounds: Option<u32>,
}

impl Bench {
    /// Measures some figures.
    pub(crate) fn measure(&self, group: Group) -> Result<()> {
        match group {
            Group::Boot => boot::measure(self),
            Group::Fio => fio::measure(self),
            Group::Iperf => iperf::measure(self),
        }
    }

    fn machine(&self) -> monitor::Machine {
        monitor::Machine {
            kernel: self.guest.join("vmlinux"),
            initrd: Some(self.guest.join("initrd")),
            command_line: "console=ttyS0 quiet mitigations=off".to_owned(),
            memory_mib: 256,
            disk_bytes: None,
            tools: None,
            tap: None,
        }
    }

    fn start(&self, monitor: Monitor, machine: &monitor::Machine, directory: &Path) -> Result<Vm> {
        let command = monitor.command(&self.shim, machine, directory)?;
        Vm::start(command, directory, LIMIT).with_context(|| monitor.to_string())
    }

    /// Starts a machine with the disk of tools, and waits until its guest can be told what to do.
    fn start_with_tools(&self, monitor: Monitor, machine: monitor::Machine, directory: &Path) -> Result<Vm> {
        let machine = monitor::Machine {
            tools: Some(self.guest.join("tools.ext4")),
            ..machine
        };
        let mut vm = self.start(monitor, &machine, directory)?;
        vm.line_after("INIT ").with_context(|| monitor.to_string())?;
        told(&mut vm, "tools")?;
        Ok(vm)
    }
}

/// Has the guest carry out a line of shell, and returns what that printed on lines that begin with `RESULT `.
fn told(vm: &mut Vm, command: &str) -> Result<Vec<String>> {
    vm.tell(command)?;
    let mut results = Vec::new();
    loop {
        let line = vm.line()?;
        if let Some(status) = line.strip_prefix("STATUS ") {
            ensure!(
                status == "0",
                "`{command}` ends with {status} in the guest: {results:?}"
            );
            return Ok(results);
        }
        results.extend(line.strip_prefix("RESULT ").map(str::to_owned));
    }
}

/// [`told`], and what the monitor spent on it.
fn told_at_cost(vm: &mut Vm, command: &str) -> Result<(Vec<String>, Counters)> {
    let before = Counters::of(vm.pid())?;
    let results = told(vm, command)?;
    Ok((results, Counters::of(vm.pid())?.since(before)))
}

/// A disk without holes.
fn fill(path: &Path, bytes: u64) -> Result<()> {
    let mut random = std::io::Read::take(File::open("/dev/urandom")?, bytes);
    let mut file = File::create(path)?;
    std::io::copy(&mut random, &mut file).with_context(|| format!("failed to fill {}", path.display()))?;
    Ok(())
}
