//! What happened, from the vCPUs and devices to the thread that decides.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use crate::lifecycle::Event;
use crate::lock::lock;

/// Most events that wait: a guest that asks for a reset in a loop fills no memory. What matters comes first.
const WAITING_MAX: usize = 64;

/// A bounded queue with an eventfd for epoll.
pub(crate) struct Mailbox {
    waiting: Mutex<VecDeque<Event>>,
    wake: EventFd,
}

impl Mailbox {
    /// An empty mailbox.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: Mutex::default(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Adds an event; beyond [`WAITING_MAX`] it is dropped.
    pub(crate) fn send(&self, event: Event) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() < WAITING_MAX {
            waiting.push_back(event);
        }
        drop(waiting);
        // The counter cannot overflow in practice, and then it is not zero: the reader wakes either way.
        let _ = self.wake.write(1);
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> VecDeque<Event> {
        // Empty when somebody else's wake-up was merged with ours.
        let _ = self.wake.read();
        std::mem::take(&mut *lock(&self.waiting))
    }

    /// Readable when there is an event.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}
