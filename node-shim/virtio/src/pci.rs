//! The virtio-pci transport.

/// One virtio device as a PCI function.
pub struct VirtioPci;
impl VirtioPci {
    /// Event from the event loop.
    pub fn handle(&self) {}
}
