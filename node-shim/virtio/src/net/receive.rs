//! The receive queue: frames of the host, and of the responder, into the driver's buffers.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use super::HEADER_BYTES;
use super::link::Link;
use super::pair::Shared;
use crate::buffers::{Buffers, Room};
use crate::chain::{Chain, Segment};
use crate::device::DeviceError;
use crate::heads::HeadSet;
use crate::ring::Ring;
use crate::state::QueuePosition;

/// Largest frame that a tap hands over: header, Ethernet, VLAN tag, 64 KiB.
const MAX_FRAME_BYTES: usize = HEADER_BYTES + 14 + 4 + 65535;
/// Frames of the responder that wait for buffers; more are dropped, as a network would.
const MAX_WAITING: usize = 32;
/// Offset of `num_buffers` in the header (virtio 1.2, 5.1.6).
const NUM_BUFFERS_OFFSET: usize = 10;

/// Moves frames to the guest. Buffers are taken from the queue in advance ("staged"), so that one `readv(2)` has room for a frame of any
/// size, and stay staged until a frame fills them.
pub(super) struct Receiver {
    ring: Ring,
    chain: Chain,
    room: Room,
    staged: VecDeque<Staged>,
    /// Buffers of the staged chains, in order.
    segments: VecDeque<Segment>,
    staged_bytes: usize,
    heads: HeadSet,
    /// Frames that are complete, with header, and wait for buffers.
    waiting: VecDeque<Vec<u8>>,
    /// Where the end of a frame goes for which there were not enough buffers.
    spill: Vec<u8>,
    mergeable: bool,
    /// Bytes that a frame of the usual size may have.
    frame_bytes: usize,
    /// Bytes that the next frame may have.
    wanted_bytes: usize,
    /// The link may have frames: it said so, and has not said that there are none.
    readable: bool,
    /// The rate limit lets nothing pass before this.
    held_until: Option<Instant>,
}

struct Staged {
    head: u16,
    segments: usize,
    bytes: usize,
}

/// What pumping came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// One frame was delivered or dropped.
    Moved,
    /// There is no frame.
    NoFrame,
    /// There are not enough buffers.
    NoBuffers,
    /// The rate limit lets nothing pass.
    Held,
}

impl Receiver {
    /// For an activated queue. `large` says that frames may be longer than `frame_bytes`.
    pub(super) fn new(ring: Ring, mergeable: bool, large: bool, frame_bytes: usize) -> Self {
        let heads = HeadSet::new(ring.size());
        Self {
            ring,
            chain: Chain::default(),
            room: Room::default(),
            staged: VecDeque::new(),
            segments: VecDeque::new(),
            staged_bytes: 0,
            heads,
            waiting: VecDeque::new(),
            spill: vec![0; MAX_FRAME_BYTES],
            mergeable,
            frame_bytes,
            wanted_bytes: if large { MAX_FRAME_BYTES } else { frame_bytes },
            readable: true,
            held_until: None,
        }
    }

    /// Whether frames may be longer than usual from now on.
    pub(super) fn set_large(&mut self, large: bool) {
        self.wanted_bytes = if large { MAX_FRAME_BYTES } else { self.frame_bytes };
    }

    /// Whether there is nothing to do before the link has frames.
    pub(super) fn wants_link(&self) -> bool {
        !self.readable && self.held_until.is_none()
    }

    /// When the rate limit lets something pass again.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// Where the queue stands without the staged chains, which are the last that were taken: they would be taken again.
    pub(super) fn position(&self) -> QueuePosition {
        let QueuePosition {
            next_available,
            next_used,
        } = self.ring.position();
        let staged = u16::try_from(self.staged.len()).unwrap_or_default();
        QueuePosition {
            next_available: next_available.wrapping_sub(staged),
            next_used,
        }
    }

    /// The link may have frames again.
    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Queues a frame of the responder.
    pub(super) fn push(&mut self, frame: &[u8], shared: &Shared) {
        if self.waiting.len() >= MAX_WAITING {
            shared.counters.drop_received();
            return;
        }
        let mut with_header = vec![0; HEADER_BYTES];
        with_header.extend_from_slice(frame);
        self.waiting.push_back(with_header);
    }

    /// Moves what can be moved, at most as many frames as the queue has entries, and interrupts once.
    ///
    /// # Errors
    /// When the driver broke the queue or the link failed.
    pub(super) fn pump(&mut self, shared: &Shared, link: &dyn Link, now: Instant) -> Result<(), DeviceError> {
        let outcome = self.pump_batch(shared, link, now);
        self.ring.announce()?;
        outcome
    }

    fn pump_batch(&mut self, shared: &Shared, link: &dyn Link, now: Instant) -> Result<(), DeviceError> {
        self.held_until = None;
        self.ring.disable_kicks()?;
        for _ in 0..self.ring.size() {
            let outcome = if self.waiting.is_empty() {
                self.read_frame(shared, link, now)?
            } else {
                self.deliver_waiting(shared)?
            };
            match outcome {
                Outcome::Moved => {}
                Outcome::NoFrame | Outcome::Held => return Ok(()),
                // A kick comes with the next buffer, unless that has come in between.
                Outcome::NoBuffers => {
                    if !self.ring.enable_kicks()? {
                        return Ok(());
                    }
                }
            }
        }
        self.ring.kick_self();
        Ok(())
    }

    /// Takes buffers until there is room for `bytes`; `false` when the driver has no more.
    fn stage(&mut self, bytes: usize, device: &str) -> Result<bool, DeviceError> {
        while self.staged_bytes < bytes && (self.mergeable || self.staged.is_empty()) {
            if !self.ring.next(&mut self.chain)? {
                return Ok(false);
            }
            let broken = |what: &str| DeviceError::Driver {
                device: device.to_owned(),
                what: what.to_owned(),
            };
            let bytes = usize::try_from(self.chain.writable_bytes()).unwrap_or(0);
            if bytes < HEADER_BYTES {
                return Err(broken("a receive buffer has no room for a header"));
            }
            if !self.heads.insert(self.chain.head()) {
                return Err(broken("a receive buffer was offered twice"));
            }
            let segments = self.chain.writable();
            self.segments.extend(segments);
            self.staged.push_back(Staged {
                head: self.chain.head(),
                segments: segments.len(),
                bytes,
            });
            self.staged_bytes += bytes;
        }
        Ok(true)
    }

    /// Whether waiting for more buffers makes sense.
    fn can_stage_more(&self) -> bool {
        self.mergeable && self.staged.len() < usize::from(self.ring.size()) || self.staged.is_empty()
    }

    fn deliver_waiting(&mut self, shared: &Shared) -> Result<Outcome, DeviceError> {
        let Some(length) = self.waiting.front().map(Vec::len) else {
            return Ok(Outcome::NoFrame);
        };
        self.stage(length, &shared.name)?;
        if self.staged_bytes < length && self.can_stage_more() {
            return Ok(Outcome::NoBuffers);
        }
        let Some(frame) = self.waiting.pop_front() else {
            return Ok(Outcome::NoFrame);
        };
        if self.staged_bytes < length {
            shared.counters.drop_received();
            return Ok(Outcome::Moved);
        }
        let memory = self.ring.memory().clone();
        let mut buffers = self.gather(&memory, &shared.name)?;
        buffers.fill_from(&frame);
        self.room = buffers.into_room();
        self.complete(length, &shared.name)
    }

    fn read_frame(&mut self, shared: &Shared, link: &dyn Link, now: Instant) -> Result<Outcome, DeviceError> {
        if !self.readable {
            return Ok(Outcome::NoFrame);
        }
        if let Err(until) = shared.receive_valve.ready(now) {
            self.held_until = Some(until);
            return Ok(Outcome::Held);
        }
        self.stage(self.wanted_bytes, &shared.name)?;
        if self.staged.is_empty() {
            return Ok(Outcome::NoBuffers);
        }
        let memory = self.ring.memory().clone();
        let mut buffers = self.gather(&memory, &shared.name)?;
        let (room, read) = buffers.read_once_spilling(link.as_fd(), &mut self.spill);
        self.room = buffers.into_room();
        let length = match read {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return Ok(Outcome::NoFrame);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Outcome::Moved),
            Err(source) => {
                return Err(DeviceError::Host {
                    device: shared.name.clone(),
                    what: "read from its tap",
                    source,
                });
            }
        };
        shared.receive_valve.charge(length.saturating_sub(HEADER_BYTES));
        if length < HEADER_BYTES || length > room + self.spill.len() {
            shared.counters.drop_received();
            return Ok(Outcome::Moved);
        }
        if length > room {
            // Buffers may be in more pieces than one call takes: what is staged beyond those counts as room that is not there.
            self.keep_spilled(room, length - room, shared)?;
            return Ok(Outcome::Moved);
        }
        self.complete(length, &shared.name)
    }

    /// A frame did not fit into the buffers: it becomes a waiting one.
    fn keep_spilled(&mut self, room: usize, spilled: usize, shared: &Shared) -> Result<(), DeviceError> {
        if !self.can_stage_more() {
            shared.counters.drop_received();
            return Ok(());
        }
        let memory = self.ring.memory().clone();
        let mut buffers = self.gather(&memory, &shared.name)?;
        let mut frame = vec![0; room + spilled];
        buffers.copy_into(&mut frame[..room]);
        frame[room..].copy_from_slice(&self.spill[..spilled]);
        self.room = buffers.into_room();
        self.waiting.push_back(frame);
        Ok(())
    }

    /// Returns the chains that the first `length` staged bytes are in.
    fn complete(&mut self, length: usize, device: &str) -> Result<Outcome, DeviceError> {
        self.write_buffer_count(length, device)?;
        let mut left = length;
        while left > 0 {
            let Some(staged) = self.staged.pop_front() else { break };
            let written = staged.bytes.min(left);
            left -= written;
            self.staged_bytes -= staged.bytes;
            self.segments.drain(..staged.segments);
            self.heads.remove(staged.head);
            self.ring
                .complete(staged.head, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(Outcome::Moved)
    }

    /// `num_buffers` says how many chains a frame is in; it is 1 without mergeable buffers too (5.1.6.4.1).
    fn write_buffer_count(&mut self, length: usize, device: &str) -> Result<(), DeviceError> {
        let (mut count, mut covered) = (0_u16, 0);
        for staged in &self.staged {
            if covered >= length {
                break;
            }
            covered += staged.bytes;
            count += 1;
        }
        let memory = self.ring.memory().clone();
        let mut buffers = self.gather(&memory, device)?;
        buffers.skip(NUM_BUFFERS_OFFSET);
        buffers.fill_from(&count.to_le_bytes());
        self.room = buffers.into_room();
        Ok(())
    }

    fn gather<'m>(&mut self, memory: &'m crate::device::Memory, device: &str) -> Result<Buffers<'m>, DeviceError> {
        let room = std::mem::take(&mut self.room);
        Buffers::gather(room, memory, self.segments.make_contiguous()).map_err(|source| DeviceError::Host {
            device: device.to_owned(),
            what: "find its receive buffers",
            source,
        })
    }
}
