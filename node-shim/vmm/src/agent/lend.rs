//! A volume pod's side of the conversation with the node agent: it lends a disk that it keeps open, until its pod ends.
//!
//! ```text
//! connect ─► Lend ─► Lent ─► wait ──SIGTERM──► Withdraw ─► Returned ─► end
//!    ▲         │              │ connection lost: the agent restarts        a guest may have the disk until then
//!    └─────────┴──────────────┘
//! ```

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use node_shim_protocol::agent::{DiskOptions, Request, Response, VERSION};

use super::{ANSWER_MAX, Address, AgentError, Backoff, wait};
use crate::log;
use crate::packet::{self, PacketError};
use crate::signals::Signals;

/// Longer than a volume pod lives.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);

/// How a try to lend ended.
enum Try {
    /// The disk is back; this pod may end.
    Returned,
    /// The agent went away, or is not able to: it is tried again.
    Lost(String),
    /// The pod is to end, and the agent was asked for the disk or never had it.
    Stopped,
}

/// Lends a disk until its pod is to end and no guest has it any more. Without an agent it waits for one, for as long as its pod lives.
pub(crate) fn lend(address: &Address, options: &DiskOptions, disk: &File, signals: &Signals) -> Result<(), AgentError> {
    let request = Request::Lend {
        version: VERSION,
        pod_uid: address.pod_uid.clone(),
        disk: options.clone(),
    };
    let mut state = State::default();
    let mut backoff = Backoff::new();
    loop {
        let lost = match state.run(address, &request, disk, signals)? {
            Try::Returned => return Ok(()),
            // A guest may have what was once lent.
            Try::Stopped if !state.was_lent => return Ok(()),
            Try::Stopped => "it was asked for the disk".to_owned(),
            Try::Lost(why) => why,
        };
        if state.is_new {
            state.is_new = false;
            backoff = Backoff::new();
        }
        let pause = backoff.next();
        if backoff.is_first() {
            log::line(format_args!("waiting for the node agent: {lost}"));
        }
        match wait(signals, None, pause) {
            Err(AgentError::Stopped) if !state.was_lent => return Ok(()),
            Err(AgentError::Stopped) => state.withdraws = true,
            waited => {
                waited?;
            }
        }
    }
}

/// What has happened so far.
#[derive(Default)]
struct State {
    /// The agent has had the disk.
    was_lent: bool,
    /// The last connection got so far: the next pause is short.
    is_new: bool,
    /// The pod is to end.
    withdraws: bool,
}

impl State {
    /// One connection, from its beginning to its end.
    fn run(&mut self, address: &Address, request: &Request, disk: &File, signals: &Signals) -> Result<Try, AgentError> {
        let lost = |error: PacketError| Ok(Try::Lost(error.to_string()));
        let connection = match packet::connect(&address.socket) {
            Ok(connection) => connection,
            Err(error) => return lost(error),
        };
        if let Err(error) = packet::send(&connection, request, &[disk.as_fd()]) {
            return lost(error);
        }
        let mut patience = ANSWER_MAX;
        loop {
            match wait(signals, Some(&connection), patience) {
                Ok(true) => {}
                Ok(false) if patience == ANSWER_MAX => return Ok(Try::Lost("it did not answer in time".to_owned())),
                Ok(false) => continue,
                Err(AgentError::Stopped) => {
                    self.withdraws = true;
                    if patience == ANSWER_MAX {
                        // It has the descriptor already: it is asked once it has answered.
                        continue;
                    }
                    match packet::send(&connection, &Request::Withdraw, &[]) {
                        Ok(()) => continue,
                        Err(error) => return lost(error),
                    }
                }
                Err(error) => return Err(error),
            }
            match self.hear(&connection)? {
                None => patience = FOR_EVER,
                Some(end) => return Ok(end),
            }
            if self.withdraws
                && let Err(error) = packet::send(&connection, &Request::Withdraw, &[])
            {
                return lost(error);
            }
        }
    }

    /// What the agent says; `None` where the conversation goes on.
    fn hear(&mut self, connection: &OwnedFd) -> Result<Option<Try>, AgentError> {
        match packet::receive(connection) {
            Ok(Some((Response::Lent, _))) => {
                if !self.was_lent {
                    log::line(format_args!("the node agent has the disk"));
                }
                (self.was_lent, self.is_new) = (true, true);
                Ok(None)
            }
            Ok(Some((Response::Returned, _))) => Ok(Some(Try::Returned)),
            Ok(Some((
                Response::Refused {
                    reason,
                    retryable: false,
                },
                _,
            ))) => self.unless_lent(AgentError::Refused(reason)),
            Ok(Some((
                Response::Refused {
                    reason,
                    retryable: true,
                },
                _,
            ))) => Ok(Some(if self.withdraws {
                Try::Stopped
            } else {
                Try::Lost(reason)
            })),
            Ok(Some((
                Response::Granted { .. }
                | Response::Resize(_)
                | Response::AttachDisk(_)
                | Response::DetachDisk { .. }
                | Response::AttachInterface(_)
                | Response::DetachInterface { .. },
                _,
            ))) => self.unless_lent(AgentError::Unusable("it takes this volume pod for a VM".to_owned())),
            Ok(None) => Ok(Some(Try::Lost("it closed the connection".to_owned()))),
            Err(PacketError::Unusable(what)) => self.unless_lent(AgentError::Unusable(what)),
            Err(error) => Ok(Some(Try::Lost(error.to_string()))),
        }
    }

    /// A reason to end, but for a disk that a guest may have: its volume stays for as long as this process does, whatever an agent of another release
    /// says.
    fn unless_lent(&self, error: AgentError) -> Result<Option<Try>, AgentError> {
        if self.was_lent {
            Ok(Some(Try::Lost(error.to_string())))
        } else {
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests;
