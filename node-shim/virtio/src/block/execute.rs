//! One request, carried out on the thread that calls: the pool's, or the disk's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestAddress;

use super::request::{self, HEADER_BYTES, Limits, Operation, Status};
use super::storage::Storage;
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::Memory;

/// Bytes of a serial number (5.2.6).
pub(super) const SERIAL_BYTES: usize = 20;

/// A request on its way. Used again, so that none allocates.
#[derive(Default)]
pub(super) struct Job {
    /// Index of the queue that it came from.
    pub(super) queue: u16,
    /// Its buffers.
    pub(super) chain: Chain,
    /// What it asks for; `None` while it is not known.
    pub(super) operation: Option<Operation>,
    /// Where its status goes.
    pub(super) status_at: GuestAddress,
    /// How it ended.
    pub(super) status: Option<Status>,
    /// Bytes written to its buffers before the status.
    pub(super) written: u32,
    /// Room for gathering its buffers.
    pub(super) rooms: (Room, Room),
}

impl Job {
    /// Bytes that it moves, for the rate limit: those of its data buffers.
    pub(super) fn bytes(&self) -> u64 {
        match self.operation {
            Some(Operation::Read { .. }) => u64::from(self.chain.writable_bytes()) - 1,
            Some(Operation::Write { .. }) => u64::from(self.chain.readable_bytes()) - HEADER_BYTES as u64,
            Some(
                Operation::Flush | Operation::Identify | Operation::Discard { .. } | Operation::WriteZeroes { .. },
            )
            | None => 0,
        }
    }

    /// It ended like this.
    pub(super) fn end(&mut self, status: Status, written: u32) {
        self.status = Some(status);
        // After a failed read nothing can be said about what its buffers hold.
        self.written = if status == Status::Ok { written } else { 0 };
    }
}

/// What carries requests out, from any thread.
pub(super) struct Executor {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) serial: [u8; SERIAL_BYTES],
    /// The driver may give space back.
    pub(super) discard: bool,
    /// The driver flushes when it wants something to be on stable storage. Otherwise every write is, before it is completed (5.2.6.2).
    pub(super) write_back: AtomicBool,
}

impl Executor {
    /// What the disk allows.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            capacity: self.storage.len(),
            read_only: self.storage.read_only(),
            discard: self.discard,
        }
    }

    /// Whether writes may be completed before they are on stable storage.
    pub(super) fn writes_back(&self) -> bool {
        self.write_back.load(Ordering::Relaxed)
    }

    /// Carries a request out, and notes in it how it ended. `memory` holds its buffers: [`Chain::read`] has checked that.
    pub(super) fn execute(&self, memory: &Memory, job: &mut Job) {
        let Some(operation) = job.operation else { return };
        let (input, output) = std::mem::take(&mut job.rooms);
        let gathered = Buffers::gather(input, memory, job.chain.readable())
            .and_then(|input| Ok((input, Buffers::gather(output, memory, job.chain.writable())?)));
        let Ok((mut input, mut output)) = gathered else {
            job.end(Status::IoError, 0);
            return;
        };
        input.skip(HEADER_BYTES);
        output.truncate(output.len().saturating_sub(1));
        let room = output.len();
        let status = self.run(operation, &mut input, &mut output);
        let written = u32::try_from(room - output.len()).unwrap_or_default();
        job.rooms = (input.into_room(), output.into_room());
        job.end(status, written);
    }

    fn run(&self, operation: Operation, input: &mut Buffers<'_>, output: &mut Buffers<'_>) -> Status {
        let storage = self.storage.as_ref();
        let result = match operation {
            Operation::Read { offset } => storage.read_at(output, output.len(), offset),
            Operation::Write { offset } => storage.write_at(input, offset).and_then(|()| self.settle()),
            Operation::Flush => storage.flush(),
            Operation::Identify => {
                output.fill_from(&self.serial);
                Ok(())
            }
            Operation::Discard { ranges } | Operation::WriteZeroes { ranges } => {
                return self.zero_ranges(operation, ranges, input);
            }
        };
        if result.is_ok() { Status::Ok } else { Status::IoError }
    }

    fn zero_ranges(&self, operation: Operation, ranges: usize, input: &mut Buffers<'_>) -> Status {
        let limits = self.limits();
        // Every range is checked before the first takes effect.
        let mut checked = [request::Range::default(); request::MAX_RANGES];
        for range in checked.iter_mut().take(ranges) {
            let mut bytes = [0; request::RANGE_BYTES];
            input.copy_into(&mut bytes);
            match request::Range::parse(bytes, operation, limits) {
                Ok(parsed) => *range = parsed,
                Err(status) => return status,
            }
        }
        for range in checked.iter().take(ranges) {
            let done = match operation {
                Operation::Discard { .. } => self.storage.discard(range.offset, range.length),
                Operation::WriteZeroes { .. } => self.storage.write_zeroes(range.offset, range.length, range.unmap),
                Operation::Read { .. } | Operation::Write { .. } | Operation::Flush | Operation::Identify => Ok(()),
            };
            if done.is_err() {
                return Status::IoError;
            }
        }
        if self.settle().is_ok() {
            Status::Ok
        } else {
            Status::IoError
        }
    }

    /// After a write: onto stable storage, if the driver does not flush.
    fn settle(&self) -> std::io::Result<()> {
        if self.writes_back() {
            Ok(())
        } else {
            self.storage.flush()
        }
    }
}
