//! A disk's own thread: it waits for the driver's kicks, for the backend and for the rate limit, so that a slow disk makes nobody else
//! wait, neither a vCPU nor another device. It is there before the guest runs and sleeps until the device is activated.
//!
//! ```text
//! Idle --Start--> Running --Pause--> Paused --Resume--> Running
//!   ^---------------- Stop, or the driver broke something -------|
//! ```

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, Engine};
use super::execute::Executor;
use super::linger::Linger;
use super::worker::Worker;
use crate::device::{DeviceError, HostSource};
use crate::lock::lock;
use crate::state::QueuePosition;
use crate::threads::{OnThread, ThreadKind};
use crate::wake::{self, Wake};

/// What the thread is told.
enum Command {
    /// The device is active, with these kicks of its queues.
    Start(Box<Worker>, Vec<Option<EventFd>>),
    /// Come to rest.
    Pause,
    /// Go on.
    Resume,
    /// The device is reset: come to rest and forget it.
    Stop,
    /// The device goes.
    Exit,
}

/// What the thread and its owner share.
struct Shared {
    /// Signalled with every command.
    told: Wake,
    /// Signalled when the driver broke something.
    failed: Wake,
    failure: Mutex<Option<DeviceError>>,
}

/// The owner's end.
pub(super) struct DiskThread {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    answers: Receiver<Vec<Option<QueuePosition>>>,
    thread: Option<JoinHandle<()>>,
}

impl DiskThread {
    /// Starts the thread, called `name`, and those of its backend.
    ///
    /// # Errors
    /// When the host refuses threads or descriptors.
    pub(super) fn start(
        name: &str,
        engine: Engine,
        executor: &Arc<Executor>,
        on_thread: OnThread,
        spare_processor: bool,
    ) -> io::Result<Self> {
        let backend = Backend::start(engine, name, executor, on_thread)?;
        let shared = Arc::new(Shared {
            told: Wake::new()?,
            failed: Wake::new()?,
            failure: Mutex::default(),
        });
        let (commands, received) = channel();
        let (answer, answers) = channel();
        let state = Loop {
            shared: Arc::clone(&shared),
            received,
            answer,
            backend,
            live: None,
            paused: false,
            linger: Linger::new(spare_processor),
        };
        let enter = on_thread(ThreadKind::Disk);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            enter();
            state.run();
        })?;
        Ok(Self {
            shared,
            commands,
            answers,
            thread: Some(thread),
        })
    }

    /// Readable when [`Self::take_failure`] has something.
    pub(super) fn failed(&self) -> HostSource {
        self.shared.failed.source()
    }

    /// Why the thread gave up on the driver, once.
    pub(super) fn take_failure(&self) -> Option<DeviceError> {
        self.shared.failed.clear();
        lock(&self.shared.failure).take()
    }

    /// Lets the thread serve an active device.
    pub(super) fn activate(&self, worker: Worker, kicks: Vec<Option<EventFd>>) {
        self.tell(Command::Start(Box::new(worker), kicks));
    }

    /// Brings the device to rest; returns where its queues stand.
    pub(super) fn pause(&self) -> Vec<Option<QueuePosition>> {
        self.tell(Command::Pause)
    }

    /// Lets it go on.
    pub(super) fn resume(&self) {
        self.tell(Command::Resume);
    }

    /// Brings the device to rest, and lets go of guest memory.
    pub(super) fn stop(&self) {
        self.tell(Command::Stop);
        // Of the device as it was: nobody waits for it any more.
        self.take_failure();
    }

    /// Gives a command and waits until it has been followed.
    fn tell(&self, command: Command) -> Vec<Option<QueuePosition>> {
        // The thread ends only with `Exit`, which `drop` alone gives, or with the process.
        if self.commands.send(command).is_err() {
            return Vec::new();
        }
        self.shared.told.signal();
        self.answers.recv().unwrap_or_default()
    }
}

impl Drop for DiskThread {
    fn drop(&mut self) {
        self.tell(Command::Exit);
        if let Some(thread) = self.thread.take() {
            // A panic in it has ended the process.
            let _ = thread.join();
        }
    }
}

/// An active device.
struct Live {
    worker: Box<Worker>,
    kicks: Vec<Option<EventFd>>,
}

/// The thread's end.
struct Loop {
    shared: Arc<Shared>,
    received: Receiver<Command>,
    answer: Sender<Vec<Option<QueuePosition>>>,
    backend: Backend,
    live: Option<Live>,
    paused: bool,
    linger: Linger,
}

/// What woke the thread.
#[derive(Default)]
struct Woken {
    told: bool,
    done: bool,
    kicked: Vec<u16>,
}

impl Loop {
    fn run(mut self) {
        loop {
            let woken = match self.look() {
                Ok(Some(queue)) => Woken {
                    kicked: vec![queue],
                    ..Woken::default()
                },
                Ok(None) => self.sleep(),
                Err(error) => {
                    self.fail(error);
                    continue;
                }
            };
            if woken.told && self.follow_commands() {
                return;
            }
            if let Err(error) = self.work(&woken) {
                self.fail(error);
            }
        }
    }

    /// Looks for more requests, for as long as that has paid; then asks for kicks. A queue with something in it.
    fn look(&mut self) -> Result<Option<u16>, DeviceError> {
        let Some(live) = self.live.as_mut().filter(|_| !self.paused) else {
            return Ok(None);
        };
        // While the rate limit holds, nothing is taken.
        if live.worker.deadline().is_some() {
            return Ok(None);
        }
        // What is being carried out is waited for asleep.
        if live.worker.is_idle() && !self.linger.duration().is_zero() {
            let until = Instant::now() + self.linger.duration();
            while Instant::now() < until {
                if let Some(queue) = live.worker.waiting()? {
                    return Ok(Some(queue));
                }
                std::hint::spin_loop();
            }
        }
        live.worker.arm()
    }

    /// Waits for something to do, and remembers how long that took if it was a kick.
    fn sleep(&mut self) -> Woken {
        let started = Instant::now();
        let woken = self.wait();
        if !woken.kicked.is_empty() {
            self.linger.slept(started.elapsed());
        }
        woken
    }

    /// Waits for something to do.
    fn wait(&self) -> Woken {
        let live = self.live.as_ref().filter(|_| !self.paused);
        let deadline = live.and_then(|live| live.worker.deadline());
        let mut descriptors = vec![self.shared.told.as_fd()];
        descriptors.extend(self.backend.descriptors());
        let first_kick = descriptors.len();
        // While the rate limit holds, kicks change nothing.
        let kicks = live.filter(|_| deadline.is_none()).map(|live| live.kicks.as_slice());
        let kicks = (0_u16..).zip(kicks.unwrap_or_default());
        let kicks: Vec<(u16, &EventFd)> = kicks
            .filter_map(|(queue, kick)| Some((queue, kick.as_ref()?)))
            .collect();
        descriptors.extend(kicks.iter().map(|(_, kick)| wake::borrow(kick)));
        let mut polled: Vec<PollFd<'_>> = descriptors
            .iter()
            .map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
            .collect();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        // Interrupted: nothing is ready, and the caller comes again.
        let _ = rustix::event::poll(&mut polled, timeout.as_ref());
        let ready = |index: usize| polled.get(index).is_some_and(|polled| !polled.revents().is_empty());
        let mut woken = Woken {
            told: ready(0),
            done: (1..first_kick).any(ready),
            kicked: Vec::new(),
        };
        for (index, (queue, kick)) in (first_kick..).zip(kicks) {
            if ready(index) {
                let _ = kick.read();
                woken.kicked.push(queue);
            }
        }
        woken
    }

    fn work(&mut self, woken: &Woken) -> Result<(), DeviceError> {
        let Some(live) = self.live.as_mut().filter(|_| !self.paused) else {
            return Ok(());
        };
        if woken.done {
            live.worker.reap(&mut self.backend)?;
        }
        let now = Instant::now();
        match live.worker.deadline() {
            Some(deadline) if deadline <= now => live.worker.pump_all(&mut self.backend, now),
            Some(_) | None => woken
                .kicked
                .iter()
                .try_for_each(|queue| live.worker.pump(&mut self.backend, *queue, now)),
        }
    }

    /// Follows what was told. `true` when the thread ends.
    fn follow_commands(&mut self) -> bool {
        self.shared.told.clear();
        while let Ok(command) = self.received.try_recv() {
            let exit = matches!(command, Command::Exit);
            self.follow(command);
            let positions = self.live.as_ref().map(|live| live.worker.positions());
            // The owner waits for it.
            let _ = self.answer.send(positions.unwrap_or_default());
            if exit {
                return true;
            }
        }
        false
    }

    fn follow(&mut self, command: Command) {
        match command {
            Command::Start(mut worker, kicks) => {
                worker.linger();
                self.live = Some(Live { worker, kicks });
                self.paused = false;
            }
            Command::Pause => {
                self.paused = true;
                if let Some(live) = &mut self.live
                    && let Err(error) = live.worker.drain(&mut self.backend)
                {
                    self.fail(error);
                }
            }
            Command::Resume => {
                self.paused = false;
                for kick in self.live.iter().flat_map(|live| live.kicks.iter().flatten()) {
                    // Full means that there is a kick already.
                    let _ = kick.write(1);
                }
            }
            Command::Stop | Command::Exit => self.let_go(),
        }
    }

    /// Waits for what is in flight, and forgets the device.
    fn let_go(&mut self) {
        if let Some(mut live) = self.live.take() {
            // The driver's rings may be broken: it is gone.
            let _ = live.worker.drain(&mut self.backend);
        }
        self.paused = false;
    }

    fn fail(&mut self, error: DeviceError) {
        self.let_go();
        *lock(&self.shared.failure) = Some(error);
        self.shared.failed.signal();
    }
}
