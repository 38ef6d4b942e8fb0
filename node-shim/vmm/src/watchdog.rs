//! The watchdog on its ports, with the timer that it is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::Instant;

use node_shim_chips::watchdog::{self, WatchdogState};

use crate::bus::BusDevice;
use crate::log;
use crate::timer::Timer;
use node_shim_virtio::lock::lock;

/// The watchdog. Nothing happens unless the guest's driver starts it.
pub(crate) struct Watchdog {
    state: Mutex<State>,
    timer: Timer,
}

#[derive(Default)]
struct State {
    chip: watchdog::Watchdog,
    /// What it was when the VM was paused, which is no time for a guest to hang in.
    paused: Option<WatchdogState>,
}

impl Watchdog {
    /// A watchdog that does not run.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            timer: Timer::new()?,
        })
    }

    /// The machine was reset.
    pub(crate) fn power_on(&self) {
        let mut state = lock(&self.state);
        state.chip.power_on();
        state.paused = None;
        self.set_timer(&state.chip);
    }

    /// The timer ran out. `true` when the guest hangs.
    pub(crate) fn on_timer(&self) -> bool {
        self.timer.drain();
        let mut state = lock(&self.state);
        state.paused.is_none() && state.chip.expire(Instant::now())
    }

    /// The vCPUs have stopped: the time stands still.
    pub(crate) fn pause(&self) {
        let mut state = lock(&self.state);
        state.paused = Some(state.chip.save(Instant::now()));
    }

    /// Its state, for a VM that is paused.
    pub(crate) fn save(&self) -> WatchdogState {
        let state = lock(&self.state);
        state.paused.unwrap_or_else(|| state.chip.save(Instant::now()))
    }

    /// Takes over a saved state, with which the time stands still until [`Self::resume`].
    pub(crate) fn restore(&self, saved: WatchdogState) {
        lock(&self.state).paused = Some(saved);
    }

    /// The vCPUs are about to run: goes on with what was left when the time stood still.
    pub(crate) fn resume(&self) {
        let mut state = lock(&self.state);
        if let Some(saved) = state.paused.take() {
            state.chip = watchdog::Watchdog::restore(&saved, Instant::now());
            self.set_timer(&state.chip);
        }
    }

    fn set_timer(&self, chip: &watchdog::Watchdog) {
        let now = Instant::now();
        let left = chip.deadline().map(|deadline| deadline.saturating_duration_since(now));
        if let Err(error) = self.timer.set(left) {
            log::line(format_args!("failed to set the watchdog's timer: {error}"));
        }
    }
}

impl AsFd for Watchdog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl BusDevice for Watchdog {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.state).chip.read(offset, data, Instant::now());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        let before = state.chip.deadline();
        state.chip.write(offset, data, Instant::now());
        if state.chip.deadline() != before {
            self.set_timer(&state.chip);
        }
    }
}
