//! The PC's clock on its ports, with a timer for its alarm.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use node_shim_chips::rtc::{Rtc, RtcState};

use crate::bus::BusDevice;
use crate::kvm::Vm;
use crate::layout;
use crate::log;
use crate::timer::Timer;
use node_shim_virtio::lock::lock;

/// The clock.
pub(crate) struct Clock {
    chip: Mutex<Rtc>,
    timer: Timer,
    vm: Arc<Vm>,
}

impl Clock {
    /// A clock whose alarm is off.
    pub(crate) fn new(vm: Arc<Vm>) -> io::Result<Self> {
        Ok(Self {
            chip: Mutex::default(),
            timer: Timer::new()?,
            vm,
        })
    }

    /// The machine was reset.
    pub(crate) fn power_on(&self) {
        let mut chip = lock(&self.chip);
        *chip = Rtc::default();
        self.set_timer(&chip);
    }

    /// The timer ran out.
    pub(crate) fn on_timer(&self) {
        self.timer.drain();
        let mut chip = lock(&self.chip);
        if chip.alarm() {
            self.set_line(true);
        }
        self.set_timer(&chip);
    }

    /// Its state, for a VM that is paused.
    pub(crate) fn save(&self) -> RtcState {
        lock(&self.chip).save()
    }

    /// Takes over a saved state; `false` when it is of another chip.
    pub(crate) fn restore(&self, state: &RtcState) -> bool {
        let Some(restored) = Rtc::restore(state) else {
            return false;
        };
        let mut chip = lock(&self.chip);
        *chip = restored;
        self.set_timer(&chip);
        true
    }

    fn set_timer(&self, chip: &Rtc) {
        if let Err(error) = self.timer.set(chip.next_alarm(SystemTime::now())) {
            log::line(format_args!("failed to set the clock's alarm: {error}"));
        }
    }

    fn set_line(&self, active: bool) {
        if let Err(error) = self.vm.set_line(layout::RTC_IRQ, active) {
            log::line(format_args!("failed to set the clock's interrupt: {error}"));
        }
    }
}

impl AsFd for Clock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl BusDevice for Clock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if lock(&self.chip).read(offset, data, SystemTime::now()) {
            self.set_line(false);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut chip = lock(&self.chip);
        chip.write(offset, data);
        // Not for each choice of a register, which every read needs.
        if offset != 0 {
            self.set_timer(&chip);
        }
    }
}
