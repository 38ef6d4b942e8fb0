//! A queue pair's own thread: it waits for the driver's kicks, for the link and for the rate limit, so that one busy pair, or one busy
//! interface, makes nobody else wait. It is there before the guest runs, and sleeps until the pair is in use.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::pair::{Events, Pair};
use crate::device::{DeviceError, HostSource};
use crate::lock::lock;
use crate::wake::{self, Wake};

/// Something that a pair is told.
type Order = Box<dyn FnOnce(&mut Pair) + Send>;

/// Why a pair of an interface gave up, for all of its pairs.
pub(super) struct Failure {
    happened: Wake,
    error: Mutex<Option<DeviceError>>,
}

impl Failure {
    /// None yet.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            happened: Wake::new()?,
            error: Mutex::default(),
        })
    }

    /// Readable when [`Self::take`] has something.
    pub(super) fn source(&self) -> HostSource {
        self.happened.source()
    }

    /// What happened, once.
    pub(super) fn take(&self) -> Option<DeviceError> {
        self.happened.clear();
        lock(&self.error).take()
    }

    fn set(&self, error: DeviceError) {
        *lock(&self.error) = Some(error);
        self.happened.signal();
    }
}

/// The owner's end.
pub(super) struct PairThread {
    told: Arc<Wake>,
    /// Gone with the owner, which ends the thread.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl PairThread {
    /// Starts the thread, called `name`.
    ///
    /// # Errors
    /// When the host refuses threads or descriptors.
    pub(super) fn start(name: String, pair: Pair, failure: Arc<Failure>) -> io::Result<Self> {
        let told = Arc::new(Wake::new()?);
        let (orders, received) = channel();
        let state = Loop {
            told: Arc::clone(&told),
            received,
            failure,
            pair,
        };
        let thread = std::thread::Builder::new().name(name).spawn(move || state.run())?;
        Ok(Self {
            told,
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Has the thread do something with its pair, and waits until it is done.
    ///
    /// # Errors
    /// When the thread is gone.
    pub(super) fn with<T: Send + 'static>(&self, order: impl FnOnce(&mut Pair) -> T + Send + 'static) -> io::Result<T> {
        let (answer, answers) = channel();
        let order: Order = Box::new(move |pair| {
            // The owner waits for it.
            let _ = answer.send(order(pair));
        });
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        sent.ok_or_else(gone)?.map_err(|_| gone())?;
        self.told.signal();
        answers.recv().map_err(|_| gone())
    }
}

impl Drop for PairThread {
    fn drop(&mut self) {
        self.orders = None;
        self.told.signal();
        if let Some(thread) = self.thread.take() {
            // A panic in it has ended the process.
            let _ = thread.join();
        }
    }
}

/// The thread's end.
struct Loop {
    told: Arc<Wake>,
    received: Receiver<Order>,
    failure: Arc<Failure>,
    pair: Pair,
}

impl Loop {
    fn run(mut self) {
        loop {
            let (told, events) = self.wait();
            if told && self.follow_orders() {
                return;
            }
            if let Err(error) = self.pair.work(events, Instant::now()) {
                self.pair.stop();
                self.failure.set(error);
            }
        }
    }

    /// Does what was told. `true` when the owner is gone.
    fn follow_orders(&mut self) -> bool {
        self.told.clear();
        loop {
            match self.received.try_recv() {
                Ok(order) => order(&mut self.pair),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// Waits for something to do: whether it was told something, and what happened to the pair.
    fn wait<'p>(&'p self) -> (bool, Events) {
        let wants = self.pair.wants();
        let mut polled = vec![PollFd::from_borrowed_fd(self.told.as_fd(), PollFlags::IN)];
        let mut link_flags = PollFlags::empty();
        link_flags.set(PollFlags::IN, wants.contains(Events::READABLE));
        link_flags.set(PollFlags::OUT, wants.contains(Events::WRITABLE));
        let link = (!link_flags.is_empty()).then(|| {
            polled.push(PollFd::from_borrowed_fd(self.pair.link().as_fd(), link_flags));
            polled.len() - 1
        });
        let queues = self.pair.live();
        let mut add_kick = |event: Events, kick: Option<BorrowedFd<'p>>| {
            polled.push(PollFd::from_borrowed_fd(
                kick.filter(|_| wants.contains(event))?,
                PollFlags::IN,
            ));
            Some(polled.len() - 1)
        };
        let receive = add_kick(
            Events::RECEIVE_KICK,
            queues.map(|queues| wake::borrow(&queues.receive_kick)),
        );
        let transmit = add_kick(
            Events::TRANSMIT_KICK,
            queues.map(|queues| wake::borrow(&queues.transmit_kick)),
        );
        let timeout = self.pair.deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        // Interrupted: nothing is ready, and the caller comes again.
        let _ = rustix::event::poll(&mut polled, timeout.as_ref());
        let revents = |index: Option<usize>| {
            let polled = index.and_then(|index| polled.get(index));
            polled.map_or(PollFlags::empty(), PollFd::revents)
        };
        let link = revents(link);
        // An error is what the next read or write tells.
        let broken = link.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        let mut events = Events::empty();
        events.set(Events::READABLE, broken || link.contains(PollFlags::IN));
        events.set(Events::WRITABLE, broken || link.contains(PollFlags::OUT));
        // An error wakes whatever is waited for.
        events &= wants;
        events.set(Events::RECEIVE_KICK, !revents(receive).is_empty());
        events.set(Events::TRANSMIT_KICK, !revents(transmit).is_empty());
        if let Some(queues) = queues {
            for (kicked, kick) in [
                (Events::RECEIVE_KICK, &queues.receive_kick),
                (Events::TRANSMIT_KICK, &queues.transmit_kick),
            ] {
                if events.contains(kicked) {
                    let _ = kick.read();
                }
            }
        }
        (!revents(Some(0)).is_empty(), events)
    }
}
