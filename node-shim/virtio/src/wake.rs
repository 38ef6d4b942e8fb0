//! How one thread has another look at something: an eventfd, for `poll` and epoll.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::device::HostSource;

/// Readable from [`Self::signal`] to [`Self::clear`]. Several signals are one.
pub struct Wake(EventFd);

impl Wake {
    /// One that was not signalled.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?))
    }

    /// Has the other side look.
    pub fn signal(&self) {
        // Fails only when the counter is full (eventfd(2)): then it is signalled.
        let _ = self.0.write(1);
    }

    /// The other side is about to look. Returns whether it was signalled.
    pub fn clear(&self) -> bool {
        // Fails only when the counter is empty (eventfd(2)).
        self.0.read().is_ok()
    }

    /// For a device that the event loop shall wake.
    pub fn source(&self) -> HostSource {
        HostSource::readable(self.as_raw_fd())
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.0)
    }
}

/// An eventfd's descriptor.
pub fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is open as long as the borrow of it.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    #[test]
    fn several_signals_are_one() {
        let wake = Wake::new().expect("an eventfd");
        let readable = || {
            let mut polled = [PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 1
        };
        assert!(!readable());
        wake.signal();
        wake.signal();
        assert!(readable());
        assert!(wake.clear());
        assert!(!readable() && !wake.clear());
    }
}
