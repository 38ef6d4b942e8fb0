//! Bringing the VM to rest, writing it to a folder, letting it go on, and starting from such a folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use node_shim_protocol::control::{FailureKind, Response, SnapshotDone};

use super::{EventLoop, Outcome, RunError};
use crate::control::ClientId;
use crate::lifecycle::{Event, Phase, Refusal, VmState};
use crate::log;
use crate::machine::Machine;
use crate::snapshot::state::{self, VmState as SavedVm};
use crate::snapshot::{Job, Writer};

/// A snapshot that is asked for, and then written.
pub(super) struct Saving {
    /// Who waits for it.
    pub(super) client: ClientId,
    /// Where to.
    pub(super) folder: PathBuf,
    /// Since when vCPUs have stood still for it.
    since: Instant,
    /// Who writes it; nobody yet.
    writer: Option<Writer>,
}

impl Saving {
    /// A snapshot that somebody asks for.
    pub(super) fn new(client: ClientId, folder: PathBuf) -> Self {
        Self {
            client,
            folder,
            since: Instant::now(),
            writer: None,
        }
    }
}

impl EventLoop {
    /// Brings vCPUs and devices to rest. What the guest has just said comes first: a guest that is about to reset or to end does so.
    pub(super) fn stand_still(&mut self, machine: &Machine) -> Outcome {
        machine.pause();
        self.platform.watchdog.pause();
        for function in self.platform.pci.functions() {
            function.pause();
        }
        self.events.append(&mut self.platform.mailbox.take());
        let acts = self.events.iter().any(|event| match event {
            Event::GuestPowerOff
            | Event::GuestReset
            | Event::TripleFault
            | Event::Crashed(_)
            | Event::Panicked
            | Event::WatchdogExpired => true,
            Event::DriverReady
            | Event::StopRequested
            | Event::GraceExpired
            | Event::PauseRequested
            | Event::ResumeRequested
            | Event::SnapshotRequested { .. }
            | Event::SnapshotEnded
            | Event::OffRequested
            | Event::ResetRequested => false,
        });
        if acts {
            self.go_on(machine);
            return Outcome::Refused(Refusal::GuestActs);
        }
        Outcome::Done
    }

    /// Lets devices and vCPUs go on.
    pub(super) fn go_on(&self, machine: &Machine) {
        for function in self.platform.pci.functions() {
            function.resume();
        }
        self.platform.watchdog.resume();
        machine.resume();
    }

    /// Starts to write the snapshot that is asked for.
    pub(super) fn save(&mut self, machine: &Machine, before: VmState) -> Outcome {
        let stood_still = matches!(before.phase, Phase::Paused { .. });
        if let Some(saving) = &mut self.saving {
            saving.since = Instant::now();
        }
        if !stood_still {
            let outcome = self.stand_still(machine);
            if !matches!(outcome, Outcome::Done) {
                return outcome;
            }
        }
        match self.start_writer(machine) {
            Ok(()) => Outcome::Saving,
            Err(why) => {
                if !stood_still {
                    self.go_on(machine);
                }
                Outcome::Failed(why)
            }
        }
    }

    fn start_writer(&mut self, machine: &Machine) -> Result<(), String> {
        if !self.has_configured_devices() {
            return Err(
                "the VM has not the disks and interfaces of its configuration, which a snapshot would start it with; detach those that \
                 were attached later, or start the VM anew"
                    .to_owned(),
            );
        }
        if let Some(why) = &self.identity.without_copies {
            return Err(why.clone());
        }
        let saved = self.saved(machine)?;
        let state = state::encode(&saved).map_err(|error| format!("the state of the VM {error}"))?;
        let saving = self.saving.as_mut().ok_or("nobody asked for a snapshot")?;
        let job = Job {
            folder: saving.folder.clone(),
            allowed: self.paths.clone(),
            state,
            memory: Arc::clone(&self.platform.memory),
            mapped_file: self.mapped_file,
            pagemap: self.pagemap.clone(),
            scratch: self.identity.scratch.clone(),
            disks: saved.disks,
        };
        let writer = Writer::start(job, Arc::clone(&self.platform.mailbox));
        saving.writer = Some(writer.map_err(|error| format!("failed to start a thread for the snapshot: {error}"))?);
        Ok(())
    }

    /// Everything of the VM but memory and disks.
    fn saved(&self, machine: &Machine) -> Result<SavedVm, String> {
        Ok(SavedVm {
            config: self.identity.config.clone(),
            booted: self.state.booted(),
            boot_time_ms: self.boot_time_ms,
            resets: self.resets,
            kernel: self.platform.boot.found().unwrap_or_default(),
            memory_bytes: self.platform.memory_plan.mapped_bytes(),
            disks: self.identity.disk_files.clone(),
            machine: machine.save(&self.platform).map_err(|error| error.to_string())?,
        })
    }

    /// The writer has ended: says so to who asked.
    pub(super) fn finish_saving(&mut self) {
        let Some(Saving {
            client,
            folder,
            since,
            writer: Some(writer),
        }) = self.saving.take()
        else {
            return;
        };
        let paused = since.elapsed();
        let response = match writer.join() {
            Ok(memory_bytes) => {
                log::line(format_args!(
                    "snapshot written to {}: {} MiB of memory in {} ms",
                    folder.display(),
                    memory_bytes >> 20,
                    paused.as_millis()
                ));
                Response::Snapshot(SnapshotDone {
                    memory_bytes,
                    paused_us: micros(paused),
                })
            }
            Err(error) => {
                log::line(format_args!("failed to write a snapshot: {error}"));
                Response::error(FailureKind::Failed, error.to_string())
            }
        };
        if let Some(control) = &mut self.control {
            control.answer(&self.poll, client, &response);
        }
    }

    /// Starts the machine as it was saved.
    pub(super) fn restore(&mut self, saved: &SavedVm) -> Result<Machine, RunError> {
        let machine = Machine::restore(&self.platform, &saved.machine).map_err(RunError::Machine)?;
        self.started = Instant::now();
        self.boot_time_ms = saved.boot_time_ms;
        self.resets = saved.resets;
        self.platform.vcpus = saved.machine.cpus.present();
        self.state = VmState::restored(saved.booted);
        // Drivers that were there before: nobody has to be told.
        self.platform.mailbox.take();
        self.state = self.state.on(&Event::ResumeRequested, Duration::ZERO).0;
        self.go_on(&machine);
        let took = self.identity.started.elapsed();
        self.restored_in = Some(took);
        log::line(format_args!("restored in {} us", micros(took)));
        Ok(machine)
    }
}

/// In whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
