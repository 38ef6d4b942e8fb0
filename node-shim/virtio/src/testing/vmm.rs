//! What a VMM does for a transport, written down instead.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::device::{DeviceError, HostSource};
use crate::lock::lock;
use crate::transport::{Activator, Doorbell, Interrupts, MsiMessage};

/// Records routes and interrupts.
#[derive(Default)]
pub struct InterruptLog {
    routes: Mutex<BTreeMap<u16, MsiMessage>>,
    triggered: Mutex<Vec<u16>>,
    raised: Condvar,
}

/// Longest wait for an interrupt.
const PATIENCE: Duration = Duration::from_secs(20);

impl InterruptLog {
    /// Where a vector goes now.
    pub fn route_of(&self, vector: u16) -> Option<MsiMessage> {
        lock(&self.routes).get(&vector).copied()
    }

    /// Waits until a vector was raised, and says which were since the last call.
    ///
    /// # Panics
    /// When none is within 20 seconds.
    pub fn await_triggered(&self) -> Vec<u16> {
        let waited = self
            .raised
            .wait_timeout_while(lock(&self.triggered), PATIENCE, |triggered| triggered.is_empty());
        let (mut triggered, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "no interrupt within {PATIENCE:?}");
        std::mem::take(&mut *triggered)
    }

    /// The vectors that were raised since the last call.
    pub fn triggered(&self) -> Vec<u16> {
        std::mem::take(&mut *lock(&self.triggered))
    }
}

impl Interrupts for InterruptLog {
    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        match message {
            Some(message) => lock(&self.routes).insert(vector, message),
            None => lock(&self.routes).remove(&vector),
        };
        Ok(())
    }

    fn trigger(&self, vector: u16) -> io::Result<()> {
        lock(&self.triggered).push(vector);
        self.raised.notify_all();
        Ok(())
    }
}

/// Records connections, and can refuse them.
#[derive(Default)]
pub struct ActivatorLog {
    state: Mutex<ActivatorState>,
}

#[derive(Default)]
struct ActivatorState {
    doorbells: Vec<(u64, u16, EventFd)>,
    connected: bool,
    disconnects: usize,
    failures: Vec<String>,
    refuse: bool,
}

impl ActivatorLog {
    /// Whether a device is connected.
    pub fn connected(&self) -> bool {
        lock(&self.state).connected
    }

    /// How often one was disconnected.
    pub fn disconnects(&self) -> usize {
        lock(&self.state).disconnects
    }

    /// What was reported as failed since the last call.
    pub fn failures(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).failures)
    }

    /// Lets the next connection fail.
    pub fn refuse(&self) {
        lock(&self.state).refuse = true;
    }

    /// Address and queue of each doorbell.
    pub fn doorbells(&self) -> Vec<(u64, u16)> {
        lock(&self.state)
            .doorbells
            .iter()
            .map(|(address, queue, _)| (*address, *queue))
            .collect()
    }

    /// The queues that were kicked since the last call.
    pub fn kicked(&self) -> Vec<u16> {
        let state = lock(&self.state);
        state
            .doorbells
            .iter()
            .filter(|(_, _, kick)| kick.read().is_ok())
            .map(|(_, queue, _)| *queue)
            .collect()
    }
}

impl Activator for ActivatorLog {
    fn connect(&self, doorbells: &[Doorbell<'_>], _host: &[HostSource]) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.connected = true;
        if std::mem::take(&mut state.refuse) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        for doorbell in doorbells {
            state
                .doorbells
                .push((doorbell.address, doorbell.queue, doorbell.kick.try_clone()?));
        }
        Ok(())
    }

    fn disconnect(&self) {
        let mut state = lock(&self.state);
        state.connected = false;
        state.disconnects += 1;
        state.doorbells.clear();
    }

    fn failed(&self, device: &str, error: &DeviceError) {
        lock(&self.state).failures.push(format!("{device}: {error}"));
    }
}
