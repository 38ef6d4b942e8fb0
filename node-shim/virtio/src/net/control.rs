//! The control queue and its commands (virtio 1.2, 5.1.6.5).

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use virtio_bindings::bindings::virtio_net as bits;
use vmm_sys_util::eventfd::EventFd;

use super::offload::Offloads;
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{DeviceError, Memory};
use crate::ring::{Ring, Step};
use crate::state::QueuePosition;

/// The driver may send commands.
pub(super) const FEATURE_CONTROL: u64 = 1 << bits::VIRTIO_NET_F_CTRL_VQ;
/// It may say which frames it wants; it gets all that there are in any case.
pub(super) const FEATURE_RECEIVE_MODE: u64 = 1 << bits::VIRTIO_NET_F_CTRL_RX;
/// It may try to change its MAC address.
pub(super) const FEATURE_MAC: u64 = 1 << bits::VIRTIO_NET_F_CTRL_MAC_ADDR;
/// It announces its addresses when it is asked to.
pub(super) const FEATURE_ANNOUNCE: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ANNOUNCE;
/// It may use several queue pairs.
pub(super) const FEATURE_MULTI_QUEUE: u64 = 1 << bits::VIRTIO_NET_F_MQ;
/// It may change which offloads it takes.
pub(super) const FEATURE_OFFLOADS: u64 = 1 << bits::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;

const CLASS_RECEIVE: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_QUEUES: u8 = 4;
const CLASS_OFFLOADS: u8 = 5;
/// Promiscuous and all multicast; the others need `VIRTIO_NET_F_CTRL_RX_EXTRA`.
const RECEIVE_COMMANDS: std::ops::RangeInclusive<u8> = 0..=1;
const MAC_TABLE: u8 = 0;
const MAC_ADDRESS: u8 = 1;
const ANNOUNCED: u8 = 0;
const QUEUES_SET: u8 = 0;
const OFFLOADS_SET: u8 = 0;

/// Bytes of a command that are looked at: class, command, and its longest argument.
const COMMAND_BYTES: usize = 2 + 8;
/// `VIRTIO_NET_OK` and `VIRTIO_NET_ERR`.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// What a driver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// To be given more frames or fewer, which changes nothing: only its own come.
    Filter,
    /// To have this MAC address.
    Mac([u8; 6]),
    /// To have it noted that it announced itself.
    Announced,
    /// To use so many queue pairs.
    Queues(u16),
    /// To take these offloads.
    Offloads(Offloads),
}

impl Command {
    /// Reads the first [`COMMAND_BYTES`] of a command, or all of a shorter one. `None` for what was not agreed on or makes no sense.
    pub(super) fn parse(bytes: &[u8], features: u64) -> Option<Self> {
        let ([class, command], argument) = bytes.split_first_chunk()?;
        let (feature, parsed) = match (*class, *command) {
            (CLASS_RECEIVE, command) if RECEIVE_COMMANDS.contains(&command) => (FEATURE_RECEIVE_MODE, Self::Filter),
            (CLASS_MAC, MAC_TABLE) => (FEATURE_RECEIVE_MODE, Self::Filter),
            (CLASS_MAC, MAC_ADDRESS) => (FEATURE_MAC, Self::Mac(*argument.first_chunk()?)),
            (CLASS_ANNOUNCE, ANNOUNCED) => (FEATURE_ANNOUNCE, Self::Announced),
            (CLASS_QUEUES, QUEUES_SET) => (
                FEATURE_MULTI_QUEUE,
                Self::Queues(u16::from_le_bytes(*argument.first_chunk()?)),
            ),
            (CLASS_OFFLOADS, OFFLOADS_SET) => {
                let wanted = u64::from_le_bytes(*argument.first_chunk()?);
                let offloads = Offloads::of_features(wanted);
                // Only such as were agreed on (5.1.6.5.6.2).
                let agreed = wanted & !features == 0;
                (FEATURE_OFFLOADS, agreed.then_some(Self::Offloads(offloads))?)
            }
            _ => return None,
        };
        (features & feature != 0 && features & FEATURE_CONTROL != 0).then_some(parsed)
    }
}

/// The queue, activated.
pub(super) struct ControlQueue {
    device: String,
    ring: Ring,
    chain: Chain,
    room: Room,
    /// What the driver kicks.
    kick: EventFd,
    index: u16,
}

impl ControlQueue {
    /// Queue `index` of `device`.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(super) fn new(device: &str, ring: Ring, index: u16) -> io::Result<Self> {
        Ok(Self {
            device: device.to_owned(),
            kick: ring.kick()?,
            ring,
            chain: Chain::default(),
            room: Room::default(),
            index,
        })
    }

    /// Its number.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// Where it stands.
    pub(super) fn position(&self) -> QueuePosition {
        self.ring.position()
    }

    /// Readable when there are commands.
    pub(super) fn descriptor(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    /// Has `follow` follow the commands that are there, each given as its first [`COMMAND_BYTES`]; it says whether it did.
    ///
    /// # Errors
    /// When the driver broke the queue.
    pub(super) fn pump(&mut self, mut follow: impl FnMut(&[u8]) -> bool) -> Result<(), DeviceError> {
        // Empty when somebody has drained it.
        let _ = self.kick.read();
        let Self {
            device,
            ring,
            chain,
            room,
            ..
        } = self;
        ring.drain(chain, |memory, chain| {
            let followed = follow_one(memory, chain, room, &mut follow);
            followed.map_err(|what| DeviceError::Driver {
                device: device.clone(),
                what: format!("control queue: {what}"),
            })?;
            Ok(Step::Done(1))
        })?;
        Ok(())
    }
}

fn follow_one(
    memory: &Memory,
    chain: &Chain,
    room: &mut Room,
    follow: &mut impl FnMut(&[u8]) -> bool,
) -> Result<(), &'static str> {
    if chain.writable_bytes() == 0 {
        return Err("a command without room for its status");
    }
    let buffers = Buffers::gather(std::mem::take(room), memory, chain.readable());
    let buffers = buffers.map_err(|_| "a command outside of guest memory")?;
    let mut command = [0; COMMAND_BYTES];
    let length = buffers.peek_into(&mut command);
    *room = buffers.into_room();
    let status = if follow(&command[..length]) { OK } else { ERROR };
    let buffers = Buffers::gather(std::mem::take(room), memory, chain.writable());
    let mut buffers = buffers.map_err(|_| "a status outside of guest memory")?;
    buffers.fill_from(&[status]);
    *room = buffers.into_room();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::offload::OFFERED;

    #[test]
    fn commands_are_what_was_agreed_on() {
        let all = OFFERED
            | FEATURE_CONTROL
            | FEATURE_RECEIVE_MODE
            | FEATURE_MAC
            | FEATURE_ANNOUNCE
            | FEATURE_MULTI_QUEUE
            | FEATURE_OFFLOADS;
        let tso4 = [5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0];
        for (bytes, feature, expected) in [
            (&[0, 0, 1][..], FEATURE_RECEIVE_MODE, Some(Command::Filter)),
            (&[0, 1, 1], FEATURE_RECEIVE_MODE, Some(Command::Filter)),
            (&[1, 0, 0, 0, 0, 0], FEATURE_RECEIVE_MODE, Some(Command::Filter)),
            (
                &[1, 1, 2, 0, 0, 0, 0, 9],
                FEATURE_MAC,
                Some(Command::Mac([2, 0, 0, 0, 0, 9])),
            ),
            (&[3, 0], FEATURE_ANNOUNCE, Some(Command::Announced)),
            (&[4, 0, 2, 0], FEATURE_MULTI_QUEUE, Some(Command::Queues(2))),
            (
                &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                FEATURE_OFFLOADS,
                Some(Command::Offloads(Offloads::empty())),
            ),
        ] {
            assert_eq!(Command::parse(bytes, all), expected, "{bytes:?}");
            assert_eq!(
                Command::parse(bytes, all & !feature),
                None,
                "{bytes:?} without its feature"
            );
            assert_eq!(
                Command::parse(bytes, all & !FEATURE_CONTROL),
                None,
                "{bytes:?} without a queue"
            );
        }
        // GUEST_CSUM is bit 1, GUEST_TSO4 bit 7.
        let taken = Some(Command::Offloads(Offloads::CHECKSUM | Offloads::TSO4));
        assert_eq!(Command::parse(&tso4, all), taken);
        assert_eq!(Command::parse(&tso4, all & !(1 << 7)), None, "not agreed on");
        for bytes in [
            &[][..],
            &[0],
            &[0, 2, 1],
            &[1, 1, 2, 0, 0, 0, 0],
            &[1, 2],
            &[2, 0, 1, 0],
            &[3, 1],
            &[4, 0, 2],
            &[4, 1, 2, 0],
            &[5, 0, 0],
            &[6, 0],
            &[255, 255],
        ] {
            assert_eq!(Command::parse(bytes, all), None, "{bytes:?}");
        }
    }
}
