//! A few threads that carry requests out, so that they complete in the order in which the host's storage has done them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::execute::{Executor, Job};
use crate::device::Memory;
use crate::lock::lock;
use crate::wake::Wake;

/// Bytes of a worker's stack: deep enough for unpacking a cluster.
const STACK_BYTES: usize = 256 << 10;

/// A job and the memory of its buffers, which stays mapped while the job is out.
type Work = (Arc<Memory>, Job);

struct Shared {
    waiting: Mutex<Waiting>,
    work: Condvar,
    done: Mutex<Vec<Job>>,
    /// Signalled when `done` was empty and no longer is.
    completed: Wake,
    executor: Arc<Executor>,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Work>,
    idle: usize,
    stop: bool,
}

/// The threads of one disk.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads, called `name` with `-io` and a number.
    ///
    /// # Errors
    /// When the host refuses a thread or a descriptor.
    pub(super) fn start(name: &str, threads: usize, executor: Arc<Executor>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            work: Condvar::new(),
            done: Mutex::default(),
            completed: Wake::new()?,
            executor,
        });
        let mut pool = Self {
            shared,
            threads: Vec::with_capacity(threads),
        };
        for number in 0..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("{name}-io{number}"))
                .stack_size(STACK_BYTES);
            pool.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// Gives work to the threads.
    pub(super) fn submit(&self, memory: &Arc<Memory>, jobs: impl IntoIterator<Item = Job>) {
        let mut waiting = lock(&self.shared.waiting);
        let before = waiting.jobs.len();
        waiting
            .jobs
            .extend(jobs.into_iter().map(|job| (Arc::clone(memory), job)));
        let wake = (waiting.jobs.len() - before).min(waiting.idle);
        drop(waiting);
        for _ in 0..wake {
            self.shared.work.notify_one();
        }
    }

    /// Takes what is done.
    pub(super) fn take_done(&self, into: &mut Vec<Job>) {
        self.shared.completed.clear();
        into.append(&mut lock(&self.shared.done));
    }

    /// Readable when something is done.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.completed.as_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.waiting).stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in it has ended the process.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some((memory, mut job)) = self.next() {
            self.executor.execute(&memory, &mut job);
            // When a job is seen to be done, nothing of it is left here.
            drop(memory);
            let mut done = lock(&self.done);
            let first = done.is_empty();
            done.push(job);
            drop(done);
            if first {
                self.completed.signal();
            }
        }
    }

    /// Waits for work; `None` when there will be no more.
    fn next(&self) -> Option<Work> {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(work) = waiting.jobs.pop_front() {
                return Some(work);
            }
            if waiting.stop {
                return None;
            }
            waiting.idle += 1;
            waiting = self.work.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}
