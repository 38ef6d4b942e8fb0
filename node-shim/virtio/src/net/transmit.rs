//! The transmit queue: frames of the guest to the host or to the responder, without copying those for the host.

use std::io;

use super::HEADER_BYTES;
use super::link::Link;
use super::responder::{DropReason, HEAD_BYTES, MAX_INSPECTED_BYTES, Responder, Verdict};
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{DeviceError, Memory};
use crate::ring::{Ring, Step};
use crate::state::QueuePosition;

/// Frames of the guest that went nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitDrops {
    /// Shorter than their own headers, or longer than a frame can be.
    pub malformed: u64,
    /// From a MAC address that is not the guest's.
    pub spoofed_mac: u64,
    /// ARP for an address that is not the guest's.
    pub spoofed_arp: u64,
    /// Refused by the host, mostly for an impossible header.
    pub refused: u64,
}

/// Moves frames from the guest.
pub(super) struct Transmitter {
    ring: Ring,
    chain: Chain,
    sender: Sender,
    /// The link took no more, and has not said that it does again.
    blocked: bool,
}

struct Sender {
    room: Room,
    drops: TransmitDrops,
}

impl Transmitter {
    /// For an activated queue; `drops` are those so far.
    pub(super) fn new(ring: Ring, drops: TransmitDrops) -> Self {
        Self {
            ring,
            chain: Chain::default(),
            sender: Sender {
                room: Room::default(),
                drops,
            },
            blocked: false,
        }
    }

    /// The link may take frames again; whether that was being waited for.
    pub(super) fn unblock(&mut self) -> bool {
        std::mem::take(&mut self.blocked)
    }

    /// Where the queue stands.
    pub(super) fn position(&self) -> QueuePosition {
        self.ring.position()
    }

    /// What was dropped so far.
    pub(super) fn drops(&self) -> TransmitDrops {
        self.sender.drops
    }

    /// Sends what is there. `reply` gets the responder's frames.
    ///
    /// # Errors
    /// When the driver broke the queue or the link failed.
    pub(super) fn pump(
        &mut self,
        link: &dyn Link,
        responder: &Responder,
        device: &str,
        mut reply: impl FnMut(&[u8]),
    ) -> Result<(), DeviceError> {
        if self.blocked {
            return Ok(());
        }
        let sender = &mut self.sender;
        let all = self.ring.drain(&mut self.chain, |memory, chain| {
            sender
                .send(memory, chain, link, responder, &mut reply)
                .map_err(|source| DeviceError::Host {
                    device: device.to_owned(),
                    what: "write to its tap",
                    source,
                })
        })?;
        self.blocked = !all;
        Ok(())
    }
}

impl Sender {
    fn send(
        &mut self,
        memory: &Memory,
        chain: &Chain,
        link: &dyn Link,
        responder: &Responder,
        reply: &mut impl FnMut(&[u8]),
    ) -> io::Result<Step> {
        let mut buffers = Buffers::gather(std::mem::take(&mut self.room), memory, chain.readable())?;
        let mut head = [0; HEADER_BYTES + HEAD_BYTES];
        let available = buffers.peek_into(&mut head);
        let step = match responder.judge(head.get(HEADER_BYTES..available).unwrap_or_default()) {
            Verdict::Forward => self.forward(&mut buffers, link)?,
            Verdict::Drop(reason) => {
                self.count(reason);
                Step::Done(0)
            }
            Verdict::Inspect(protocol) => {
                buffers.skip(HEADER_BYTES);
                let mut frame = [0; MAX_INSPECTED_BYTES];
                let length = buffers.copy_into(&mut frame);
                if !buffers.is_empty() {
                    self.count(DropReason::Malformed);
                } else if let Some(answer) = responder.answer(protocol, &frame[..length]) {
                    reply(&answer);
                }
                Step::Done(0)
            }
        };
        self.room = buffers.into_room();
        Ok(step)
    }

    fn forward(&mut self, buffers: &mut Buffers<'_>, link: &dyn Link) -> io::Result<Step> {
        loop {
            match buffers.write_once(link.as_fd()) {
                Ok(_) => return Ok(Step::Done(0)),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(Step::Stall),
                    Some(libc::EINTR) => {}
                    // What the kernel says to a frame or header that it does not like, to memory pressure, and to a tap that is down.
                    Some(
                        libc::EINVAL
                        | libc::EMSGSIZE
                        | libc::ENOBUFS
                        | libc::ENOMEM
                        | libc::EIO
                        | libc::ENETDOWN
                        | libc::EFAULT,
                    ) => {
                        self.drops.refused += 1;
                        return Ok(Step::Done(0));
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    fn count(&mut self, reason: DropReason) {
        let counter = match reason {
            DropReason::Malformed => &mut self.drops.malformed,
            DropReason::SpoofedMac => &mut self.drops.spoofed_mac,
            DropReason::SpoofedArp => &mut self.drops.spoofed_arp,
        };
        *counter += 1;
    }
}
