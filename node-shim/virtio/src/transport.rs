//! What a transport asks of the VMM around it.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::device::{DeviceError, HostSource};

/// An MSI message (PCI 3.0, section 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Delivers one PCI function's MSI-X vectors. In the VMM each vector is an irqfd.
///
/// Called with locks of the transport held, so an implementation must not call back into the transport.
pub trait Interrupts: Send + Sync {
    /// The guest programmed, masked (`None`) or unmasked a vector. Vectors start masked.
    ///
    /// # Errors
    /// When KVM refuses the route.
    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()>;
    /// Raises a vector. The transport keeps the pending bits of masked vectors itself, so this is only called for a vector that is
    /// routed; an unknown one is dropped.
    ///
    /// # Errors
    /// When the eventfd cannot be written.
    fn trigger(&self, vector: u16) -> io::Result<()>;
}

impl dyn Interrupts {
    /// Raises a vector of a device, if the driver has chosen one.
    ///
    /// # Errors
    /// As [`Self::trigger`].
    pub fn raise(&self, vector: Option<u16>, device: &str) -> Result<(), DeviceError> {
        let Some(vector) = vector else { return Ok(()) };
        self.trigger(vector).map_err(|source| DeviceError::Host {
            device: device.to_owned(),
            what: "raise an interrupt",
            source,
        })
    }
}

/// One queue's notification: a write of any value to `address` signals `kick`.
pub struct Doorbell<'a> {
    /// Guest-physical address of the queue's notification register.
    pub address: u64,
    /// Index of the queue.
    pub queue: u16,
    /// What to signal.
    pub kick: &'a EventFd,
    /// The event loop waits for it; otherwise the device does.
    pub polled: bool,
}

/// Connects an activated device to the VMM's event loop and its doorbells to ioeventfds, and takes them away again.
///
/// Called on a vCPU thread with the device locked, so an implementation must not wait for the event loop, which may be waiting for the
/// same lock in [`crate::pci::VirtioPci::handle`]. An event that was already taken from epoll may still be delivered afterwards: the
/// transport ignores it.
pub trait Activator: Send + Sync {
    /// The driver set `DRIVER_OK`. `host` are the device's host descriptors, to be polled edge-triggered; a source's position is the index
    /// of its [`crate::device::Event::Host`]. All descriptors stay open until [`disconnect`](Self::disconnect) has returned.
    ///
    /// # Errors
    /// When a descriptor cannot be registered; the transport then calls `disconnect` and sets `DEVICE_NEEDS_RESET`.
    fn connect(&self, doorbells: &[Doorbell<'_>], host: &[HostSource]) -> io::Result<()>;
    /// The device is being reset: every doorbell and descriptor of the last [`connect`](Self::connect) goes.
    fn disconnect(&self);
    /// The device gave up on its driver and waits for a reset: something for the log. At most once for each activation.
    fn failed(&self, device: &str, error: &DeviceError);
}
