//! virtio-blk (virtio 1.2, section 5.2) over any [`Storage`].
//!
//! ```text
//! kick --> DiskThread --> Worker --> Backend: io_uring, or threads with preadv/pwritev
//!                            |            |
//!                       rate limit     Storage: raw file, overlay over an image (raw, qcow2, VHD, VMDK), memory
//! ```
//!
//! Every disk has a thread of its own that takes requests off its queues, so that a vCPU waits for a disk only when it resets it, and no
//! device waits for another one's disk. Requests complete in the order in which the host's storage has done them. A disk in memory
//! waits for nothing, and is served by whoever delivers its events.

mod backend;
mod direct;
mod execute;
pub mod file;
pub mod format;
mod linger;
pub mod memory;
pub mod overlay;
mod pool;
pub mod request;
pub mod storage;
mod thread;
mod uring;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_blk;

use self::backend::Backend;
pub use self::backend::Engine;
use self::execute::{Executor, SERIAL_BYTES};
pub use self::file::FileStorage;
pub use self::format::{Format, Image};
pub use self::memory::{MemoryStorage, ReplaceableStorage};
pub use self::overlay::{OverlayStorage, throw_away};
pub use self::storage::{SECTOR_BYTES, Storage, StorageError};
use self::thread::DiskThread;
use self::worker::{Lane, Worker};
use crate::device::{Activation, DeviceError, DeviceType, Event, HostSource, VirtioDevice, read_config_bytes};
use crate::rate_limit::{Limiter, Limits};
use crate::ring::Ring;
use crate::state::{DeviceState, QueuePosition, RestoreError, SavedDevice};
use crate::threads::OnThread;

/// Entries of a request queue.
const QUEUE_SIZE: u16 = 256;
/// Most request queues. Linux uses one for each vCPU; more than a few share one disk's thread to no purpose.
pub const QUEUES_MAX: u16 = 4;
const QUEUE_SIZES: [u16; QUEUES_MAX as usize] = [QUEUE_SIZE; QUEUES_MAX as usize];
/// Data segments in a request: the queue's entries less header and status.
const MAX_SEGMENTS: u32 = 254;
/// Bytes of one data segment. It keeps a request, with all its segments, within what its length can say.
const MAX_SEGMENT_BYTES: u32 = 4 << 20;
/// `physical_block_exp`: storage works best in 4 KiB blocks, which is the overlay's granularity too.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
/// Bytes of the device configuration up to and including `write_zeroes_may_unmap` (5.2.4).
const CONFIG_BYTES: usize = 57;
/// Where `writeback` is in it.
const CONFIG_WRITE_BACK: u64 = 32;

const FEATURE_SIZE_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SIZE_MAX;
const FEATURE_SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
const FEATURE_READ_ONLY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
const FEATURE_BLOCK_SIZE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
const FEATURE_FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
const FEATURE_TOPOLOGY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
const FEATURE_CONFIG_WRITE_BACK: u64 = 1 << virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;
const FEATURE_MULTI_QUEUE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_MQ;
const FEATURE_DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
const FEATURE_WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;

/// What is special about one disk.
#[derive(Clone, Debug)]
pub struct Options {
    /// For logs and threads, such as `blk0`.
    pub name: String,
    /// The guest sees its first 20 bytes.
    pub serial: String,
    /// Request queues, 1 to [`QUEUES_MAX`].
    pub queues: u16,
    /// What carries out its requests.
    pub engine: Engine,
    /// The driver may give space back.
    pub discard: bool,
    /// How much it may move.
    pub limits: Limits,
    /// Confines its threads.
    pub on_thread: OnThread,
    /// There is a processor for its thread beside the guest's: then it looks for requests for a moment before it sleeps.
    pub spare_processor: bool,
}

/// A virtio block device.
pub struct Block {
    name: String,
    queues: u16,
    engine: Engine,
    limits: Limits,
    executor: Arc<Executor>,
    place: Place,
    active: bool,
    features: u64,
    /// From a saved state, for the activation that follows.
    restored_write_back: Option<bool>,
    /// Where the queues stood when the device came to rest.
    positions: Vec<Option<QueuePosition>>,
}

/// Where requests are taken off the queues.
enum Place {
    /// On whatever thread delivers the events.
    Caller(Option<Box<Worker>>),
    /// On the disk's own.
    Thread(DiskThread),
}

/// What is saved of a disk beside its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Serial number: that it is the same disk in this place.
    pub serial: [u8; SERIAL_BYTES],
    /// Size in bytes.
    pub capacity: u64,
    /// The guest was told that it cannot write.
    pub read_only: bool,
    /// Writes may be completed before they are on stable storage.
    pub write_back: bool,
}

impl Block {
    /// A disk whose contents never make anybody wait, without a thread.
    pub fn in_memory(name: impl Into<String>, serial: &str, storage: MemoryStorage) -> Self {
        Self::on_caller(name, serial, Arc::new(storage))
    }

    /// A disk that is served by the thread that delivers its events, which waits for its storage.
    pub fn on_caller(name: impl Into<String>, serial: &str, storage: Arc<dyn Storage>) -> Self {
        Self {
            name: name.into(),
            queues: 1,
            engine: Engine::Inline,
            limits: Limits::default(),
            executor: executor(serial, storage, true),
            place: Place::Caller(None),
            active: false,
            features: 0,
            restored_write_back: None,
            positions: Vec::new(),
        }
    }

    /// A disk, with its threads.
    ///
    /// # Errors
    /// When the host refuses threads or descriptors.
    pub fn start(options: Options, storage: Arc<dyn Storage>) -> io::Result<Self> {
        let Options {
            name,
            serial,
            queues,
            engine,
            discard,
            limits,
            on_thread,
            spare_processor,
        } = options;
        let executor = executor(&serial, storage, discard);
        let thread = DiskThread::start(&name, engine, &executor, on_thread, spare_processor)?;
        Ok(Self {
            name,
            queues: queues.clamp(1, QUEUES_MAX),
            engine,
            limits,
            executor,
            place: Place::Thread(thread),
            active: false,
            features: 0,
            restored_write_back: None,
            positions: Vec::new(),
        })
    }

    /// Its contents: for whoever looks into the disk, while its guest does not run.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.executor.storage
    }

    /// What carries out its requests.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    fn lanes(&self, activation: &mut Activation) -> Result<Vec<Option<Lane>>, DeviceError> {
        let mut lanes = Vec::with_capacity(usize::from(self.queues));
        for queue in 0..self.queues {
            // A driver that knows of one queue only enables that one.
            let enabled = activation.queues.get(usize::from(queue)).is_some_and(Option::is_some);
            lanes.push(if enabled || queue == 0 {
                Some(Lane::new(Ring::take(activation, queue, &self.name)?))
            } else {
                None
            });
        }
        Ok(lanes)
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let limits = self.executor.limits();
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(limits.capacity / SECTOR_BYTES).to_le_bytes());
        put(8, &MAX_SEGMENT_BYTES.to_le_bytes());
        put(12, &MAX_SEGMENTS.to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXPONENT, 0]);
        // Smallest and best request, in logical blocks.
        put(26, &8_u16.to_le_bytes());
        put(28, &8_u32.to_le_bytes());
        put(32, &[u8::from(self.executor.writes_back())]);
        put(34, &self.queues.to_le_bytes());
        put(36, &request::MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &request::MAX_RANGES_U32.to_le_bytes());
        put(44, &8_u32.to_le_bytes());
        put(48, &request::MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &request::MAX_RANGES_U32.to_le_bytes());
        // Zeroing may deallocate.
        put(56, &[u8::from(limits.discard)]);
        config
    }
}

fn executor(serial: &str, storage: Arc<dyn Storage>, discard: bool) -> Arc<Executor> {
    let mut bytes = [0; SERIAL_BYTES];
    for (byte, given) in bytes.iter_mut().zip(serial.bytes()) {
        *byte = given;
    }
    Arc::new(Executor {
        storage,
        serial: bytes,
        discard,
        write_back: AtomicBool::new(true),
    })
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let mut features = FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_BLOCK_SIZE | FEATURE_FLUSH | FEATURE_TOPOLOGY;
        if self.queues > 1 {
            features |= FEATURE_MULTI_QUEUE;
        }
        let limits = self.executor.limits();
        if limits.read_only {
            return features | FEATURE_READ_ONLY;
        }
        if limits.discard {
            features |= FEATURE_DISCARD;
        }
        features | FEATURE_CONFIG_WRITE_BACK | FEATURE_WRITE_ZEROES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..usize::from(self.queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // The only field that a driver may write, once it has agreed on it (5.2.5.1).
        if let (CONFIG_WRITE_BACK, [value @ (0 | 1)]) = (offset, data)
            && self.active
            && self.features & FEATURE_CONFIG_WRITE_BACK != 0
        {
            self.executor.write_back.store(*value == 1, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        let lanes = self.lanes(&mut activation)?;
        self.features = activation.features;
        let agreed = activation.features & FEATURE_FLUSH != 0;
        let write_back = self.restored_write_back.take().unwrap_or(agreed);
        self.executor.write_back.store(write_back, Ordering::Relaxed);
        let kicks = lanes.iter().map(|lane| lane.as_ref().map(Lane::kick).transpose());
        let kicks = kicks
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| DeviceError::Host {
                device: self.name.clone(),
                what: "make an eventfd",
                source,
            })?;
        let limiter = Limiter::new(self.limits, Instant::now());
        let worker = Worker::new(
            self.name.clone(),
            Arc::clone(&self.executor),
            activation.memory.clone(),
            lanes,
            limiter,
        );
        self.positions = worker.positions();
        match &mut self.place {
            Place::Caller(served) => *served = Some(Box::new(worker)),
            Place::Thread(thread) => thread.activate(worker, kicks),
        }
        self.active = true;
        Ok(())
    }

    fn own_kicks(&self) -> bool {
        matches!(self.place, Place::Thread(_))
    }

    fn host_sources(&self) -> Vec<HostSource> {
        match &self.place {
            Place::Caller(_) => Vec::new(),
            Place::Thread(thread) => vec![thread.failed()],
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        match (event, &mut self.place) {
            (Event::Queue(queue), Place::Caller(Some(worker))) => {
                worker.pump(&mut Backend::Inline, queue, Instant::now())
            }
            (Event::Host(_), Place::Thread(thread)) => thread.take_failure().map_or(Ok(()), Err),
            (Event::Queue(_) | Event::Host(_), _) => Ok(()),
        }
    }

    fn reset(&mut self) {
        match &mut self.place {
            Place::Caller(worker) => *worker = None,
            Place::Thread(thread) => thread.stop(),
        }
        self.active = false;
        self.features = 0;
        self.positions.clear();
        self.executor.write_back.store(true, Ordering::Relaxed);
    }

    fn pause(&mut self) -> Result<(), DeviceError> {
        match &self.place {
            Place::Caller(worker) => {
                self.positions = worker.as_ref().map(|worker| worker.positions()).unwrap_or_default();
                Ok(())
            }
            Place::Thread(thread) => {
                self.positions = thread.pause();
                thread.take_failure().map_or(Ok(()), Err)
            }
        }
    }

    fn resume(&mut self) {
        if let Place::Thread(thread) = &self.place {
            thread.resume();
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.executor.storage.flush()
    }

    fn save(&self) -> SavedDevice {
        let limits = self.executor.limits();
        let mut queues = self.positions.clone();
        queues.resize(usize::from(self.queues), None);
        SavedDevice {
            queues,
            device: DeviceState::Block(BlockState {
                serial: self.executor.serial,
                capacity: limits.capacity,
                read_only: limits.read_only,
                write_back: self.executor.writes_back(),
            }),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Block(saved) = state else {
            return Err(RestoreError::kind(&self.name, state));
        };
        if saved.serial != self.executor.serial {
            let (then, here) = (saved.serial.escape_ascii(), self.executor.serial.escape_ascii());
            return Err(RestoreError::differs(&self.name, "serial number", &then, &here));
        }
        let limits = self.executor.limits();
        if saved.capacity != limits.capacity {
            return Err(RestoreError::differs(
                &self.name,
                "size in bytes",
                &saved.capacity,
                &limits.capacity,
            ));
        }
        if saved.read_only != limits.read_only {
            return Err(RestoreError::differs(
                &self.name,
                "being read-only",
                &saved.read_only,
                &limits.read_only,
            ));
        }
        self.restored_write_back = Some(saved.write_back);
        Ok(())
    }
}

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod tests;
