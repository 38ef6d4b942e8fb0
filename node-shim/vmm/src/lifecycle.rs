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
//! ```

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
    /// The power button was pressed.
    PoweringOff,
    /// The process ends.
    Ended(ExitReason),
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
    /// SIGTERM or its like.
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
    /// Start the guest anew.
    Restart,
    /// End the process.
    End(ExitReason),
}

impl VmState {
    /// A VM that was just started.
    pub(crate) const fn new() -> Self {
        Self {
            phase: Phase::Booting,
            early_resets: 0,
        }
    }

    /// The next state, and what to do. `uptime` is the time since the guest's last start.
    pub(crate) fn on(self, event: &Event, uptime: Duration) -> (Self, Action) {
        match (self.phase, event) {
            (Phase::Booting | Phase::Running | Phase::PoweringOff, Event::GuestPowerOff) => {
                self.end(ExitReason::PoweredOff)
            }
            (Phase::Booting | Phase::Running | Phase::PoweringOff, Event::Crashed(_)) => {
                self.end(ExitReason::GuestCrashed)
            }
            (Phase::Booting | Phase::Running | Phase::PoweringOff, Event::Panicked) => {
                self.end(ExitReason::GuestPanicked)
            }
            (Phase::Booting | Phase::Running | Phase::PoweringOff, Event::WatchdogExpired) => {
                self.end(ExitReason::GuestHung)
            }
            (Phase::Booting, Event::DriverReady) => (
                Self {
                    phase: Phase::Running,
                    early_resets: 0,
                },
                Action::Report,
            ),
            (Phase::Ended(_), _)
            | (Phase::Running | Phase::PoweringOff, Event::DriverReady)
            | (Phase::PoweringOff, Event::StopRequested)
            // Left over from a power button that a reset has answered.
            | (Phase::Booting | Phase::Running, Event::GraceExpired) => (self, Action::None),
            (Phase::Booting | Phase::Running, Event::StopRequested) => (
                Self {
                    phase: Phase::PoweringOff,
                    ..self
                },
                Action::PressPowerButton,
            ),
            (Phase::PoweringOff, Event::GraceExpired) => self.end(ExitReason::ForcedOff),
            // Its owner wanted it off; that it starts again is the guest's own idea.
            (Phase::PoweringOff, Event::GuestReset | Event::TripleFault) => self.end(ExitReason::PoweredOff),
            (Phase::Booting, Event::GuestReset | Event::TripleFault) if uptime < EARLY => self.early_reset(),
            (Phase::Booting | Phase::Running, Event::GuestReset | Event::TripleFault) => (Self::new(), Action::Restart),
        }
    }

    const fn end(self, reason: ExitReason) -> (Self, Action) {
        let phase = Phase::Ended(reason);
        (Self { phase, ..self }, Action::End(reason))
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
