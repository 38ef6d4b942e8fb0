//! How the rest of the VMM sees a memory device.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::BLOCK_BYTES;
use crate::lock::lock;
use crate::wake::Wake;

/// Says how much memory shall be plugged and how much is. Works from any thread and at any time, also before the guest has a driver.
#[derive(Clone)]
pub struct MemHandle(Arc<Shared>);

/// How a memory device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemStatus {
    /// Whether the guest has a driver for it.
    pub driver: bool,
    /// Most bytes that can be plugged.
    pub region_bytes: u64,
    /// Bytes that shall be plugged.
    pub requested_bytes: u64,
    /// Bytes that are plugged.
    pub plugged_bytes: u64,
}

impl MemHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Sets how many bytes shall be plugged: rounded down to whole blocks of 2 MiB, at most the whole region. Returns what was set. The guest
    /// follows in its own time, and unplugs only what it can do without.
    pub fn set_requested(&self, bytes: u64) -> u64 {
        let bytes = bytes.min(self.0.region_bytes) / BLOCK_BYTES * BLOCK_BYTES;
        let mut state = self.0.lock();
        state.requested_bytes = bytes;
        state.changed = true;
        drop(state);
        self.0.wake.signal();
        bytes
    }

    /// How the device is.
    pub fn status(&self) -> MemStatus {
        let state = self.0.lock();
        MemStatus {
            driver: state.driver,
            region_bytes: self.0.region_bytes,
            requested_bytes: state.requested_bytes,
            plugged_bytes: state.plugged_bytes,
        }
    }
}

#[derive(Default)]
struct State {
    driver: bool,
    requested_bytes: u64,
    plugged_bytes: u64,
    changed: bool,
}

/// What device and handle share.
pub(super) struct Shared {
    state: Mutex<State>,
    region_bytes: u64,
    wake: Wake,
}

impl Shared {
    pub(super) fn new(region_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            region_bytes,
            wake: Wake::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Readable when another size is wanted.
    pub(super) const fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Whether another size is wanted since the last call.
    pub(super) fn take_change(&self) -> bool {
        self.wake.clear();
        std::mem::take(&mut self.lock().changed)
    }

    /// Plugged and requested bytes.
    pub(super) fn sizes(&self) -> (u64, u64) {
        let state = self.lock();
        (state.plugged_bytes, state.requested_bytes)
    }

    pub(super) fn set_plugged(&self, bytes: u64) {
        self.lock().plugged_bytes = bytes;
    }

    pub(super) fn set_driver(&self, driver: bool) {
        self.lock().driver = driver;
    }

    pub(super) fn restore(&self, plugged_bytes: u64, requested_bytes: u64) {
        let mut state = self.lock();
        (state.plugged_bytes, state.requested_bytes) = (plugged_bytes, requested_bytes);
    }
}
