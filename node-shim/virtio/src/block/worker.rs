//! The path of requests: out of the rings, checked, to a backend that carries them out, and back. On one thread, which is the disk's own or,
//! for a disk that never waits for anything, its caller's.
//!
//! ```text
//! kick --> pump: ring --> checked --> rate limit --> backend (inline, pool, io_uring)
//!                                         | no: put back, again at the deadline
//! done --> reap: status --> ring --> one interrupt for the batch
//! ```

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::backend::Backend;
use super::execute::{Executor, Job};
use super::request::{HEADER_BYTES, Operation, Status};
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{DeviceError, Memory};
use crate::heads::HeadSet;
use crate::rate_limit::Limiter;
use crate::ring::Ring;
use crate::state::QueuePosition;

/// A queue and what of it is in flight.
pub(super) struct Lane {
    ring: Ring,
    heads: HeadSet,
}

impl Lane {
    /// A queue that was just activated.
    pub(super) fn new(ring: Ring) -> Self {
        let heads = HeadSet::new(ring.size());
        Self { ring, heads }
    }

    /// Another end of what its driver kicks.
    pub(super) fn kick(&self) -> io::Result<EventFd> {
        self.ring.kick()
    }
}

/// See the [module](self).
pub(super) struct Worker {
    device: String,
    executor: Arc<Executor>,
    memory: Arc<Memory>,
    /// One for each queue; `None` where the driver enabled none.
    lanes: Vec<Option<Lane>>,
    limiter: Limiter,
    /// Nothing more is taken before this.
    held_until: Option<Instant>,
    /// Jobs that are not in use.
    spare: Vec<Job>,
    /// Jobs of the batch that is being taken.
    batch: Vec<Job>,
    done: Vec<Job>,
    in_flight: usize,
    room: Room,
    /// Whether the caller looks for more before it has the driver kick: see [`Self::arm`].
    lingers: bool,
}

impl Worker {
    /// A disk whose driver has just activated it.
    pub(super) fn new(
        device: String,
        executor: Arc<Executor>,
        memory: Arc<Memory>,
        lanes: Vec<Option<Lane>>,
        limiter: Limiter,
    ) -> Self {
        Self {
            device,
            executor,
            memory,
            lanes,
            limiter,
            held_until: None,
            spare: Vec::new(),
            batch: Vec::new(),
            done: Vec::new(),
            in_flight: 0,
            room: Room::default(),
            lingers: false,
        }
    }

    /// From now on a queue that is empty is left without kicks, until [`Self::arm`].
    pub(super) fn linger(&mut self) {
        self.lingers = true;
    }

    /// Whether everything that was taken is done.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// A queue in which there is something to take.
    ///
    /// # Errors
    /// When the driver broke a ring.
    pub(super) fn waiting(&self) -> Result<Option<u16>, DeviceError> {
        for (index, lane) in (0..).zip(&self.lanes) {
            if let Some(lane) = lane
                && lane.ring.has_next()?
            {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Asks for kicks of every queue; or returns one in which there is something already.
    ///
    /// # Errors
    /// When the driver broke a ring.
    pub(super) fn arm(&mut self) -> Result<Option<u16>, DeviceError> {
        for (index, lane) in (0..).zip(&mut self.lanes) {
            if let Some(lane) = lane
                && lane.ring.enable_kicks()?
            {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// When [`Self::pump_all`] has to be called although nobody kicked.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.held_until
    }

    /// Where the queues stand. With [`Self::drain`] before it nothing is in flight.
    pub(super) fn positions(&self) -> Vec<Option<QueuePosition>> {
        let lanes = self.lanes.iter();
        lanes
            .map(|lane| lane.as_ref().map(|lane| lane.ring.position()))
            .collect()
    }

    /// Takes requests of one queue, at most as many as it has entries, so that no queue keeps the thread to itself.
    ///
    /// # Errors
    /// When the driver broke the ring.
    pub(super) fn pump(&mut self, backend: &mut Backend, queue: u16, now: Instant) -> Result<(), DeviceError> {
        if self.held_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        self.held_until = None;
        let taken = self.take(queue, now);
        // What was taken before something broke is carried out all the same.
        self.dispatch(backend);
        let finished = self.finish_done();
        taken.and(finished)
    }

    /// [`Self::pump`] of every queue.
    ///
    /// # Errors
    /// When the driver broke a ring.
    pub(super) fn pump_all(&mut self, backend: &mut Backend, now: Instant) -> Result<(), DeviceError> {
        for queue in 0..self.lanes.len() {
            self.pump(backend, u16::try_from(queue).unwrap_or(u16::MAX), now)?;
        }
        Ok(())
    }

    /// Returns what the backend has done.
    ///
    /// # Errors
    /// When a ring cannot be written.
    pub(super) fn reap(&mut self, backend: &mut Backend) -> Result<(), DeviceError> {
        backend.take_done(&mut self.done);
        self.finish_done()
    }

    /// Waits for everything that is in flight, and returns it.
    ///
    /// # Errors
    /// When a ring cannot be written; all the same nothing is in flight then.
    pub(super) fn drain(&mut self, backend: &mut Backend) -> Result<(), DeviceError> {
        let mut result = Ok(());
        while self.in_flight > 0 {
            backend.wait();
            backend.take_done(&mut self.done);
            result = result.and(self.finish_done());
        }
        result
    }

    fn take(&mut self, queue: u16, now: Instant) -> Result<(), DeviceError> {
        let Some(Some(lane)) = self.lanes.get_mut(usize::from(queue)) else {
            return Ok(());
        };
        let ring = &mut lane.ring;
        ring.disable_kicks()?;
        for _ in 0..ring.size() {
            let mut job = self.spare.pop().unwrap_or_default();
            while !ring.next(&mut job.chain)? {
                if self.lingers || !ring.enable_kicks()? {
                    self.spare.push(job);
                    return Ok(());
                }
                ring.disable_kicks()?;
            }
            let broken = |what: String| DeviceError::Driver {
                device: self.device.clone(),
                what: format!("queue {queue}: {what}"),
            };
            let head = job.chain.head();
            if !lane.heads.insert(head) {
                return Err(broken(format!("head {head} is in flight already")));
            }
            job.queue = queue;
            prepare(&mut job, &self.memory, &self.executor, &mut self.room).map_err(|what| broken(what.to_owned()))?;
            if let Err(until) = self.limiter.take(now, job.bytes()) {
                ring.put_back(1);
                lane.heads.remove(head);
                self.held_until = Some(until);
                self.spare.push(job);
                return Ok(());
            }
            self.in_flight += 1;
            if job.status.is_some() {
                self.done.push(job);
            } else {
                self.batch.push(job);
            }
        }
        ring.kick_self();
        Ok(())
    }

    fn dispatch(&mut self, backend: &mut Backend) {
        // The only one there is: nobody is kept waiting, and it need not go to another thread and back.
        let alone = self.batch.len() == 1 && self.in_flight == 1 + self.done.len();
        backend.submit(&self.executor, &self.memory, &mut self.batch, alone, &mut self.done);
    }

    /// Returns jobs that are done to their rings, and interrupts once for each ring.
    fn finish_done(&mut self) -> Result<(), DeviceError> {
        if self.done.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        for job in self.done.drain(..) {
            self.in_flight -= 1;
            let Some(Some(lane)) = self.lanes.get_mut(usize::from(job.queue)) else {
                continue;
            };
            lane.heads.remove(job.chain.head());
            // Unfinished is what a backend lost: there is none.
            let status = job.status.unwrap_or(Status::IoError);
            let returned = self
                .memory
                .write_obj(status as u8, job.status_at)
                .map_err(|_| DeviceError::Driver {
                    device: self.device.clone(),
                    what: "a status outside of guest memory".to_owned(),
                })
                .and_then(|()| lane.ring.complete(job.chain.head(), job.written + 1));
            result = result.and(returned);
            self.spare.push(job);
        }
        for lane in self.lanes.iter_mut().flatten() {
            result = result.and(lane.ring.announce());
        }
        result
    }
}

/// Reads a request's header, once, and decides what it asks for. A request that cannot be is ended here.
fn prepare(job: &mut Job, memory: &Memory, executor: &Executor, room: &mut Room) -> Result<(), &'static str> {
    (job.operation, job.status, job.written) = (None, None, 0);
    let chain: &Chain = &job.chain;
    let last: Option<GuestAddress> = chain.last_writable();
    job.status_at = last.ok_or("a request without room for a status")?;
    let mut input = Buffers::gather(std::mem::take(room), memory, chain.readable())
        .map_err(|_| "a request outside of guest memory")?;
    let mut header = [0; HEADER_BYTES];
    let whole = input.copy_into(&mut header) == HEADER_BYTES;
    let data = input.len();
    *room = input.into_room();
    if !whole {
        return Err("a request without a whole header");
    }
    // `last_writable` is there, so there is at least one writable byte.
    let output = usize::try_from(chain.writable_bytes() - 1).unwrap_or(usize::MAX);
    match Operation::parse(header, data, output, executor.limits()) {
        Ok(operation) => job.operation = Some(operation),
        Err(status) => job.end(status, 0),
    }
    Ok(())
}
