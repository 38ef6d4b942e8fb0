//! Reads and writes through `io_uring(7)`: a batch is one system call, and what is in the page cache is done when it returns.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};

use super::execute::{Executor, Job};
use super::request::{HEADER_BYTES, Operation, Status};
use super::storage::{Access, Extent};
use crate::buffers::{Buffers, Room};
use crate::device::Memory;

/// Entries of the submission queue, and most operations in flight; what is beyond goes to threads. The completion queue has twice as
/// many, so that it cannot overflow.
const ENTRIES: u32 = 256;
/// Most parts of a disk's files that one request is made of; what is beyond goes to threads.
const PARTS_MAX: usize = 16;
/// Most vectors of one operation (`IOV_MAX`).
const VECTORS_MAX: usize = 1024;

/// A request in flight. It is kept until every operation of it has completed: the kernel uses what it points to.
struct Flight {
    job: Job,
    /// Keeps the buffers mapped.
    memory: Arc<Memory>,
    /// Keeps the files open.
    _executor: Arc<Executor>,
    /// What the operations' vector lists are slices of. Never changed while operations are out.
    vectors: Vec<libc::iovec>,
    outstanding: usize,
    failed: bool,
    /// The kernel moved less than was asked for: threads do it again, as a whole.
    short: bool,
}

// SAFETY: the vectors point to guest memory that `memory` keeps mapped, whichever thread this is on.
unsafe impl Send for Flight {}

/// The ring of one disk.
pub(super) struct Uring {
    ring: IoUring,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Operations in flight.
    operations: usize,
    /// Vector lists that are not in use. Empty, so that there is no pointer in them.
    spare: Vec<Vec<libc::iovec>>,
}

// SAFETY: `spare` has no pointers in it, the rest is Send.
unsafe impl Send for Uring {}

impl Uring {
    /// Whether this process may use `io_uring`, and the kernel's has what is needed.
    pub(super) fn is_allowed() -> bool {
        restricted(2).is_ok()
    }

    /// An empty ring. It reads and writes with vectors and can do nothing else, for ever: a seccomp filter sees no operation of a ring.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            ring: restricted(ENTRIES)?,
            flights: Vec::new(),
            free: Vec::new(),
            operations: 0,
            spare: Vec::new(),
        })
    }

    /// Readable when something is done.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Starts what of a batch is no more than reads and writes of files; the rest stays in it.
    pub(super) fn submit(&mut self, executor: &Arc<Executor>, memory: &Arc<Memory>, batch: &mut Vec<Job>) {
        let mut index = 0;
        let before = self.operations;
        while let Some(job) = batch.get(index) {
            match self.plan(executor, memory, job) {
                Some(plan) => {
                    let job = batch.swap_remove(index);
                    self.start(plan, job, executor, memory);
                }
                None => index += 1,
            }
        }
        if self.operations > before {
            self.enter();
        }
    }

    /// What operations a request takes, if it can be done here.
    fn plan(&mut self, executor: &Arc<Executor>, memory: &Arc<Memory>, job: &Job) -> Option<Plan> {
        let (access, offset, segments) = match job.operation? {
            Operation::Read { offset } => (Access::Read, offset, job.chain.writable()),
            Operation::Write { offset } if executor.writes_back() => (Access::Write, offset, job.chain.readable()),
            Operation::Write { .. }
            | Operation::Flush
            | Operation::Identify
            | Operation::Discard { .. }
            | Operation::WriteZeroes { .. } => return None,
        };
        let mut extents: Vec<Extent<'_>> = Vec::with_capacity(PARTS_MAX);
        let length = job.bytes();
        let known = executor.storage.extents(offset, length, access, &mut extents);
        let room = (ENTRIES as usize).checked_sub(self.operations)?;
        if !known || extents.is_empty() || extents.len() > PARTS_MAX.min(room) {
            return None;
        }
        let mut buffers = Buffers::gather(Room::default(), memory, segments).ok()?;
        match access {
            Access::Write => buffers.skip(HEADER_BYTES),
            Access::Read => buffers.truncate(buffers.len() - 1),
        }
        let mut vectors = self.spare.pop().unwrap_or_default();
        let mut parts = Vec::with_capacity(extents.len());
        for extent in &extents {
            let first = vectors.len();
            let bytes = usize::try_from(extent.length).ok()?;
            buffers.split_front(bytes, &mut vectors);
            let count = vectors.len() - first;
            if count > VECTORS_MAX {
                vectors.clear();
                self.spare.push(vectors);
                return None;
            }
            parts.push(Part {
                file: types::Fd(extent.file.as_raw_fd()),
                offset: extent.offset,
                first,
                count: u32::try_from(count).ok()?,
                bytes: u32::try_from(bytes).ok()?,
            });
        }
        Some(Plan { access, vectors, parts })
    }

    /// Queues a request's operations.
    fn start(&mut self, plan: Plan, job: Job, executor: &Arc<Executor>, memory: &Arc<Memory>) {
        let Plan { access, vectors, parts } = plan;
        let slot = self.free.pop().unwrap_or(self.flights.len());
        for part in &parts {
            let list = vectors[part.first..].as_ptr();
            let entry = match access {
                Access::Read => opcode::Readv::new(part.file, list, part.count)
                    .offset(part.offset)
                    .build(),
                Access::Write => opcode::Writev::new(part.file, list, part.count)
                    .offset(part.offset)
                    .build(),
            };
            self.push(&entry.user_data((slot as u64) << 32 | u64::from(part.bytes)));
        }
        self.operations += parts.len();
        let flight = Flight {
            job,
            memory: Arc::clone(memory),
            _executor: Arc::clone(executor),
            // Moving the vector does not move what its pointers in the operations point to.
            vectors,
            outstanding: parts.len(),
            failed: false,
            short: false,
        };
        match self.flights.get_mut(slot) {
            Some(free) => *free = Some(flight),
            None => self.flights.push(Some(flight)),
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the entry's vector list and the buffers it lists are kept by the `Flight` in its slot, and its file by the executor
            // there, until the kernel says that it is done with them; `drop` waits for that too.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return;
            }
            self.enter();
        }
    }

    /// Hands what is queued to the kernel.
    fn enter(&mut self) {
        while let Err(error) = self.ring.submit() {
            // Interrupted, or out of memory for now. The queue cannot overflow, so nothing else can be wrong.
            debug_assert!(
                matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)),
                "{error}"
            );
            std::thread::yield_now();
        }
    }

    /// Takes what is done; returns what has to be done again by threads.
    pub(super) fn take_done(&mut self, done: &mut Vec<Job>) -> Vec<(Arc<Memory>, Job)> {
        let mut again = Vec::new();
        for entry in self.ring.completion() {
            self.operations -= 1;
            let slot = usize::try_from(entry.user_data() >> 32).unwrap_or(usize::MAX);
            let Some(place) = self.flights.get_mut(slot) else {
                continue;
            };
            let Some(flight) = place else { continue };
            let bytes = entry.user_data() & u64::from(u32::MAX);
            match u64::try_from(entry.result()) {
                Ok(moved) if moved == bytes => {}
                Ok(_) => flight.short = true,
                // Beside the page cache, EINVAL says that a buffer is where the kernel does not take it.
                Err(_) if matches!(-entry.result(), libc::EAGAIN | libc::EINTR | libc::EINVAL) => flight.short = true,
                Err(_) => flight.failed = true,
            }
            flight.outstanding -= 1;
            if flight.outstanding > 0 {
                continue;
            }
            let Some(flight) = place.take() else { continue };
            self.free.push(slot);
            let Flight {
                mut job,
                memory,
                mut vectors,
                failed,
                short,
                ..
            } = flight;
            vectors.clear();
            self.spare.push(vectors);
            if short && !failed {
                again.push((memory, job));
                continue;
            }
            let status = if failed { Status::IoError } else { Status::Ok };
            let written = match job.operation {
                Some(Operation::Read { .. }) => job.chain.writable_bytes() - 1,
                Some(
                    Operation::Write { .. }
                    | Operation::Flush
                    | Operation::Identify
                    | Operation::Discard { .. }
                    | Operation::WriteZeroes { .. },
                )
                | None => 0,
            };
            job.end(status, written);
            done.push(job);
        }
        again
    }
}

/// A ring that takes `readv` and `writev` only, and whose own registrations are over (`io_uring_register(2)`,
/// `IORING_REGISTER_RESTRICTIONS`, Linux 5.10). Where the kernel lacks an operation, it refuses the restriction to it.
fn restricted(entries: u32) -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_r_disabled().build(entries)?;
    let mut allowed = [opcode::Readv::CODE, opcode::Writev::CODE].map(Restriction::sqe_op);
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may still be writing to guest memory, and reading our vectors.
        while self.operations > 0 {
            // Interrupted: again.
            let _ = self.ring.submit_and_wait(1);
            self.take_done(&mut Vec::new());
        }
    }
}

/// The operations of one request.
struct Plan {
    access: Access,
    vectors: Vec<libc::iovec>,
    parts: Vec<Part>,
}

/// One operation.
struct Part {
    file: types::Fd,
    offset: u64,
    /// Index of its first vector.
    first: usize,
    count: u32,
    bytes: u32,
}
