//! virtio-mem (virtio 1.2, section 5.15): blocks of a region of guest-physical memory that the guest's driver plugs and unplugs until as
//! many are plugged as the host wants.
//!
//! The whole region is guest memory all the time, so no access to it can leave the mapping; what is unplugged is given back to the host.
//! A guest that uses unplugged memory all the same uses up its own pod's memory, whose limit is not the device's to keep.

mod blocks;
pub mod handle;
mod request;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use self::blocks::Blocks;
use self::handle::Shared;
pub use self::handle::{MemHandle, MemStatus};
use self::request::{Kind, REQUEST_BYTES, RESPONSE_BYTES, Reply, Request};
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{Activation, DeviceError, DeviceType, Event, HostSource, Memory, VirtioDevice, read_config_bytes};
use crate::discard::discard;
use crate::ring::{Ring, Step};
use crate::state::{DeviceState, RestoreError, SavedDevice};
use crate::transport::Interrupts;

/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE` (5.15.3): the driver does not touch what is unplugged.
const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// Entries of the one queue. Linux has one request at a time.
const QUEUE_SIZE: u16 = 16;
/// Bytes of a block: a huge page, so that none is torn.
pub const BLOCK_BYTES: u64 = 2 << 20;
/// Bytes of the configuration (5.15.4).
const CONFIG_BYTES: usize = 56;

/// Where a device has its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address, a multiple of [`BLOCK_BYTES`].
    pub start: u64,
    /// Bytes, a multiple of [`BLOCK_BYTES`] and not 0.
    pub bytes: u64,
}

/// A memory device.
pub struct Mem {
    region: Region,
    memory: Arc<Memory>,
    shared: Arc<Shared>,
    blocks: Blocks,
    active: Option<Active>,
    chain: Chain,
    room: Room,
}

struct Active {
    ring: Ring,
    interrupts: Arc<dyn Interrupts>,
    config_vector: Option<u16>,
}

/// What is saved of a memory device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    start: u64,
    bytes: u64,
    requested_bytes: u64,
    /// One bit for each block, the first in the lowest bit of the first byte.
    plugged: Vec<u8>,
}

impl Mem {
    /// A device with nothing plugged, and the handle that says how much shall be.
    ///
    /// # Errors
    /// When the region is not made of whole blocks of guest memory, or the host has no descriptor left.
    pub fn new(region: Region, memory: Arc<Memory>) -> io::Result<(Self, MemHandle)> {
        let bytes = usize::try_from(region.bytes).map_err(io::Error::other)?;
        let whole =
            region.bytes > 0 && region.bytes.is_multiple_of(BLOCK_BYTES) && region.start.is_multiple_of(BLOCK_BYTES);
        if !whole || !GuestMemoryBackend::check_range(memory.as_ref(), GuestAddress(region.start), bytes) {
            return Err(io::Error::other(
                "the region of virtio-mem is not whole blocks of guest memory",
            ));
        }
        let shared = Arc::new(Shared::new(region.bytes)?);
        let device = Self {
            region,
            memory,
            shared: Arc::clone(&shared),
            blocks: Blocks::new(region.bytes / BLOCK_BYTES),
            active: None,
            chain: Chain::default(),
            room: Room::default(),
        };
        Ok((device, MemHandle::new(shared)))
    }

    fn on_queue(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let (room, blocks, shared) = (&mut self.room, &mut self.blocks, &self.shared);
        let region = self.region;
        active.ring.drain(&mut self.chain, |memory, chain| {
            let request = read_request(memory, chain, room)?;
            let (_, requested) = shared.sizes();
            let reply = decide(region, blocks, requested, request);
            if let Reply::Discard { first, count } = reply {
                blocks.set(first, count, false);
                // A block that cannot be discarded is one that costs the host memory, which is no concern of the guest's.
                let _ = discard(
                    memory,
                    GuestAddress(region.start + first * BLOCK_BYTES),
                    count * BLOCK_BYTES,
                );
            }
            shared.set_plugged(blocks.plugged() * BLOCK_BYTES);
            answer(memory, chain, room, reply).map(Step::Done)
        })?;
        Ok(())
    }

    fn unplug_all(&mut self) {
        self.blocks = Blocks::new(self.region.bytes / BLOCK_BYTES);
        self.shared.set_plugged(0);
        // As in `on_queue`.
        let _ = discard(&self.memory, GuestAddress(self.region.start), self.region.bytes);
    }
}

/// What to answer, with plugging done and unplugging left to do.
fn decide(region: Region, blocks: &mut Blocks, requested_bytes: u64, request: Option<Request>) -> Reply {
    let Some(Request { kind, address, count }) = request else {
        return Reply::Error;
    };
    if kind == Kind::UnplugAll {
        return Reply::Discard {
            first: 0,
            count: blocks.len(),
        };
    }
    let Some(first) = address
        .checked_sub(region.start)
        .filter(|offset| offset % BLOCK_BYTES == 0)
        .map(|offset| offset / BLOCK_BYTES)
    else {
        return Reply::Error;
    };
    let count = u64::from(count);
    if count == 0 || first.checked_add(count).is_none_or(|end| end > blocks.len()) {
        return Reply::Error;
    }
    let set = blocks.count(first, count);
    match kind {
        Kind::State => Reply::State(match set {
            0 => request::STATE_UNPLUGGED,
            all if all == count => request::STATE_PLUGGED,
            _ => request::STATE_MIXED,
        }),
        Kind::Plug if set > 0 => Reply::Error,
        // More than was asked for (5.15.6.3).
        Kind::Plug if (blocks.plugged() + count) * BLOCK_BYTES > requested_bytes => Reply::Refused,
        Kind::Plug => {
            blocks.set(first, count, true);
            Reply::Done
        }
        Kind::Unplug if set < count => Reply::Error,
        Kind::Unplug | Kind::UnplugAll => Reply::Discard { first, count },
    }
}

fn broken(what: impl Into<String>) -> DeviceError {
    DeviceError::Driver {
        device: "mem".into(),
        what: what.into(),
    }
}

/// One copy of the request: what the guest changes afterwards does not matter.
fn read_request(memory: &Memory, chain: &Chain, room: &mut Room) -> Result<Option<Request>, DeviceError> {
    let mut buffers = Buffers::gather(std::mem::take(room), memory, chain.readable())
        .map_err(|source| broken(format!("a request cannot be read: {source}")))?;
    let mut bytes = [0; REQUEST_BYTES];
    let count = buffers.copy_into(&mut bytes);
    *room = buffers.into_room();
    if count < REQUEST_BYTES {
        return Err(broken(format!("a request of {count} bytes")));
    }
    Ok(Request::parse(&bytes))
}

fn answer(memory: &Memory, chain: &Chain, room: &mut Room, reply: Reply) -> Result<u32, DeviceError> {
    let mut buffers = Buffers::gather(std::mem::take(room), memory, chain.writable())
        .map_err(|source| broken(format!("a response cannot be written: {source}")))?;
    let written = buffers.fill_from(&reply.bytes());
    *room = buffers.into_room();
    if written < RESPONSE_BYTES {
        return Err(broken(format!("there are {written} bytes for a response")));
    }
    u32::try_from(written).map_err(|_| broken("a response is too long"))
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Mem
    }

    fn name(&self) -> &'static str {
        "mem"
    }

    fn features(&self) -> u64 {
        FEATURE_UNPLUGGED_INACCESSIBLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (plugged, requested) = self.shared.sizes();
        let mut config = [0; CONFIG_BYTES];
        // The node (at 8) counts only with `VIRTIO_MEM_F_ACPI_PXM`.
        for (at, value) in [
            (0, BLOCK_BYTES),
            (16, self.region.start),
            (24, self.region.bytes),
            (32, self.region.bytes),
            (40, plugged),
            (48, requested),
        ] {
            config[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        let ring = Ring::take(&mut activation, 0, self.name())?;
        self.shared.set_driver(true);
        self.active = Some(Active {
            ring,
            interrupts: activation.interrupts,
            config_vector: activation.config_vector,
        });
        Ok(())
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![self.shared.wake().source()]
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        match event {
            Event::Queue(0) => self.on_queue(),
            Event::Queue(_) => Ok(()),
            Event::Host(_) => {
                let changed = self.shared.take_change();
                match &self.active {
                    Some(active) if changed => active.interrupts.raise(active.config_vector, self.name()),
                    Some(_) | None => Ok(()),
                }
            }
        }
    }

    /// What is plugged stays: only the driver, or a reset of the machine, takes it away (5.15.5.1).
    fn reset(&mut self) {
        self.active = None;
        self.shared.set_driver(false);
    }

    fn power_on(&mut self) {
        self.unplug_all();
    }

    fn save(&self) -> SavedDevice {
        let (_, requested_bytes) = self.shared.sizes();
        SavedDevice {
            queues: vec![self.active.as_ref().map(|active| active.ring.position())],
            device: DeviceState::Mem(MemState {
                start: self.region.start,
                bytes: self.region.bytes,
                requested_bytes,
                plugged: self.blocks.to_bytes(),
            }),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Mem(saved) = state else {
            return Err(RestoreError::kind(self.name(), state));
        };
        let MemState {
            start,
            bytes,
            requested_bytes,
            plugged,
        } = saved;
        for (what, saved, here) in [
            ("address", start, self.region.start),
            ("size in bytes", bytes, self.region.bytes),
        ] {
            if *saved != here {
                return Err(RestoreError::differs(self.name(), what, saved, &here));
            }
        }
        let blocks = Blocks::from_bytes(self.blocks.len(), plugged)
            .ok_or_else(|| RestoreError::invalid(self.name(), "its list of blocks has another length"))?;
        if requested_bytes % BLOCK_BYTES != 0 || *requested_bytes > self.region.bytes {
            return Err(RestoreError::invalid(self.name(), "more is requested than there is"));
        }
        self.shared.restore(blocks.plugged() * BLOCK_BYTES, *requested_bytes);
        self.blocks = blocks;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
