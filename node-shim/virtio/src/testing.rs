//! The VMM's and the driver's side of a device, for tests and fuzz targets: no part of the product.

pub mod activation;
pub mod driver;
pub mod loop_device;
pub mod vmm;

pub use activation::activate;
pub use driver::{Descriptor, DriverQueue};
pub use loop_device::LoopDevice;
pub use vmm::{ActivatorLog, InterruptLog};

use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::device::Memory;

/// Bytes of the guest memory that [`guest_memory`] makes.
pub const MEMORY_BYTES: usize = 1 << 20;

/// One region of guest memory from address 0.
///
/// # Panics
/// When the host has no memory.
pub fn guest_memory() -> Arc<Memory> {
    Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("a megabyte of memory"))
}
