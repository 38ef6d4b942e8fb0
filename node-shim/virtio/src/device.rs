//! What every virtio device is to its transport and to the VMM's event loop.

use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_bindings::bindings::{virtio_config, virtio_ring};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::state::{DeviceState, RestoreError, SavedDevice};
use crate::transport::Interrupts;

/// `VIRTIO_F_VERSION_1` (virtio 1.2, section 6), which the transport offers and requires.
pub const FEATURE_VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// `VIRTIO_F_RING_EVENT_IDX` (virtio 1.2, 2.7.7), which the transport offers for every device.
pub const FEATURE_EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// `VIRTIO_F_INDIRECT_DESC` (virtio 1.2, 2.7.5.3), which the transport offers for every device.
pub const FEATURE_INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// Guest memory as every part of the VMM sees it.
pub type Memory = GuestMemoryMmap<()>;

/// Virtio device types (virtio 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceType {
    /// Network device (5.1).
    Net = 1,
    /// Block device (5.2).
    Block = 2,
    /// Console device (5.3).
    Console = 3,
    /// Entropy device (5.4).
    Rng = 4,
    /// Traditional memory balloon device (5.5).
    Balloon = 5,
    /// Socket device (5.10).
    Vsock = 19,
    /// Memory device (5.15).
    Mem = 24,
}

/// A device that its driver has set `DRIVER_OK` on: what it may use until it is reset.
pub struct Activation {
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// The feature bits that driver and device agreed on.
    pub features: u64,
    /// The queues that the driver enabled, frozen: the transport ignores later writes to their registers. The index is the queue's.
    pub queues: Vec<Option<ActiveQueue>>,
    /// For configuration changes: `interrupts.trigger(config_vector)`.
    pub interrupts: Arc<dyn Interrupts>,
    /// MSI-X vector of configuration changes, if the driver gave one.
    pub config_vector: Option<u16>,
}

/// One enabled queue.
pub struct ActiveQueue {
    /// Addresses, size and indices.
    pub queue: Queue,
    /// Signalled when the driver notifies the device: an ioeventfd in the VMM.
    pub kick: EventFd,
    /// MSI-X vector of this queue, if the driver gave one.
    pub vector: Option<u16>,
}

/// Why the event loop calls a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver kicked this queue. The event loop has drained the eventfd.
    Queue(u16),
    /// A host descriptor of [`VirtioDevice::host_sources`] is ready (edge-triggered); the value is its index there.
    Host(usize),
}

/// A host descriptor that the device wants polled while it is active.
#[derive(Clone, Copy, Debug)]
pub struct HostSource {
    /// The descriptor; it outlives the device's activation.
    pub fd: RawFd,
    /// Poll for readability.
    pub readable: bool,
    /// Poll for writability.
    pub writable: bool,
}

impl HostSource {
    /// One to be polled for readability.
    pub const fn readable(fd: RawFd) -> Self {
        Self {
            fd,
            readable: true,
            writable: false,
        }
    }
}

/// A device gave up on its driver: the transport sets `DEVICE_NEEDS_RESET` (2.1.1) and the VM goes on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the specification.
    #[error("the guest's {device} driver broke the virtio specification: {what}")]
    Driver {
        /// Which device.
        device: String,
        /// What it did.
        what: String,
    },
    /// The host failed in a way that a request's status cannot carry.
    #[error("{device}: {what}: {source}")]
    Host {
        /// Which device.
        device: String,
        /// What failed.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// A virtio device, without transport and without threads of its own. Everything that it reads from the guest is hostile.
pub trait VirtioDevice: Send {
    /// Its type.
    fn device_type(&self) -> DeviceType;
    /// Name for logs, such as `blk0`.
    fn name(&self) -> &str;
    /// The device-specific feature bits that it offers; the transport adds [`FEATURE_VERSION_1`], [`FEATURE_EVENT_IDX`] and
    /// [`FEATURE_INDIRECT_DESC`].
    fn features(&self) -> u64 {
        0
    }
    /// The largest size of each queue, each a power of two.
    fn queue_max_sizes(&self) -> &[u16];
    /// Reads from the device-specific configuration; bytes outside of it read as zero, and so all of a device that has none.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    /// Writes to the device-specific configuration; most devices have nothing to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready.
    ///
    /// # Errors
    /// When a queue that the device cannot do without is missing or invalid.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// Whether the device waits for the kicks of its queues itself, on a thread of its own: then the event loop does not.
    fn own_kicks(&self) -> bool {
        false
    }
    /// The host descriptors to poll while active.
    fn host_sources(&self) -> Vec<HostSource> {
        Vec::new()
    }
    /// Something happened.
    ///
    /// # Errors
    /// When the device must be reset before it can go on.
    fn handle(&mut self, event: Event) -> Result<(), DeviceError>;
    /// Back to the state before activation; in-flight requests are finished or dropped before this returns.
    fn reset(&mut self);
    /// The machine was reset, after [`Self::reset`] where it was active: what outlives a reset by the driver goes too.
    fn power_on(&mut self) {}
    /// Comes to rest: when this returns nothing is in flight, everything that is done is in the used rings and announced, and guest memory
    /// is not touched until [`Self::resume`]. The transport does not call [`Self::handle`] in between. A device that does everything
    /// inside of `handle` has nothing to do here.
    ///
    /// # Errors
    /// When the device must be reset before it can go on.
    fn pause(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Goes on. Afterwards the transport delivers an [`Event`] of every live queue and every host source, so none was missed.
    fn resume(&mut self) {}
    /// Brings what it holds back of its contents to where they are kept, so that a copy of its files is whole. It is at rest or not active.
    ///
    /// # Errors
    /// Of the host's storage.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    /// Its state, while it is at rest or not active.
    fn save(&self) -> SavedDevice;
    /// Takes over a saved state; the device is not active. If the saved one was, [`Self::activate`] follows, with the queues where they
    /// were and the features that were agreed on, so a device keeps for it what it needs there.
    ///
    /// # Errors
    /// When the state is not one of this device, or the guest would notice the difference.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// Answers a read of `data` at `offset` from a device-specific configuration; what is beyond it reads as zero.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let config = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
        .unwrap_or_default();
    let count = config.len().min(data.len());
    data[..count].copy_from_slice(&config[..count]);
}
