//! Who carries requests out.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};

use super::execute::{Executor, Job};
use super::pool::Pool;
use super::request::Operation;
use super::uring::Uring;
use crate::device::Memory;
use crate::threads::OnThread;

/// Threads of a disk whose requests all go to them. More than four in flight is what a disk with a deep queue gains from, and then
/// `io_uring` is what one wants; the measurements are those of the bench in `examples/block_bench.rs`.
const POOL_THREADS: usize = 4;
/// Threads beside `io_uring`, for what needs more than a read or a write: new blocks of an overlay, packed clusters, discards.
const URING_THREADS: usize = 2;

/// What a disk's requests are carried out by. Chosen when it is made, for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The thread that calls: for contents in memory.
    Inline,
    /// Threads of its own with preadv and pwritev.
    Pool,
    /// `io_uring`, and threads for what that cannot do.
    Uring,
}

impl Engine {
    /// The best that this process may use: containers are often denied `io_uring`.
    pub fn best() -> Self {
        if Uring::is_allowed() { Self::Uring } else { Self::Pool }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline => "memory",
            Self::Pool => "preadv/pwritev threads",
            Self::Uring => "io_uring",
        })
    }
}

/// See [`Engine`].
pub(super) enum Backend {
    /// Nothing is ever in flight.
    Inline,
    /// Threads.
    Pool(Pool),
    /// `io_uring` and threads.
    Uring(Box<Uring>, Pool),
}

impl Backend {
    /// Starts the threads, and the ring.
    ///
    /// # Errors
    /// When the host refuses them.
    pub(super) fn start(engine: Engine, name: &str, executor: &Arc<Executor>, on_thread: OnThread) -> io::Result<Self> {
        let pool = |threads| Pool::start(name, threads, Arc::clone(executor), on_thread);
        Ok(match engine {
            Engine::Inline => Self::Inline,
            Engine::Pool => Self::Pool(pool(POOL_THREADS)?),
            Engine::Uring => Self::Uring(Box::new(Uring::new()?), pool(URING_THREADS)?),
        })
    }

    /// Carries out a batch, or starts to; what is done at once goes to `done`. `alone` says that there is nothing else to do, so that the
    /// calling thread may take its time.
    pub(super) fn submit(
        &mut self,
        executor: &Arc<Executor>,
        memory: &Arc<Memory>,
        batch: &mut Vec<Job>,
        alone: bool,
        done: &mut Vec<Job>,
    ) {
        let here = matches!(self, Self::Inline) || alone && matches!(self, Self::Pool(_)) && is_short(batch);
        if here {
            for job in batch.iter_mut() {
                executor.execute(memory, job);
            }
            done.append(batch);
            return;
        }
        match self {
            Self::Inline => {}
            Self::Pool(pool) => pool.submit(memory, batch.drain(..)),
            Self::Uring(uring, pool) => {
                uring.submit(executor, memory, batch);
                // What is left takes more than one operation.
                pool.submit(memory, batch.drain(..));
                // What is in the page cache is done already.
                reap(uring, pool, done);
            }
        }
    }

    /// Takes what is done.
    pub(super) fn take_done(&mut self, done: &mut Vec<Job>) {
        match self {
            Self::Inline => {}
            Self::Pool(pool) => pool.take_done(done),
            Self::Uring(uring, pool) => {
                pool.take_done(done);
                reap(uring, pool, done);
            }
        }
    }

    /// Waits until something may be done.
    pub(super) fn wait(&mut self) {
        let descriptors = self.descriptors();
        let mut polled: Vec<PollFd<'_>> = descriptors
            .iter()
            .map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
            .collect();
        if !polled.is_empty() {
            // An interrupted wait is tried again by the caller.
            let _ = rustix::event::poll(&mut polled, None);
        }
    }

    /// Readable when something is done.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Inline => Vec::new(),
            Self::Pool(pool) => vec![pool.descriptor()],
            Self::Uring(uring, pool) => vec![uring.descriptor(), pool.descriptor()],
        }
    }
}

/// Takes what `io_uring` has done; what it left unfinished threads do again.
fn reap(uring: &mut Uring, pool: &Pool, done: &mut Vec<Job>) {
    let mut unfinished = uring.take_done(done);
    if let Some((memory, _)) = unfinished.first() {
        let memory = Arc::clone(memory);
        pool.submit(&memory, unfinished.drain(..).map(|(_, job)| job));
    }
}

/// Whether a batch is something that usually does not take long.
fn is_short(batch: &[Job]) -> bool {
    batch.iter().all(|job| match job.operation {
        Some(Operation::Read { .. } | Operation::Write { .. } | Operation::Identify) | None => true,
        Some(Operation::Flush | Operation::Discard { .. } | Operation::WriteZeroes { .. }) => false,
    })
}
