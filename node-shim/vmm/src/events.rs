//! The generic event device: an interrupt, and a port that says what it was for (the AML: [`crate::acpi::hotplug`]).
//!
//! The interrupt is level-triggered: its line is up until the guest has asked. An edge would be lost on a guest whose driver is not there yet, and
//! what it was for would wait for the next event.

use std::io;
use std::sync::{Arc, Mutex};

use node_shim_virtio::lock::lock;

use crate::bus::BusDevice;
use crate::kvm::Vm;
use crate::layout;
use crate::log;

/// What has happened since the guest last asked.
pub(crate) struct Events {
    /// Locked while the line changes, so that the line is up exactly when there is something to ask for.
    happened: Mutex<u8>,
    vm: Arc<Vm>,
}

impl Events {
    /// Nothing has happened.
    pub(crate) fn new(vm: Arc<Vm>) -> Self {
        Self {
            happened: Mutex::new(0),
            vm,
        }
    }

    /// Something happened.
    ///
    /// # Errors
    /// When KVM does not raise the interrupt.
    pub(crate) fn raise(&self, event: u8) -> io::Result<()> {
        let mut happened = lock(&self.happened);
        *happened |= event;
        self.set_line(*happened)
    }

    /// What the guest has not yet asked for.
    pub(crate) fn save(&self) -> u8 {
        *lock(&self.happened)
    }

    /// Takes over what [`Self::save`] returned. The interrupt controller's state has what became of the line, but not the line.
    ///
    /// # Errors
    /// When KVM does not raise the interrupt.
    pub(crate) fn restore(&self, saved: u8) -> io::Result<()> {
        let mut happened = lock(&self.happened);
        *happened = saved;
        self.set_line(saved)
    }

    /// The machine was reset.
    pub(crate) fn power_on(&self) {
        self.take();
    }

    fn take(&self) -> u8 {
        let mut happened = lock(&self.happened);
        let taken = std::mem::take(&mut *happened);
        if let Err(error) = self.set_line(0) {
            log::guest(format_args!(
                "failed to take the event device's interrupt back: {error}"
            ));
        }
        taken
    }

    fn set_line(&self, happened: u8) -> io::Result<()> {
        self.vm.set_line(layout::EVENTS_IRQ, happened != 0)
    }
}

impl BusDevice for Events {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [value] = data {
            *value = self.take();
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
