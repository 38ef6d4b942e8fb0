//! The threads that devices start, for the process that wants to confine each to what it needs.

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Serves a disk's queues: see `block::thread`.
    Disk,
    /// Carries out requests of a disk: see `block::pool`.
    DiskIo,
    /// Serves a queue pair of an interface: see `net::thread`.
    Net,
}

/// Called by whoever starts a thread, just before. What it returns the new thread calls before anything else.
pub type OnThread = fn(ThreadKind) -> Box<dyn FnOnce() + Send>;

/// Leaves threads as they are.
pub fn unconfined(_: ThreadKind) -> Box<dyn FnOnce() + Send> {
    Box::new(|| {})
}
