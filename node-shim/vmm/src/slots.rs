//! Plugs and unplugs PCI functions while the guest runs.

use std::sync::{Arc, Mutex};

use node_shim_chips::slots::Slots;
use node_shim_virtio::device::VirtioDevice;

use crate::acpi::hotplug::EVENT_SLOTS;
use crate::bus::BusDevice;
use crate::devices::Connector;
use crate::events::Events;
use crate::log;
use crate::pci::{PciBus, PlugError};
use node_shim_virtio::lock::lock;

/// The controller's registers on the port bus, and what they are about. Also the handle of the control path, from any thread.
pub(crate) struct SlotController {
    registers: Mutex<Slots>,
    pci: Arc<PciBus>,
    connector: Connector,
    events: Arc<Events>,
}

impl SlotController {
    /// Puts a device into a free slot, tells the guest, and returns the slot.
    ///
    /// # Errors
    /// When no slot is free, or the host has no descriptor or interrupt left.
    pub(crate) fn plug(&self, device: Box<dyn VirtioDevice>) -> Result<u8, PlugError> {
        // The registers are locked before the bus: the guest that sees the function finds the event too.
        let mut registers = lock(&self.registers);
        let slot = self.pci.plug(|index| self.connector.connect(index, device))?;
        registers.plug(slot);
        drop(registers);
        self.raise(slot)?;
        Ok(slot)
    }

    /// Asks the guest to give a slot up; it is empty when [`PciBus::is_filled`] says so. May be called again.
    ///
    /// # Errors
    /// When the slot is empty, or the guest cannot be told.
    pub(crate) fn unplug(&self, slot: u8) -> Result<(), PlugError> {
        if !self.pci.is_filled(slot) {
            return Err(PlugError::Empty(slot));
        }
        lock(&self.registers).unplug(slot);
        self.raise(slot)
    }

    /// The registers, for a VM that is paused.
    pub(crate) fn save(&self) -> Slots {
        *lock(&self.registers)
    }

    /// Takes over saved registers.
    pub(crate) fn restore(&self, registers: Slots) {
        *lock(&self.registers) = registers;
    }

    fn raise(&self, slot: u8) -> Result<(), PlugError> {
        let told = self.events.raise(EVENT_SLOTS);
        told.map_err(|source| PlugError::Host {
            what: "announce",
            slot,
            source,
        })
    }
}

impl SlotController {
    /// A controller of a bus, with what new functions need.
    pub(crate) fn new(pci: Arc<PciBus>, connector: Connector, events: Arc<Events>) -> Self {
        Self {
            registers: Mutex::default(),
            pci,
            connector,
            events,
        }
    }

    /// The machine was reset: what the guest had been asked for it now gives up without being asked, as it no longer uses it.
    pub(crate) fn power_on(&self) {
        let leaving = {
            let mut registers = lock(&self.registers);
            let leaving: Vec<u8> = (1..node_shim_chips::slots::SLOTS)
                .filter(|slot| registers.is_leaving(*slot))
                .collect();
            *registers = Slots::default();
            leaving
        };
        self.empty(&leaving);
    }

    fn empty(&self, slots: &[u8]) {
        for slot in slots {
            if let Some(function) = self.pci.take(*slot) {
                function.power_on_reset();
                log::guest(format_args!("{} was taken out of slot {slot}", function.name()));
            }
        }
    }
}

impl BusDevice for SlotController {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.registers).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let ejected = lock(&self.registers).write(offset, data);
        self.empty(&ejected);
        if !ejected.is_empty() {
            // The event loop tells the agent of it.
            self.connector.mailbox.nudge();
        }
    }
}
