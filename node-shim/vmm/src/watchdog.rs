//! The watchdog on its ports, with the timer that it is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::Instant;

use node_shim_chips::watchdog::{self, WatchdogState};

use crate::bus::BusDevice;
use crate::lock::lock;
use crate::log;
use crate::timer::Timer;

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
        self.set_timer(&state.chip);
    }

    /// The timer ran out. `true` when the guest hangs.
    pub(crate) fn on_timer(&self) -> bool {
        self.timer.drain();
        let mut state = lock(&self.state);
        state.paused.is_none() && state.chip.expire(Instant::now())
    }

    /// The vCPUs have stopped: the time stands still, and this is its state.
    #[expect(dead_code, reason = "for pausing and for the snapshot of a whole VM")]
    pub(crate) fn pause(&self) -> WatchdogState {
        let mut state = lock(&self.state);
        let saved = state.chip.save(Instant::now());
        state.paused = Some(saved);
        saved
    }

    /// The vCPUs are about to run, and this is the state to go on from: what [`Self::pause`] returned, here or where it was saved.
    #[expect(dead_code, reason = "for pausing and for the snapshot of a whole VM")]
    pub(crate) fn resume(&self, saved: &WatchdogState) {
        let mut state = lock(&self.state);
        state.chip = watchdog::Watchdog::restore(saved, Instant::now());
        state.paused = None;
        self.set_timer(&state.chip);
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
