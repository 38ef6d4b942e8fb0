//! What the requests of the control socket do. Each is one call.

use std::os::fd::OwnedFd;

use node_shim_protocol::control::{
    AfterSnapshot, Balloon, Failure, FailureKind, Power, Request, Response, VmState, VmStatus,
};

use super::hotplug::Named;
use super::standstill::{Saving, micros};
use super::{ClientId, EventLoop, Next, Outcome, Received};
use crate::lifecycle::{Event, Phase};
use crate::machine::Machine;

/// How a request ends.
enum Reply {
    Now(Response),
    /// When the snapshot is written.
    Later,
    /// With the machine.
    Leave(Next),
}

impl From<Result<(), Failure>> for Reply {
    fn from(change: Result<(), Failure>) -> Self {
        Self::Now(change.map_or_else(Response::Error, |()| Response::Done))
    }
}

impl From<Outcome> for Reply {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Now(Response::Done),
            Outcome::Refused(refusal) => Self::Now(Response::error(FailureKind::Refused, refusal.to_string())),
            Outcome::Failed(why) => Self::Now(Response::error(FailureKind::Failed, why)),
            Outcome::Saving => Self::Later,
            Outcome::Leave(next) => Self::Leave(next),
        }
    }
}

impl EventLoop {
    /// A client of the control socket said something.
    pub(super) fn on_client(&mut self, machine: &Machine, client: ClientId) -> Option<Next> {
        let received = match &mut self.control {
            Some(control) => control.receive(&self.poll, client),
            None => Received::Nothing,
        };
        let (request, descriptors) = match received {
            Received::Request(request, descriptors) => (request, descriptors),
            Received::Console => {
                self.pass_console_input(machine);
                return None;
            }
            Received::Nothing => return None,
        };
        let reply = self.on_request(machine, client, request, descriptors);
        let (response, next) = match reply {
            Reply::Now(response) => (response, None),
            Reply::Later => return None,
            Reply::Leave(next) => (Response::Done, Some(next)),
        };
        if let Some(control) = &mut self.control {
            control.answer(&self.poll, client, &response);
        }
        next
    }

    fn on_request(
        &mut self,
        machine: &Machine,
        client: ClientId,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Reply {
        match request {
            Request::Status => Reply::Now(Response::Status(self.vm_status(machine))),
            Request::Power(Power::Button) => self.decide(machine, &Event::StopRequested).into(),
            Request::Power(Power::Off) => self.decide(machine, &Event::OffRequested).into(),
            Request::Power(Power::Reset) => self.decide(machine, &Event::ResetRequested).into(),
            Request::Pause => self.decide(machine, &Event::PauseRequested).into(),
            Request::Resume => self.decide(machine, &Event::ResumeRequested).into(),
            Request::Snapshot { folder, then } => {
                if self.saving.is_none() {
                    self.saving = Some(Saving::new(client, folder));
                }
                let stay_paused = match then {
                    AfterSnapshot::Continue => false,
                    AfterSnapshot::StayPaused => true,
                };
                let outcome = self.decide(machine, &Event::SnapshotRequested { stay_paused });
                if !matches!(outcome, Outcome::Saving)
                    && self.saving.as_ref().is_some_and(|saving| saving.client == client)
                {
                    self.saving = None;
                }
                outcome.into()
            }
            Request::Console => Reply::Now(self.open_console(client)),
            Request::Resize { vcpus, memory_bytes } => self.resize(machine, vcpus, memory_bytes).into(),
            Request::AttachDisk(disk) => self.attach_disk(disk, descriptors.into_iter().next()).into(),
            Request::DetachDisk { name } => self.detach(&Named::Disk(name)).into(),
            Request::AttachNetwork(network) => self.attach_network(network, descriptors.into_iter().next()).into(),
            Request::DetachNetwork { name } => self.detach(&Named::Interface(name)).into(),
            Request::Balloon(Balloon::Target { bytes }) => {
                self.set_balloon(bytes);
                Ok(()).into()
            }
            Request::Balloon(Balloon::Statistics) => Reply::Now(Response::BalloonStatistics(self.balloon_statistics())),
        }
    }

    fn open_console(&mut self, client: ClientId) -> Response {
        let Some(control) = &mut self.control else {
            return Response::error(FailureKind::Failed, "there is no control socket");
        };
        match control.make_console(client) {
            Ok(socket) => {
                self.platform.output.watch(socket);
                Response::Done
            }
            Err(error) => Response::error(FailureKind::Failed, format!("failed to open the console: {error}")),
        }
    }

    /// Gives the guest as much of the clients' console input as it takes.
    pub(super) fn pass_console_input(&mut self, machine: &Machine) {
        let Some(mut control) = self.control.take() else {
            return;
        };
        control.console_input(&self.poll, |input| {
            let console = self.platform.output.last();
            let taken = self.console_room(machine, console).min(input.len());
            if taken > 0 {
                self.console_input(machine, console, input.get(..taken).unwrap_or_default());
            }
            taken
        });
        self.control = Some(control);
    }

    fn vm_status(&mut self, machine: &Machine) -> VmStatus {
        let (disks, interfaces) = self.names();
        VmStatus {
            name: self.identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: match self.state.phase {
                Phase::Booting => VmState::Booting,
                Phase::Running => VmState::Running,
                Phase::Paused { .. } => VmState::Paused,
                Phase::Saving { .. } => VmState::Saving,
                Phase::PoweringOff | Phase::Ended(_) => VmState::PoweringOff,
            },
            boot_time_ms: self.boot_time_ms,
            vcpus: u32::from(machine.cpus.present()),
            memory_bytes: self.memory_bytes(),
            disks,
            interfaces,
            resets: self.resets,
            restored_in_us: self.restored_in.map(micros),
        }
    }
}
