//! What a VM does next: a pure function of its state, what happened, and how long the guest has run.
//!
//! ```text
//!            first virtio driver            power button
//!  Booting ----------------------> Running ---------------> PoweringOff
//!    ^  |                             |                       |   |   |
//!    |  +----------- reset -----------+                  S5 or  grace  crash
//!    +------------------<-------------+                  reset  period
//!                                                             |   |   |
//!   S5: Ended(PoweredOff), crash: Ended(GuestCrashed),        v   v   v
//!   panic: Ended(GuestPanicked), watchdog: Ended(GuestHung)
//!   from every state                                           Ended(...)
//!
//!                     pause                       snapshot
//!  Booting, Running ---------> Paused ------------------------------> Saving
//!          ^   ^               | |  ^                                  | |
//!          |   +--- resume ----+ |  +------ written, and to stay so ---+ |
//!          +---------------------|------------- written -----------------+
//!                                +-- power button --> PoweringOff
//! ```
//!
//! While vCPUs stand still the guest does nothing, so nothing of it arrives: what it said before is dealt with before a pause counts.

use std::time::Duration;

use node_shim_protocol::ExitReason;

/// A guest that resets this soon after its start, without having taken a device, is not restarting but failing.
const EARLY: Duration = Duration::from_secs(10);
/// So many early resets in a row are a crash.
const EARLY_RESETS_MAX: u8 = 3;

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// vCPUs run; no driver has taken a device yet.
    Booting,
    /// The guest's kernel has taken its first device.
    Running,
    /// vCPUs and devices stand still.
    Paused {
        /// Whether it was `Running` before, rather than `Booting`.
        booted: bool,
    },
    /// As `Paused`, while a snapshot is written.
    Saving {
        /// As in `Paused`.
        booted: bool,
        /// What follows.
        then: AfterSaving,
    },
    /// The power button was pressed.
    PoweringOff,
    /// The process ends.
    Ended(ExitReason),
}

/// What follows the writing of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterSaving {
    /// vCPUs run again.
    Resume,
    /// The VM stays paused.
    StayPaused,
    /// vCPUs run again and find the power button pressed.
    PowerOff,
}

/// A VM's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmState {
    /// Where it is.
    pub(crate) phase: Phase,
    /// Early resets in a row.
    early_resets: u8,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A driver set `DRIVER_OK`.
    DriverReady,
    /// SIGTERM or its like, or a request for the power button.
    StopRequested,
    /// The grace period is over.
    GraceExpired,
    /// The guest entered S5.
    GuestPowerOff,
    /// The guest asked for a reset.
    GuestReset,
    /// The processor shut down: a triple fault, which some guests reset by.
    TripleFault,
    /// Something that no VM survives.
    Crashed(String),
    /// The guest's kernel panicked, and said so.
    Panicked,
    /// The guest did not reset its watchdog in time.
    WatchdogExpired,
    /// A request to pause.
    PauseRequested,
    /// A request to go on.
    ResumeRequested,
    /// A request for a snapshot.
    SnapshotRequested {
        /// Whether the VM is to be paused afterwards, whatever it was before.
        stay_paused: bool,
    },
    /// The snapshot is written, or failed.
    SnapshotEnded,
    /// A request to switch off.
    OffRequested,
    /// A request to reset.
    ResetRequested,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    None,
    /// Tell the agent.
    Report,
    /// Press the power button and start the grace period.
    PressPowerButton,
    /// Let vCPUs and devices go on, then as `PressPowerButton`.
    ResumeAndPressPowerButton,
    /// Start the guest anew.
    Restart,
    /// Bring vCPUs and devices to rest.
    Pause,
    /// Let them go on.
    Resume,
    /// Bring them to rest where they are not, and write a snapshot.
    Save,
    /// Say no to a request.
    Refuse(Refusal),
    /// End the process.
    End(ExitReason),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not while vCPUs stand still.
    #[error("the VM is paused; resume it first")]
    Paused,
    /// Not while a snapshot is written.
    #[error("a snapshot of the VM is being written; wait until it is")]
    Saving,
    /// Not after the power button.
    #[error("the VM is powering off")]
    PoweringOff,
    /// Not in this moment.
    #[error("the guest is just being reset or is powering off; try again")]
    GuestActs,
}

impl VmState {
    /// A VM that was just started.
    pub(crate) const fn new() -> Self {
        Self {
            phase: Phase::Booting,
            early_resets: 0,
        }
    }

    /// A VM that was just restored: it stands still until it is resumed.
    pub(crate) const fn restored(booted: bool) -> Self {
        Self {
            phase: Phase::Paused { booted },
            early_resets: 0,
        }
    }

    /// Whether the guest's kernel has taken a device.
    pub(crate) const fn booted(self) -> bool {
        match self.phase {
            Phase::Booting => false,
            Phase::Running | Phase::PoweringOff | Phase::Ended(_) => true,
            Phase::Paused { booted } | Phase::Saving { booted, .. } => booted,
        }
    }

    /// The next state, and what to do. `uptime` is the time since the guest's last start.
    pub(crate) fn on(self, event: &Event, uptime: Duration) -> (Self, Action) {
        match event {
            Event::DriverReady
            | Event::GuestPowerOff
            | Event::GuestReset
            | Event::TripleFault
            | Event::Crashed(_)
            | Event::Panicked
            | Event::WatchdogExpired => self.on_guest(event, uptime),
            Event::StopRequested => self.on_stop(),
            Event::GraceExpired => match self.phase {
                Phase::PoweringOff => self.end(ExitReason::ForcedOff),
                // Left over from a power button that a reset has answered.
                Phase::Booting | Phase::Running | Phase::Paused { .. } | Phase::Saving { .. } | Phase::Ended(_) => {
                    (self, Action::None)
                }
            },
            Event::PauseRequested => self.on_pause(),
            Event::ResumeRequested => self.on_resume(),
            Event::SnapshotRequested { stay_paused } => self.on_snapshot(*stay_paused),
            Event::SnapshotEnded => self.on_snapshot_ended(),
            Event::OffRequested => match self.phase {
                Phase::Booting | Phase::Running | Phase::Paused { .. } | Phase::PoweringOff => {
                    self.end(ExitReason::ForcedOff)
                }
                Phase::Saving { .. } => (self, Action::Refuse(Refusal::Saving)),
                Phase::Ended(_) => (self, Action::None),
            },
            Event::ResetRequested => match self.phase {
                Phase::Booting | Phase::Running => (Self::new(), Action::Restart),
                Phase::Paused { .. } => (self, Action::Refuse(Refusal::Paused)),
                Phase::Saving { .. } => (self, Action::Refuse(Refusal::Saving)),
                Phase::PoweringOff => (self, Action::Refuse(Refusal::PoweringOff)),
                Phase::Ended(_) => (self, Action::None),
            },
        }
    }

    /// What the guest did.
    fn on_guest(self, event: &Event, uptime: Duration) -> (Self, Action) {
        if let Phase::Ended(_) = self.phase {
            return (self, Action::None);
        }
        match event {
            Event::GuestPowerOff => self.end(ExitReason::PoweredOff),
            Event::Crashed(_) => self.end(ExitReason::GuestCrashed),
            Event::Panicked => self.end(ExitReason::GuestPanicked),
            Event::WatchdogExpired => self.end(ExitReason::GuestHung),
            Event::DriverReady => self.on_driver_ready(),
            Event::GuestReset | Event::TripleFault => match self.phase {
                // Its owner wanted it off; that it starts again is the guest's own idea.
                Phase::PoweringOff => self.end(ExitReason::PoweredOff),
                Phase::Booting if uptime < EARLY => self.early_reset(),
                Phase::Booting | Phase::Running | Phase::Paused { .. } | Phase::Saving { .. } => {
                    (Self::new(), Action::Restart)
                }
                Phase::Ended(_) => (self, Action::None),
            },
            Event::StopRequested
            | Event::GraceExpired
            | Event::PauseRequested
            | Event::ResumeRequested
            | Event::SnapshotRequested { .. }
            | Event::SnapshotEnded
            | Event::OffRequested
            | Event::ResetRequested => (self, Action::None),
        }
    }

    const fn on_driver_ready(self) -> (Self, Action) {
        match self.phase {
            Phase::Booting => (
                Self {
                    phase: Phase::Running,
                    early_resets: 0,
                },
                Action::Report,
            ),
            Phase::Paused { booted: false } => (
                Self {
                    phase: Phase::Paused { booted: true },
                    early_resets: 0,
                },
                Action::Report,
            ),
            Phase::Saving { booted: false, then } => (
                Self {
                    phase: Phase::Saving { booted: true, then },
                    early_resets: 0,
                },
                Action::Report,
            ),
            Phase::Running
            | Phase::Paused { booted: true }
            | Phase::Saving { booted: true, .. }
            | Phase::PoweringOff
            | Phase::Ended(_) => (self, Action::None),
        }
    }

    const fn on_stop(self) -> (Self, Action) {
        match self.phase {
            Phase::Booting | Phase::Running => (self.at(Phase::PoweringOff), Action::PressPowerButton),
            Phase::Paused { .. } => (self.at(Phase::PoweringOff), Action::ResumeAndPressPowerButton),
            Phase::Saving { booted, .. } => {
                let then = AfterSaving::PowerOff;
                (self.at(Phase::Saving { booted, then }), Action::None)
            }
            Phase::PoweringOff | Phase::Ended(_) => (self, Action::None),
        }
    }

    const fn on_pause(self) -> (Self, Action) {
        match self.phase {
            Phase::Booting | Phase::Running => {
                let booted = self.booted();
                (self.at(Phase::Paused { booted }), Action::Pause)
            }
            Phase::Paused { .. } | Phase::Ended(_) => (self, Action::None),
            Phase::Saving { .. } => (self, Action::Refuse(Refusal::Saving)),
            Phase::PoweringOff => (self, Action::Refuse(Refusal::PoweringOff)),
        }
    }

    const fn on_resume(self) -> (Self, Action) {
        match self.phase {
            Phase::Paused { booted } => (self.at(Self::running(booted)), Action::Resume),
            Phase::Booting | Phase::Running | Phase::PoweringOff | Phase::Ended(_) => (self, Action::None),
            Phase::Saving { .. } => (self, Action::Refuse(Refusal::Saving)),
        }
    }

    const fn on_snapshot(self, stay_paused: bool) -> (Self, Action) {
        let then = match self.phase {
            Phase::Booting | Phase::Running if !stay_paused => AfterSaving::Resume,
            Phase::Booting | Phase::Running | Phase::Paused { .. } => AfterSaving::StayPaused,
            Phase::Saving { .. } => return (self, Action::Refuse(Refusal::Saving)),
            Phase::PoweringOff => return (self, Action::Refuse(Refusal::PoweringOff)),
            Phase::Ended(_) => return (self, Action::None),
        };
        let booted = self.booted();
        (self.at(Phase::Saving { booted, then }), Action::Save)
    }

    const fn on_snapshot_ended(self) -> (Self, Action) {
        match self.phase {
            Phase::Saving { booted, then } => match then {
                AfterSaving::Resume => (self.at(Self::running(booted)), Action::Resume),
                AfterSaving::StayPaused => (self.at(Phase::Paused { booted }), Action::None),
                AfterSaving::PowerOff => (self.at(Phase::PoweringOff), Action::ResumeAndPressPowerButton),
            },
            Phase::Booting | Phase::Running | Phase::Paused { .. } | Phase::PoweringOff | Phase::Ended(_) => {
                (self, Action::None)
            }
        }
    }

    const fn running(booted: bool) -> Phase {
        if booted { Phase::Running } else { Phase::Booting }
    }

    const fn at(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    const fn end(self, reason: ExitReason) -> (Self, Action) {
        (self.at(Phase::Ended(reason)), Action::End(reason))
    }

    const fn early_reset(self) -> (Self, Action) {
        let early_resets = self.early_resets + 1;
        if early_resets >= EARLY_RESETS_MAX {
            return self.end(ExitReason::GuestCrashed);
        }
        (
            Self {
                phase: Phase::Booting,
                early_resets,
            },
            Action::Restart,
        )
    }
}

#[cfg(test)]
mod tests;
