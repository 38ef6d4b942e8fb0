//! What a transport asks of the VMM around it.

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::eventfd::EventFd;

/// An MSI message (PCI 3.0, section 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Delivers one PCI function's MSI-X vectors. In the VMM each vector is an irqfd.
pub trait Interrupts: Send + Sync {
    /// The guest programmed, masked (`None`) or unmasked a vector.
    ///
    /// # Errors
    /// When KVM refuses the route.
    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()>;
    /// Raises a vector; a masked or unknown one is remembered or dropped by the implementation, never an error of the guest's.
    ///
    /// # Errors
    /// When the eventfd cannot be written.
    fn trigger(&self, vector: u16) -> io::Result<()>;
}

/// One queue's notification: a write of any value to `address` signals `kick`.
pub struct Doorbell<'a> {
    /// Guest-physical address of the queue's notification register.
    pub address: u64,
    /// Index of the queue.
    pub queue: u16,
    /// What to signal.
    pub kick: &'a EventFd,
}

/// A host descriptor to poll: see [`crate::device::HostSource`].
pub struct HostPoll {
    /// The descriptor.
    pub fd: RawFd,
    /// Index to hand back in [`crate::device::Event::Host`].
    pub index: usize,
    /// Poll for readability.
    pub readable: bool,
    /// Poll for writability.
    pub writable: bool,
}

/// Connects an activated device to the VMM's event loop and its doorbells to ioeventfds, and takes them away again.
pub trait Activator: Send + Sync {
    /// The driver set DRIVER_OK.
    ///
    /// # Errors
    /// When a descriptor cannot be registered; the transport then sets `DEVICE_NEEDS_RESET`.
    fn connect(&self, doorbells: &[Doorbell<'_>], host: &[HostPoll]) -> io::Result<()>;
    /// The device is being reset: every doorbell and descriptor of the last [`connect`](Self::connect) goes.
    fn disconnect(&self);
}
