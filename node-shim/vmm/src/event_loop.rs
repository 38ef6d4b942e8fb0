//! The main thread while the guest runs: everything that happens comes here, and every decision is [`VmState`]'s.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use node_shim_protocol::ExitReason;
use node_shim_protocol::agent::{GuestState, GuestStatus};
use node_shim_protocol::control::Isolation;
use node_shim_virtio::device::Event as DeviceEvent;
use rustix::event::epoll::EventFlags;

use crate::agent::{Link, Order};
use crate::console::Console;
use crate::control::{ClientId, Received, Server};
use crate::jail::paths::Paths;
use crate::kvm::KvmError;
use crate::lifecycle::{Action, Event, Phase, Refusal, VmState};
use crate::log;
use crate::machine::{Machine, MachineError, Platform};
use crate::memory::{self, MemoryError};
use crate::poll::{Poll, Source, Token};
use crate::signals::Signals;
use crate::snapshot::state::VmState as SavedVm;
use crate::terminal;

pub(crate) mod hotplug;
mod requests;
mod size;
mod standstill;

use self::hotplug::{Named, Plugged};
use self::size::{Reports, Size};
use self::standstill::Saving;

/// A guest whose button driver was not yet there, or that cleared the event and did nothing, sees the button pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// How long the console may take to write what is left when the process ends.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Why a VM ended without its guest's doing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The machine cannot be started.
    #[error(transparent)]
    Machine(MachineError),
    /// Guest memory cannot be emptied for a reset.
    #[error(transparent)]
    Memory(MemoryError),
    /// KVM refused a reset.
    #[error("failed to reset the VM: {0}")]
    Kvm(KvmError),
    /// epoll failed: a defect.
    #[error("the event loop failed: {0}")]
    Poll(io::Error),
}

impl RunError {
    /// For the exit code.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Machine(error) => error.reason(),
            Self::Kvm(_) | Self::Memory(_) => ExitReason::HostUnavailable,
            Self::Poll(_) => ExitReason::Internal,
        }
    }
}

/// How a VM ended.
pub(crate) struct Ending {
    /// For the exit code.
    pub(crate) reason: ExitReason,
    /// For a person.
    pub(crate) message: String,
}

/// What the event loop has beside the machine.
pub(crate) struct Supervisor {
    /// What it waits for.
    pub(crate) poll: Arc<Poll>,
    /// SIGTERM and its like.
    pub(crate) signals: Signals,
    /// The node agent.
    pub(crate) agent: Option<Link>,
    /// The control socket.
    pub(crate) control: Option<Server>,
    /// Between the power button and the forced stop.
    pub(crate) grace: Duration,
    /// What the VM is, for its status and its snapshots.
    pub(crate) identity: Identity,
    /// What the guest goes on from, where it was restored.
    pub(crate) restored: Option<Box<SavedVm>>,
    /// What the process has given up.
    pub(crate) isolation: Isolation,
    /// What it may name all the same.
    pub(crate) paths: Paths,
    /// /proc/self/pagemap, where the host shows it.
    pub(crate) pagemap: Option<Arc<File>>,
}

/// What a VM is.
pub(crate) struct Identity {
    /// Its name.
    pub(crate) name: String,
    /// What its guest is told that it is called.
    pub(crate) host_name: String,
    /// Its `VmConfig` in JSON.
    pub(crate) config: String,
    /// Where the files of its disks are.
    pub(crate) scratch: PathBuf,
    /// Their names.
    pub(crate) disk_files: Vec<String>,
    /// Why no snapshot can have a copy of every disk.
    pub(crate) without_copies: Option<String>,
    /// The disks and interfaces in their slots.
    pub(crate) devices: Vec<Option<Named>>,
    /// When the process started.
    pub(crate) started: Instant,
}

/// The thread's own state.
pub(crate) struct EventLoop {
    platform: Platform,
    poll: Arc<Poll>,
    signals: Signals,
    agent: Option<Link>,
    control: Option<Server>,
    grace: Duration,
    identity: Identity,
    isolation: Isolation,
    paths: Paths,
    pagemap: Option<Arc<File>>,
    state: VmState,
    started: Instant,
    boot_time_ms: u64,
    resets: u64,
    /// Guest memory is a private mapping of a snapshot's file.
    mapped_file: bool,
    restored_in: Option<Duration>,
    plugged: Plugged,
    /// When the agent is told of the guest's size.
    reports: Reports,
    /// The snapshot that is being written.
    saving: Option<Saving>,
    /// Set by the power button: when to press it again, and when to stop waiting.
    power_off: Option<PowerOff>,
    stdin: Stdin,
    /// What happened and was not yet decided on.
    events: VecDeque<Event>,
}

struct PowerOff {
    press_again: Instant,
    give_up: Instant,
}

/// What is known of stdin.
enum Stdin {
    /// In the epoll set.
    Polled(Token),
    /// Waits until the guest has read what it was given.
    Waiting,
    /// Closed, or nothing that can be polled.
    Closed,
}

/// Runs the guest until it ends.
pub(crate) fn run(platform: Platform, supervisor: Supervisor) -> Result<Ending, RunError> {
    let output = platform.output.clone();
    let Supervisor {
        poll,
        signals,
        agent,
        control,
        grace,
        identity,
        restored,
        isolation,
        paths,
        pagemap,
    } = supervisor;
    let plugged = Plugged::new(identity.devices.iter().cloned());
    let mut event_loop = EventLoop {
        platform,
        poll,
        signals,
        agent,
        control,
        grace,
        identity,
        isolation,
        paths,
        pagemap,
        state: VmState::new(),
        started: Instant::now(),
        boot_time_ms: now_ms(),
        resets: 0,
        mapped_file: restored.is_some(),
        restored_in: None,
        plugged,
        reports: Reports::new(),
        saving: None,
        power_off: None,
        stdin: Stdin::Closed,
        events: VecDeque::new(),
    };
    let ending = event_loop.run(restored);
    output.drain(DRAIN_MAX);
    ending
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What the vCPUs' end is followed by.
enum Next {
    Restart,
    End(Ending),
}

/// What became of a decision.
enum Outcome {
    Done,
    /// The state does not allow it.
    Refused(Refusal),
    /// The host failed; the VM is as before.
    Failed(String),
    /// A snapshot is being written: its end is another event.
    Saving,
    /// The machine has to be stopped.
    Leave(Next),
}

impl EventLoop {
    fn run(&mut self, mut restored: Option<Box<SavedVm>>) -> Result<Ending, RunError> {
        self.register().map_err(RunError::Poll)?;
        loop {
            let machine = match restored.take() {
                None => self.start()?,
                Some(saved) => self.restore(&saved)?,
            };
            self.report(&machine);
            self.poll_stdin().map_err(RunError::Poll)?;
            let next = self.supervise(&machine);
            machine.stop();
            match next.map_err(RunError::Poll)? {
                Next::End(ending) => return Ok(ending),
                Next::Restart => self.reset()?,
            }
        }
    }

    fn start(&mut self) -> Result<Machine, RunError> {
        let machine = Machine::start(&self.platform).map_err(RunError::Machine)?;
        self.started = Instant::now();
        self.boot_time_ms = now_ms();
        Ok(machine)
    }

    fn register(&mut self) -> io::Result<()> {
        self.poll.add(self.signals.as_fd(), EventFlags::IN, Source::Signals)?;
        let mailbox = self.platform.mailbox.descriptor();
        self.poll.add(mailbox, EventFlags::IN, Source::Mailbox)?;
        let drained = self.platform.input_drained.as_fd();
        self.poll.add(drained, EventFlags::IN, Source::StdinDrained)?;
        self.poll
            .add(self.platform.clock.as_fd(), EventFlags::IN, Source::Clock)?;
        self.poll
            .add(self.platform.watchdog.as_fd(), EventFlags::IN, Source::Watchdog)?;
        self.stdin = Stdin::Waiting;
        self.tell_size();
        if let Some(agent) = &mut self.agent {
            agent.watch(&self.poll)?;
        }
        if let Some(control) = &self.control {
            control.watch(&self.poll)?;
        }
        Ok(())
    }

    /// Handles events until the machine has to be stopped.
    fn supervise(&mut self, machine: &Machine) -> io::Result<Next> {
        loop {
            let sources = self.poll.wait(self.timeout())?;
            for source in sources {
                if let Some(next) = self.handle(machine, source)? {
                    return Ok(next);
                }
            }
            self.on_time(machine);
            while let Some(event) = self.events.pop_front() {
                match self.decide(machine, &event) {
                    Outcome::Leave(next) => return Ok(next),
                    Outcome::Done | Outcome::Refused(_) | Outcome::Saving => {}
                    Outcome::Failed(why) => log::line(format_args!("{why}")),
                }
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let power_off = self
            .power_off
            .as_ref()
            .map(|power_off| power_off.press_again.min(power_off.give_up));
        let agent = self.agent.as_ref().and_then(Link::wake_at);
        let next = power_off.into_iter().chain(agent).chain(self.reports.wake_at()).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self, machine: &Machine, source: Source) -> io::Result<Option<Next>> {
        match source {
            Source::Signals => {
                let arrived = self.signals.take();
                if arrived.stop {
                    self.events.push_back(Event::StopRequested);
                }
                if arrived.resize {
                    self.tell_size();
                }
            }
            Source::Mailbox => {
                self.events.append(&mut self.platform.mailbox.take());
                self.keep_vcpus(machine);
            }
            Source::Stdin => self.read_stdin(machine),
            Source::StdinDrained => {
                // Read only to empty it.
                self.platform.input_drained.clear();
                self.poll_stdin()?;
                self.pass_console_input(machine);
            }
            Source::Clock => self.platform.clock.on_timer(),
            Source::Watchdog => {
                if self.platform.watchdog.on_timer() {
                    self.events.push_back(Event::WatchdogExpired);
                }
            }
            Source::Agent => match self.agent.as_mut().and_then(|agent| agent.on_readable(&self.poll)) {
                Some(Order::Resize(resize)) => self.on_resize(machine, resize),
                Some(Order::Attach(disk, descriptors)) => self.on_attach(machine, disk, descriptors),
                Some(Order::Detach(name)) => self.on_detach(machine, name),
                None => {}
            },
            Source::Doorbell { function, queue, kick } => {
                // Empty when the device drained it itself.
                let _ = kick.read();
                self.device(function, DeviceEvent::Queue(queue));
            }
            Source::Host { function, index } => self.device(function, DeviceEvent::Host(index)),
            Source::ControlListener => {
                if let Some(control) = &mut self.control {
                    control.accept(&self.poll);
                }
            }
            Source::ControlClient(client) => return Ok(self.on_client(machine, client)),
        }
        Ok(None)
    }

    fn device(&self, function: usize, event: DeviceEvent) {
        if let Some(function) = self.platform.pci.function(function) {
            function.handle(event);
        }
    }

    fn on_time(&mut self, machine: &Machine) {
        let now = Instant::now();
        if let Some(power_off) = &mut self.power_off {
            if now >= power_off.give_up {
                self.events.push_back(Event::GraceExpired);
            } else if now >= power_off.press_again {
                power_off.press_again = now + PRESS_AGAIN;
                press(machine);
            }
        }
        let reconnect = self.agent.as_ref().and_then(Link::wake_at).is_some_and(|at| now >= at);
        if reconnect {
            let status = self.status(&self.size(machine));
            if let Some(agent) = &mut self.agent {
                agent.on_time(now, &self.poll, &status);
            }
        }
        self.report_size(machine, now);
    }

    /// Asks the state what to do about an event, and does it.
    fn decide(&mut self, machine: &Machine, event: &Event) -> Outcome {
        if *event == Event::SnapshotEnded {
            self.finish_saving();
        }
        let before = self.state;
        let (state, action) = self.state.on(event, self.started.elapsed());
        self.state = state;
        match action {
            Action::None => Outcome::Done,
            Action::Report => {
                self.report(machine);
                Outcome::Done
            }
            Action::PressPowerButton => self.press_power_button(machine),
            Action::ResumeAndPressPowerButton => {
                self.go_on(machine);
                self.press_power_button(machine)
            }
            Action::Restart => Outcome::Leave(Next::Restart),
            Action::Pause => {
                let outcome = self.stand_still(machine);
                self.keep(before, outcome)
            }
            Action::Resume => {
                self.go_on(machine);
                Outcome::Done
            }
            Action::Save => {
                let outcome = self.save(machine, before);
                self.keep(before, outcome)
            }
            Action::Refuse(refusal) => Outcome::Refused(refusal),
            Action::End(reason) => Outcome::Leave(Next::End(Ending {
                reason,
                message: self.message(reason, event),
            })),
        }
    }

    /// What did not happen leaves the state as it was.
    fn keep(&mut self, before: VmState, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Refused(_) | Outcome::Failed(_) => self.state = before,
            Outcome::Done | Outcome::Saving | Outcome::Leave(_) => {}
        }
        outcome
    }

    fn press_power_button(&mut self, machine: &Machine) -> Outcome {
        let now = Instant::now();
        self.power_off = Some(PowerOff {
            press_again: now + PRESS_AGAIN,
            give_up: now + self.grace,
        });
        log::line(format_args!(
            "asked to stop: power button pressed, {} s to power off",
            self.grace.as_secs()
        ));
        press(machine);
        self.report(machine);
        Outcome::Done
    }

    fn message(&self, reason: ExitReason, event: &Event) -> String {
        let asked = self.power_off.is_some();
        match (reason, event) {
            (ExitReason::ForcedOff, Event::OffRequested) => "the VM was switched off by a request".to_owned(),
            (_, Event::Crashed(what)) => format!("the guest crashed: {what}"),
            (_, Event::Panicked) => "the guest's kernel panicked; see its console".to_owned(),
            (_, Event::WatchdogExpired) => {
                "the guest hung: it did not reset its watchdog in time; see its console, or raise its watchdog's time".to_owned()
            }
            (ExitReason::PoweredOff, _) if asked => "the guest powered off after the power button".to_owned(),
            (ExitReason::PoweredOff, _) => "the guest powered itself off".to_owned(),
            (ExitReason::ForcedOff, _) => format!(
                "the guest did not power off within {} s of the power button; raise terminationGracePeriodSeconds, or see that it \
                 handles the ACPI power button",
                self.grace.as_secs()
            ),
            (ExitReason::GuestCrashed, Event::TripleFault) => {
                "the guest shut its processor down (triple fault) again and again right after its start; see its console".to_owned()
            }
            (ExitReason::GuestCrashed, _) => {
                "the guest reset itself again and again right after its start; see its console".to_owned()
            }
            (reason, event) => format!("{reason:?} after {event:?}"),
        }
    }

    /// Empties everything that the guest has filled. vCPUs no longer run.
    fn reset(&mut self) -> Result<(), RunError> {
        self.resets += 1;
        log::guest(format_args!("the guest was reset ({} so far)", self.resets));
        for function in self.platform.pci.functions() {
            function.power_on_reset();
        }
        for disk in &self.platform.files {
            disk.refresh();
        }
        self.platform.slots.power_on();
        self.platform.events.power_on();
        self.platform.clock.power_on();
        self.platform.watchdog.power_on();
        memory::clear(&self.platform.memory).map_err(RunError::Memory)?;
        self.mapped_file = false;
        self.platform.vm.reset(&self.platform.host).map_err(RunError::Kvm)?;
        // What the last life still had to say is of no interest to this one, but for a request to stop.
        self.platform.mailbox.take();
        self.events.retain(|event| *event == Event::StopRequested);
        Ok(())
    }

    fn status(&self, size: &Size) -> GuestStatus {
        GuestStatus {
            state: match self.state.phase {
                Phase::Booting | Phase::Paused { booted: false } | Phase::Saving { booted: false, .. } => {
                    GuestState::Booting
                }
                Phase::Running | Phase::Paused { booted: true } | Phase::Saving { booted: true, .. } => {
                    GuestState::Running
                }
                Phase::PoweringOff | Phase::Ended(_) => GuestState::PoweringOff,
            },
            boot_time_ms: self.boot_time_ms,
            vcpus: size.vcpus,
            memory_bytes: size.memory_bytes,
            resets: self.resets,
            kernel: self.platform.boot.found(),
            hindrance: size.hindrance.clone(),
            disks: size.disks.clone(),
        }
    }

    fn report(&mut self, machine: &Machine) {
        if self.agent.is_none() {
            return;
        }
        let size = self.size(machine);
        let status = self.status(&size);
        self.reports.tell(Instant::now(), size);
        if let Some(agent) = &mut self.agent {
            agent.report(&self.poll, &status);
        }
    }

    /// Waits for input, unless the guest has not read the last.
    fn poll_stdin(&mut self) -> io::Result<()> {
        match self.stdin {
            Stdin::Polled(_) | Stdin::Closed => {}
            Stdin::Waiting => {
                let added = self.poll.add(rustix::stdio::stdin(), EventFlags::IN, Source::Stdin);
                self.stdin = match added {
                    Ok(token) => Stdin::Polled(token),
                    // A regular file or /dev/null: nothing that anybody types into.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Stdin::Closed,
                    Err(error) if error.raw_os_error() == Some(libc::EBADF) => Stdin::Closed,
                    Err(error) => return Err(error),
                };
            }
        }
        Ok(())
    }

    fn tell_size(&self) {
        if let Some(size) = terminal::size() {
            self.platform.console.resize(size);
        }
    }

    /// Bytes of input that a console has room for.
    fn console_room(&self, machine: &Machine, console: Console) -> usize {
        match console {
            Console::Serial => machine.serial.capacity(),
            Console::Virtio => self.platform.console.capacity(),
        }
    }

    /// Input for the guest, for which there is room.
    fn console_input(&self, machine: &Machine, console: Console, input: &[u8]) {
        match console {
            Console::Serial => {
                if let Err(error) = machine.serial.input(input) {
                    log::guest(format_args!("failed to pass console input to the guest: {error}"));
                }
            }
            Console::Virtio => self.platform.console.input(input),
        }
    }

    fn read_stdin(&mut self, machine: &Machine) {
        let Stdin::Polled(token) = self.stdin else {
            return;
        };
        let console = self.platform.output.last();
        let capacity = self.console_room(machine, console);
        let mut buffer = [0; 64];
        let room = buffer.get_mut(..capacity.min(64)).unwrap_or_default();
        if room.is_empty() {
            self.poll.remove(rustix::stdio::stdin(), token);
            self.stdin = Stdin::Waiting;
            return;
        }
        match rustix::io::read(rustix::stdio::stdin(), &mut *room) {
            Ok(count @ 1..) => self.console_input(machine, console, &room[..count]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => {
                self.poll.remove(rustix::stdio::stdin(), token);
                self.stdin = Stdin::Closed;
            }
        }
    }
}

fn press(machine: &Machine) {
    if let Err(error) = machine.power.press_power_button() {
        log::line(format_args!("failed to press the power button: {error}"));
    }
}
