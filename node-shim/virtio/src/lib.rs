//! virtio devices and the virtio-pci transport (virtio 1.2), without any KVM: what the VMM does for them goes through two traits,
//! [`transport::Interrupts`] and [`transport::Activator`], so that a test or a fuzzer can be the VMM.
//!
//! ```text
//!            vCPU thread: MMIO exit                          event loop: kick or host descriptor
//!                    |                                                   |
//!    pci::VirtioPci (config space, BAR, MSI-X, queue registers)          |
//!                    | DRIVER_OK: freezes the queues                     |
//!                    +------> device::VirtioDevice::activate             |
//!                             device::VirtioDevice::handle <-------------+
//! ```

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod chain;
pub mod console;
pub mod device;
pub mod discard;
pub mod fat;
pub mod heads;
pub mod lock;
pub mod mem;
pub mod net;
pub mod pci;
pub mod rate_limit;
pub mod ring;
pub mod rng;
pub mod seed;
pub mod state;
pub mod threads;
pub mod transport;
pub mod vsock;
pub mod wake;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
