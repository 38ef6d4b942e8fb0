//! virtio-blk (virtio 1.2, section 5.2) over any [`Storage`]. Requests are handled in order, on the thread that calls
//! [`Block::handle`]: nothing is in flight between two calls.

pub mod file;
pub mod memory;
pub mod overlay;
pub mod request;
pub mod storage;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_blk;
use vm_memory::Bytes;

pub use self::file::FileStorage;
pub use self::memory::MemoryStorage;
pub use self::overlay::OverlayStorage;
use self::request::{HEADER_BYTES, Limits, Operation, Status};
pub use self::storage::{SECTOR_BYTES, Storage, StorageError};
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{Activation, DeviceError, DeviceType, Event, Memory, VirtioDevice, read_config_bytes};
use crate::ring::{Ring, Step};
use crate::state::{DeviceState, RestoreError, SavedDevice};

/// Entries of the request queue.
const QUEUE_SIZE: u16 = 256;
/// Data segments in a request: the queue's entries less header and status.
const MAX_SEGMENTS: u32 = 254;
/// `physical_block_exp`: storage works best in 4 KiB blocks, which is the overlay's granularity too.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
/// Bytes of the device configuration up to and including `write_zeroes_may_unmap` (5.2.4).
const CONFIG_BYTES: usize = 57;
/// Bytes of a serial number (5.2.6).
const SERIAL_BYTES: usize = 20;

const FEATURE_SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
const FEATURE_READ_ONLY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
const FEATURE_BLOCK_SIZE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
const FEATURE_FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
const FEATURE_TOPOLOGY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
const FEATURE_DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
const FEATURE_WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;

/// A virtio block device.
pub struct Block {
    name: String,
    engine: Engine,
    ring: Option<Ring>,
    chain: Chain,
}

/// What is saved of a disk beside its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Size in bytes.
    pub capacity: u64,
    /// The guest was told that it cannot write.
    pub read_only: bool,
}

/// What executes requests.
struct Engine {
    storage: Box<dyn Storage>,
    serial: [u8; SERIAL_BYTES],
    /// The driver does not flush, so every write must be on stable storage before it is completed (5.2.6.2).
    write_through: bool,
    readable: Room,
    writable: Room,
}

impl Block {
    /// A disk called `name` in logs, whose serial number is the first 20 bytes of `serial`.
    pub fn new(name: impl Into<String>, serial: &str, storage: Box<dyn Storage>) -> Self {
        let mut bytes = [0; SERIAL_BYTES];
        for (byte, given) in bytes.iter_mut().zip(serial.bytes()) {
            *byte = given;
        }
        let engine = Engine {
            storage,
            serial: bytes,
            write_through: true,
            readable: Room::default(),
            writable: Room::default(),
        };
        Self {
            name: name.into(),
            engine,
            ring: None,
            chain: Chain::default(),
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let common = FEATURE_SEG_MAX | FEATURE_BLOCK_SIZE | FEATURE_FLUSH | FEATURE_TOPOLOGY;
        if self.engine.storage.read_only() {
            common | FEATURE_READ_ONLY
        } else {
            common | FEATURE_DISCARD | FEATURE_WRITE_ZEROES
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&config(self.engine.storage.len()), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        self.engine.write_through = activation.features & FEATURE_FLUSH == 0;
        self.ring = Some(Ring::take(&mut activation, 0, &self.name)?);
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        match (event, &mut self.ring) {
            (Event::Queue(0), Some(ring)) => {
                let engine = &mut self.engine;
                let name = &self.name;
                ring.drain(&mut self.chain, |memory, chain| {
                    engine.execute(memory, chain, name).map(Step::Done)
                })?;
                Ok(())
            }
            (Event::Queue(_) | Event::Host(_), _) => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.ring = None;
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.engine.storage.read_only() {
            return Ok(());
        }
        self.engine.storage.flush()
    }

    fn save(&self) -> SavedDevice {
        let state = BlockState {
            capacity: self.engine.storage.len(),
            read_only: self.engine.storage.read_only(),
        };
        SavedDevice {
            queues: vec![self.ring.as_ref().map(Ring::position)],
            device: DeviceState::Block(state),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let saved = match state {
            DeviceState::Block(saved) => saved,
            DeviceState::Net(_) | DeviceState::Rng(_) => return Err(RestoreError::kind(&self.name, state)),
        };
        let storage = &self.engine.storage;
        if saved.capacity != storage.len() {
            return Err(RestoreError::differs(
                &self.name,
                "size in bytes",
                &saved.capacity,
                &storage.len(),
            ));
        }
        if saved.read_only != storage.read_only() {
            return Err(RestoreError::differs(
                &self.name,
                "being read-only",
                &saved.read_only,
                &storage.read_only(),
            ));
        }
        Ok(())
    }
}

impl Engine {
    /// Executes one request and returns the bytes written into its chain.
    fn execute(&mut self, memory: &Memory, chain: &Chain, name: &str) -> Result<u32, DeviceError> {
        let broken = |what: &str| DeviceError::Driver {
            device: name.to_owned(),
            what: what.to_owned(),
        };
        let status_at = chain
            .last_writable()
            .ok_or_else(|| broken("a request without room for a status"))?;
        // `last_writable` is there, so there is at least one writable byte.
        let room = chain.writable_bytes() - 1;
        let lost = |_| broken("a request outside of guest memory");
        let mut input = Buffers::gather(std::mem::take(&mut self.readable), memory, chain.readable()).map_err(lost)?;
        let mut output = Buffers::gather(std::mem::take(&mut self.writable), memory, chain.writable()).map_err(lost)?;
        output.truncate(output.len() - 1);
        let mut header = [0; HEADER_BYTES];
        if input.copy_into(&mut header) < HEADER_BYTES {
            return Err(broken("a request without a whole header"));
        }
        let limits = Limits {
            capacity: self.storage.len(),
            read_only: self.storage.read_only(),
        };
        let parsed = Operation::parse(header, input.len(), output.len(), limits);
        let status = match parsed {
            Ok(operation) => self.run(operation, limits, &mut input, &mut output),
            Err(status) => status,
        };
        let read = room - u32::try_from(output.len()).unwrap_or(room);
        self.readable = input.into_room();
        self.writable = output.into_room();
        memory
            .write_obj(status as u8, status_at)
            .map_err(|_| broken("a status outside of guest memory"))?;
        // After a failed read nothing can be said about what its buffers hold, but for the status.
        Ok(if status == Status::Ok { read + 1 } else { 1 })
    }

    fn run(&mut self, op: Operation, limits: Limits, input: &mut Buffers<'_>, output: &mut Buffers<'_>) -> Status {
        let storage = &mut self.storage;
        let result = match op {
            Operation::Read { offset } => storage.read_at(output, offset),
            Operation::Write { offset } => storage.write_at(input, offset).and_then(|()| {
                if self.write_through {
                    self.storage.flush()
                } else {
                    Ok(())
                }
            }),
            Operation::Flush => storage.flush(),
            Operation::Identify => {
                output.fill_from(&self.serial);
                Ok(())
            }
            Operation::Discard { ranges } | Operation::WriteZeroes { ranges } => {
                return self.zero_ranges(op, ranges, limits, input);
            }
        };
        if result.is_ok() { Status::Ok } else { Status::IoError }
    }

    fn zero_ranges(&mut self, op: Operation, ranges: usize, limits: Limits, input: &mut Buffers<'_>) -> Status {
        // Every range is checked before the first takes effect.
        let mut checked = [request::Range::default(); request::MAX_RANGES];
        for range in checked.iter_mut().take(ranges) {
            let mut bytes = [0; request::RANGE_BYTES];
            input.copy_into(&mut bytes);
            match request::Range::parse(bytes, op, limits) {
                Ok(parsed) => *range = parsed,
                Err(status) => return status,
            }
        }
        for range in checked.iter().take(ranges) {
            let done = match op {
                Operation::Discard { .. } => self.storage.discard(range.offset, range.length),
                Operation::WriteZeroes { .. } => self.storage.write_zeroes(range.offset, range.length, range.unmap),
                Operation::Read { .. } | Operation::Write { .. } | Operation::Flush | Operation::Identify => Ok(()),
            };
            if done.is_err() {
                return Status::IoError;
            }
        }
        if self.write_through && self.storage.flush().is_err() {
            Status::IoError
        } else {
            Status::Ok
        }
    }
}

/// `struct virtio_blk_config` (5.2.4).
fn config(capacity_bytes: u64) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(capacity_bytes / SECTOR_BYTES).to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXPONENT, 0]);
    // Smallest and best request, in logical blocks.
    put(26, &8_u16.to_le_bytes());
    put(28, &8_u32.to_le_bytes());
    put(34, &1_u16.to_le_bytes());
    put(36, &request::MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &request::MAX_RANGES_U32.to_le_bytes());
    put(44, &8_u32.to_le_bytes());
    put(48, &request::MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &request::MAX_RANGES_U32.to_le_bytes());
    // Zeroing may deallocate.
    put(56, &[1]);
    config
}

#[cfg(test)]
mod tests;
