//! Figures of this machine's own `/dev/kvm`, with the polling guest. `KVM_PVM` runs it too, under every monitor.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::monitor::{Aio, Machine, Monitor};
use crate::vm::Vm;

mod block;
mod hostile;
mod memory;
mod net;
mod restore;
mod start;

/// After this a monitor is killed.
const LIMIT: Duration = Duration::from_mins(2);

/// Figures that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Memory beyond the guest's.
    Memory,
    /// Exec to first guest instruction.
    Start,
    /// Restore to running.
    Restore,
    /// Size of the binary.
    Binary,
    /// Block IO.
    Block,
    /// Frames. It needs a network namespace in which it may make a tap.
    Net,
    /// No figure: a driver that breaks every rule, and a monitor that lives on.
    Hostile,
}

impl Group {
    /// For errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Start => "start",
            Self::Restore => "restore",
            Self::Binary => "binary",
            Self::Block => "block",
            Self::Net => "net",
            Self::Hostile => "hostile",
        }
    }
}

/// What is measured with what.
pub(crate) struct Bench {
    pub(crate) shim: PathBuf,
    pub(crate) guest: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) rounds: Option<u32>,
}

impl Bench {
    /// Measures some figures.
    pub(crate) fn measure(&self, group: Group) -> Result<()> {
        match group {
            Group::Memory => memory::measure(self),
            Group::Start => start::measure(self),
            Group::Restore => restore::measure(self),
            Group::Binary => memory::measure_binary(self),
            Group::Block => block::measure(self),
            Group::Net => net::measure(self),
            Group::Hostile => hostile::attack(self),
        }
    }

    fn place(&self) -> Result<tempfile::TempDir> {
        let place = tempfile::Builder::new()
            .prefix("node-shim-bench.")
            .tempdir_in(&self.directory);
        place.with_context(|| format!("failed to make a directory in {}", self.directory.display()))
    }

    fn machine(&self, memory_mib: u64) -> Machine {
        Machine {
            kernel: self.guest.clone(),
            initrd: None,
            command_line: String::new(),
            memory_mib,
            disk_bytes: None,
            tools: None,
            tap: None,
        }
    }

    fn start(&self, monitor: Monitor, machine: &Machine, directory: &std::path::Path) -> Result<Vm> {
        let command = monitor.command(&self.shim, machine, directory)?;
        Vm::start(command, directory, LIMIT).with_context(|| monitor.to_string())
    }

    /// Starts a machine and waits until its guest can be asked.
    fn start_up(&self, monitor: Monitor, machine: &Machine, directory: &std::path::Path) -> Result<Vm> {
        let mut vm = self.start(monitor, machine, directory)?;
        vm.line_after("!up").with_context(|| monitor.to_string())?;
        Ok(vm)
    }
}

const SMALL: [Monitor; 3] = [Monitor::NodeShim, Monitor::Microvm, Monitor::Q35(Aio::Uring)];
