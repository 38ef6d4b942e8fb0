//! The chips of the machine that are not virtio devices, as models of their registers: what a guest reads and writes changes a plain value,
//! and what follows from it for the rest of the machine is returned. Whoever owns a chip has the lock, the timer and the interrupt line.
//!
//! Each is saved by its `State`, plain data that serde writes.

#![forbid(unsafe_code)]

pub mod cpus;
pub mod panic_port;
pub mod rtc;
pub mod slots;
pub mod watchdog;
