//! The generic event device: an interrupt, and a port that says what it was for (the AML: [`crate::acpi::hotplug`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::kvm::Vm;
use crate::layout;

/// What has happened since the guest last asked.
pub(crate) struct Events {
    happened: AtomicU8,
    vm: Arc<Vm>,
}

impl Events {
    /// Nothing has happened.
    pub(crate) fn new(vm: Arc<Vm>) -> Self {
        Self {
            happened: AtomicU8::new(0),
            vm,
        }
    }

    /// Something happened.
    ///
    /// # Errors
    /// When KVM does not raise the interrupt.
    pub(crate) fn raise(&self, event: u8) -> io::Result<()> {
        self.happened.fetch_or(event, Ordering::AcqRel);
        self.vm.pulse_line(layout::EVENTS_IRQ)
    }

    /// What the guest has not yet asked for.
    pub(crate) fn save(&self) -> u8 {
        self.happened.load(Ordering::Acquire)
    }

    /// Takes over what [`Self::save`] returned; the interrupt is on its way in the interrupt controller's state.
    pub(crate) fn restore(&self, happened: u8) {
        self.happened.store(happened, Ordering::Release);
    }

    /// The machine was reset.
    pub(crate) fn power_on(&self) {
        self.happened.store(0, Ordering::Release);
    }
}

impl BusDevice for Events {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [value] = data {
            *value = self.happened.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
