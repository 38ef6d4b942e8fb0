//! The transmit queue: frames of the guest to the host or to the responder.
//!
//! The beginning of each frame is copied, judged as a copy, and sent as that copy, so that a guest which changes it meanwhile changes
//! nothing. What comes after it goes to the host from guest memory.

use std::io;
use std::time::Instant;

use super::HEADER_BYTES;
use super::guard::{DropReason, HEAD_BYTES, Verdict};
use super::link::Link;
use super::offload::check_header;
use super::pair::Shared;
use super::responder::{MAX_INSPECTED_BYTES, Protocol};
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{DeviceError, Memory};
use crate::ring::{Ring, Step};
use crate::state::QueuePosition;

/// Longest frame: Ethernet, and the headers and the longest payload of IPv6.
const MAX_FRAME_BYTES: usize = 14 + 40 + 65535;

/// Moves frames from the guest.
pub(super) struct Transmitter {
    ring: Ring,
    chain: Chain,
    room: Room,
    features: u64,
    /// The link took no more, and has not said that it does again.
    blocked: bool,
    /// The rate limit lets nothing pass before this.
    held_until: Option<Instant>,
}

/// Why a frame stays in the queue.
enum Stall {
    Link,
    Limit(Instant),
}

/// One frame's way.
struct Sender<'s, R> {
    shared: &'s Shared,
    link: &'s dyn Link,
    features: u64,
    now: Instant,
    stall: Option<Stall>,
    reply: R,
}

impl Transmitter {
    /// For an activated queue and what its driver agreed on.
    pub(super) fn new(ring: Ring, features: u64) -> Self {
        Self {
            ring,
            chain: Chain::default(),
            room: Room::default(),
            features,
            blocked: false,
            held_until: None,
        }
    }

    /// The link may take frames again; whether that was being waited for.
    pub(super) fn unblock(&mut self) -> bool {
        std::mem::take(&mut self.blocked)
    }

    /// Whether it waits for the link.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// When the rate limit lets something pass again.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// Where the queue stands.
    pub(super) fn position(&self) -> QueuePosition {
        self.ring.position()
    }

    /// Sends what is there. `reply` gets the responder's frames.
    ///
    /// # Errors
    /// When the driver broke the queue or the link failed.
    pub(super) fn pump(
        &mut self,
        shared: &Shared,
        link: &dyn Link,
        now: Instant,
        reply: impl FnMut(&[u8]),
    ) -> Result<(), DeviceError> {
        if self.blocked || self.held_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        self.held_until = None;
        let mut sender = Sender {
            shared,
            link,
            features: self.features,
            now,
            stall: None,
            reply,
        };
        let room = &mut self.room;
        self.ring.drain(&mut self.chain, |memory, chain| {
            sender.send(memory, chain, room).map_err(|source| DeviceError::Host {
                device: shared.name.clone(),
                what: "write to its tap",
                source,
            })
        })?;
        match sender.stall {
            Some(Stall::Link) => self.blocked = true,
            Some(Stall::Limit(until)) => self.held_until = Some(until),
            None => {}
        }
        Ok(())
    }
}

impl<R: FnMut(&[u8])> Sender<'_, R> {
    fn send(&mut self, memory: &Memory, chain: &Chain, room: &mut Room) -> io::Result<Step> {
        if let Err(until) = self.shared.transmit_valve.ready(self.now) {
            self.stall = Some(Stall::Limit(until));
            return Ok(Step::Stall);
        }
        let mut buffers = Buffers::gather(std::mem::take(room), memory, chain.readable())?;
        let bytes = buffers.len();
        let mut head = [0; HEADER_BYTES + HEAD_BYTES];
        let copied = buffers.copy_into(&mut head);
        let step = self.send_copy(&mut head[..copied], &mut buffers);
        *room = buffers.into_room();
        if let Ok(Step::Done(_)) = step {
            self.shared.transmit_valve.charge(bytes.saturating_sub(HEADER_BYTES));
        }
        step
    }

    /// Sends a frame whose beginning, with header, is in `head`.
    fn send_copy(&mut self, head: &mut [u8], rest: &mut Buffers<'_>) -> io::Result<Step> {
        let Some((header, frame)) = head.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Ok(self.drop_for(DropReason::Malformed));
        };
        let frame_bytes = frame.len() + rest.len();
        if frame_bytes > MAX_FRAME_BYTES {
            return Ok(self.drop_for(DropReason::Malformed));
        }
        match self.shared.responder.judge(frame) {
            Verdict::Forward(layout) => match check_header(*header, layout, self.features, frame_bytes) {
                Some(checked) => {
                    *header = checked;
                    self.forward(head, rest)
                }
                None => Ok(self.drop_for(DropReason::Malformed)),
            },
            Verdict::Drop(reason) => Ok(self.drop_for(reason)),
            Verdict::Absorb => Ok(Step::Done(0)),
            Verdict::Inspect(protocol) => Ok(self.inspect(protocol, frame, rest)),
        }
    }

    fn inspect(&mut self, protocol: Protocol, frame: &[u8], rest: &mut Buffers<'_>) -> Step {
        let mut whole = [0; MAX_INSPECTED_BYTES];
        let length = frame.len() + rest.len();
        let Some(space) = whole.get_mut(..length) else {
            return self.drop_for(DropReason::Malformed);
        };
        let (first, last) = space.split_at_mut(frame.len());
        first.copy_from_slice(frame);
        rest.copy_into(last);
        if let Some(answer) = self.shared.responder.answer(protocol, space) {
            (self.reply)(&answer);
        }
        Step::Done(0)
    }

    fn forward(&mut self, head: &[u8], rest: &mut Buffers<'_>) -> io::Result<Step> {
        match rest.write_once_after(head, self.link.as_fd()) {
            Ok(_) => Ok(Step::Done(0)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => {
                    self.stall = Some(Stall::Link);
                    Ok(Step::Stall)
                }
                // What the kernel says to a frame or header that it does not like, to memory pressure, and to a tap that is down or has
                // its queue taken away. A tap never blocks, so nothing interrupts it.
                Some(
                    libc::EINVAL
                    | libc::EMSGSIZE
                    | libc::ENOBUFS
                    | libc::ENOMEM
                    | libc::EIO
                    | libc::EINTR
                    | libc::ENETDOWN
                    | libc::EFAULT
                    | libc::EBADFD,
                ) => {
                    self.shared.counters.refuse_sent();
                    Ok(Step::Done(0))
                }
                None if error.kind() == io::ErrorKind::InvalidInput => Ok(self.drop_for(DropReason::Malformed)),
                _ => Err(error),
            },
        }
    }

    fn drop_for(&self, reason: DropReason) -> Step {
        self.shared.counters.drop_sent(reason);
        Step::Done(0)
    }
}
