//! Descriptors that the event loop watches.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Lets the event loop watch `descriptor`, which must be nonblocking.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, is the same for as long as it lives, and moves into the AsyncFd.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}
