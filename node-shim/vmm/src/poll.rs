//! What the event loop waits for: an epoll set whose members know what they are.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use vmm_sys_util::eventfd::EventFd;

use crate::control::ClientId;
use node_shim_virtio::lock::lock;

/// Most events that one wait returns.
const BATCH: usize = 32;

/// Why the event loop woke.
#[derive(Clone)]
pub(crate) enum Source {
    /// SIGTERM or its like.
    Signals,
    /// Something for the thread that decides.
    Mailbox,
    /// Input for the guest.
    Stdin,
    /// The guest has read its input.
    StdinDrained,
    /// The clock's alarm.
    Clock,
    /// The watchdog's time is over.
    Watchdog,
    /// The node agent said something, or went away.
    Agent,
    /// Somebody connects to the control socket.
    ControlListener,
    /// A client of the control socket said something, or went away.
    ControlClient(ClientId),
    /// The driver of the function with this index kicked a queue.
    Doorbell {
        /// Index of the function.
        function: usize,
        /// Index of the queue.
        queue: u16,
        /// To be drained.
        kick: Arc<EventFd>,
    },
    /// A host descriptor of the function with this index is ready.
    Host {
        /// Index of the function.
        function: usize,
        /// Index of the descriptor.
        index: usize,
    },
}

/// Names a member of the set, to take it out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token(u64);

#[derive(Default)]
struct Members {
    next: u64,
    sources: BTreeMap<Token, Source>,
}

/// The set. Any thread may add and remove; one waits.
pub(crate) struct Poll {
    epoll: OwnedFd,
    members: Mutex<Members>,
}

impl Poll {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            members: Mutex::default(),
        })
    }

    /// Adds a descriptor, which stays open until it is removed.
    pub(crate) fn add(&self, descriptor: BorrowedFd<'_>, flags: EventFlags, source: Source) -> io::Result<Token> {
        let mut members = lock(&self.members);
        let token = Token(members.next);
        members.next += 1;
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token.0), flags)?;
        members.sources.insert(token, source);
        Ok(token)
    }

    /// Removes a descriptor.
    pub(crate) fn remove(&self, descriptor: BorrowedFd<'_>, token: Token) {
        // Only a descriptor that was closed cannot be removed, and closing has removed it.
        let _ = epoll::delete(&self.epoll, descriptor);
        lock(&self.members).sources.remove(&token);
    }

    /// Waits for events, at most for `timeout`. What was removed meanwhile does not come back.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Source>> {
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let members = lock(&self.members);
        Ok(events
            .iter()
            .filter_map(|event| members.sources.get(&Token(event.data.u64())).cloned())
            .collect())
    }
}
