//! What happened, from the vCPUs and devices to the thread that decides.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use node_shim_virtio::lock::lock;
use node_shim_virtio::wake::Wake;

use crate::lifecycle::Event;

/// Most events that wait: a guest that asks for a reset in a loop fills no memory. What matters comes first.
const WAITING_MAX: usize = 64;

/// A bounded queue with an eventfd for epoll.
pub(crate) struct Mailbox {
    waiting: Mutex<VecDeque<Event>>,
    wake: Wake,
}

impl Mailbox {
    /// An empty mailbox.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: Mutex::default(),
            wake: Wake::new()?,
        })
    }

    /// Adds an event; beyond [`WAITING_MAX`] it is dropped.
    pub(crate) fn send(&self, event: Event) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() < WAITING_MAX {
            waiting.push_back(event);
        }
        drop(waiting);
        self.wake.signal();
    }

    /// Has the thread look at what the guest has. However often: it takes no room from events.
    pub(crate) fn nudge(&self) {
        self.wake.signal();
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> VecDeque<Event> {
        self.wake.clear();
        std::mem::take(&mut *lock(&self.waiting))
    }

    /// Readable when there is an event.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
