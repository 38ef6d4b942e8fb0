//! The PCI bus: a host bridge in slot 0 and a virtio function in each slot after it. Configuration space is reached through ECAM
//! (PCI Express base specification, 7.2.2) and through ports (PCI local bus specification 3.0, 3.2.2.3.2).

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use node_shim_virtio::pci::VirtioPci;

use crate::bus::BusDevice;
use crate::layout;
use crate::lifecycle::Event;
use crate::mailbox::Mailbox;

/// Configuration address port: the enable bit.
const ENABLE: u32 = 1 << 31;
/// Bit of the reset register that starts a reset; bit 1 says which kind.
const RESET_START: u8 = 1 << 2;

/// Vendor (Red Hat), device (generic PCI Express host bridge), class (host bridge): what no driver wants to take.
const HOST_BRIDGE: [(usize, u8); 5] = [(0, 0x36), (1, 0x1b), (2, 0x08), (3, 0x00), (0x0b, 0x06)];

/// Slots for functions: all but the host bridge's.
const PLACES: usize = layout::PCI_SLOTS - 1;

/// The functions, in the order of their slots from 1 on.
pub(crate) struct PciBus {
    functions: RwLock<Vec<Option<Arc<VirtioPci>>>>,
}

/// Why a function cannot be plugged or unplugged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlugError {
    /// Every slot is taken.
    #[error("all {PLACES} PCI slots are taken; detach a disk or an interface first")]
    Full,
    /// Nothing is in the slot.
    #[error("PCI slot {0} is empty; name the slot of a device")]
    Empty(u8),
    /// The host has no descriptor or interrupt left.
    #[error("failed to {what} the device in PCI slot {slot}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The slot.
        slot: u8,
        /// Why.
        source: io::Error,
    },
}

/// More functions than slots: a defect, the configuration is bounded.
#[derive(Debug, thiserror::Error)]
#[error("the VM has {0} devices but only {max} PCI slots; remove a disk or an interface", max = layout::PCI_SLOTS - 1)]
pub(crate) struct TooManyFunctions(usize);

/// Address of the BAR of the function with this index.
pub(crate) fn bar_address(index: usize) -> u64 {
    layout::PCI_WINDOW + (index as u64 + 1) * layout::BAR_SIZE
}

impl PciBus {
    /// A bus with these functions, the first in slot 1.
    pub(crate) fn new(functions: Vec<Arc<VirtioPci>>) -> Result<Self, TooManyFunctions> {
        if functions.len() > PLACES {
            return Err(TooManyFunctions(functions.len()));
        }
        let mut places: Vec<_> = functions.into_iter().map(Some).collect();
        places.resize_with(PLACES, || None);
        Ok(Self {
            functions: RwLock::new(places),
        })
    }

    fn places(&self) -> RwLockReadGuard<'_, Vec<Option<Arc<VirtioPci>>>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn places_mut(&self) -> RwLockWriteGuard<'_, Vec<Option<Arc<VirtioPci>>>> {
        self.functions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The functions that are there.
    pub(crate) fn functions(&self) -> Vec<Arc<VirtioPci>> {
        self.places().iter().flatten().cloned().collect()
    }

    /// The function with this index, which is one less than its slot.
    pub(crate) fn function(&self, index: usize) -> Option<Arc<VirtioPci>> {
        self.places().get(index).cloned().flatten()
    }

    /// Whether there is a function in a slot.
    pub(crate) fn is_filled(&self, slot: u8) -> bool {
        usize::from(slot)
            .checked_sub(1)
            .is_some_and(|index| self.function(index).is_some())
    }

    /// Makes a function, given its index, in the first free slot, and returns the slot.
    ///
    /// # Errors
    /// When there is no such slot, or the function cannot be made.
    pub(crate) fn plug(&self, make: impl FnOnce(usize) -> io::Result<Arc<VirtioPci>>) -> Result<u8, PlugError> {
        let mut places = self.places_mut();
        let index = places.iter().position(Option::is_none).ok_or(PlugError::Full)?;
        // At most 31.
        let slot = u8::try_from(index + 1).map_err(|_| PlugError::Full)?;
        let function = make(index).map_err(|source| PlugError::Host {
            what: "connect",
            slot,
            source,
        })?;
        places[index] = Some(function);
        Ok(slot)
    }

    /// Takes a function out of its slot.
    pub(crate) fn take(&self, slot: u8) -> Option<Arc<VirtioPci>> {
        let index = usize::from(slot).checked_sub(1)?;
        self.places_mut().get_mut(index).and_then(Option::take)
    }

    fn read_config(&self, address: ConfigAddress, data: &mut [u8]) {
        match address.slot.checked_sub(1) {
            _ if address.function != 0 => {}
            None => {
                for (byte, offset) in data.iter_mut().zip(usize::from(address.offset)..) {
                    *byte = HOST_BRIDGE
                        .iter()
                        .find(|(at, _)| *at == offset)
                        .map_or(0, |(_, value)| *value);
                }
            }
            Some(index) => {
                if let Some(function) = self.function(index) {
                    function.read_config(address.offset, data);
                }
            }
        }
    }

    fn write_config(&self, address: ConfigAddress, data: &[u8]) {
        let index = address.slot.checked_sub(1).filter(|_| address.function == 0);
        if let Some(function) = index.and_then(|index| self.function(index)) {
            function.write_config(address.offset, data);
        }
    }

    /// The function whose BAR has this address. The guest may move a BAR, so its usual place is only where the search starts.
    fn at(&self, address: u64) -> Option<(Arc<VirtioPci>, u64)> {
        let places = self.places();
        let inside = |function: &'_ Arc<VirtioPci>| {
            let (start, size) = function.bar();
            address.checked_sub(start).filter(|offset| *offset < size)
        };
        let usual = (address - layout::PCI_WINDOW) / layout::BAR_SIZE;
        let usual = usize::try_from(usual)
            .ok()
            .and_then(|slot| places.get(slot.checked_sub(1)?));
        usual
            .into_iter()
            .chain(places.iter())
            .flatten()
            .find_map(|function| inside(function).map(|offset| (Arc::clone(function), offset)))
    }
}

/// What a configuration access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ConfigAddress {
    slot: usize,
    function: u8,
    offset: u16,
}

impl ConfigAddress {
    /// From an offset in the ECAM of one bus.
    fn from_ecam(offset: u64) -> Self {
        Self {
            slot: (offset >> 15 & 0x1f) as usize,
            function: (offset >> 12 & 7) as u8,
            offset: (offset & 0xfff) as u16,
        }
    }

    /// From the address port; `None` when it is not enabled or names another bus.
    fn from_port(address: u32, byte: u64) -> Option<Self> {
        let bus = address >> 16 & 0xff;
        (address & ENABLE != 0 && bus == 0).then(|| Self {
            slot: (address >> 11 & 0x1f) as usize,
            function: (address >> 8 & 7) as u8,
            offset: (address & 0xfc) as u16 + (byte & 3) as u16,
        })
    }
}

/// Configuration space through memory.
pub(crate) struct Ecam(pub(crate) Arc<PciBus>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(ConfigAddress::from_ecam(offset), data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_config(ConfigAddress::from_ecam(offset), data);
    }
}

/// The window of the BARs.
pub(crate) struct Window(pub(crate) Arc<PciBus>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, offset)) = self.0.at(layout::PCI_WINDOW + offset) {
            function.read_bar(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.0.at(layout::PCI_WINDOW + offset) {
            function.write_bar(offset, data);
        }
    }
}

/// Configuration space through ports, and the reset register among them.
pub(crate) struct ConfigPorts {
    bus: Arc<PciBus>,
    address: AtomicU32,
    mailbox: Arc<Mailbox>,
}

impl ConfigPorts {
    /// The ports of a bus.
    pub(crate) fn new(bus: Arc<PciBus>, mailbox: Arc<Mailbox>) -> Self {
        Self {
            bus,
            address: AtomicU32::new(0),
            mailbox,
        }
    }

    /// The address port.
    pub(crate) fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Sets the address port, as a guest's write of 4 bytes does.
    pub(crate) fn set_address(&self, address: u32) {
        self.address.store(address, Ordering::Relaxed);
    }
}

/// Offset of the data ports.
const DATA: u64 = 4;

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.address.load(Ordering::Relaxed);
        if offset >= DATA {
            if let Some(address) = ConfigAddress::from_port(address, offset - DATA) {
                self.bus.read_config(address, data);
            }
        } else if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&address.to_le_bytes());
        } else {
            data.fill(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        const RESET: u64 = (layout::RESET_PORT - layout::PCI_CONFIG_PORT) as u64;
        match (offset, data) {
            (0, [a, b, c, d]) => self
                .address
                .store(u32::from_le_bytes([*a, *b, *c, *d]), Ordering::Relaxed),
            (RESET, [value]) if value & RESET_START != 0 => self.mailbox.send(Event::GuestReset),
            (DATA.., data) => {
                let address = self.address.load(Ordering::Relaxed);
                if let Some(address) = ConfigAddress::from_port(address, offset - DATA) {
                    self.bus.write_config(address, data);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_reach_the_same_register() {
        for (slot, function, offset) in [(0_u32, 0, 0), (1, 0, 0x10), (31, 7, 0xfe)] {
            let expected = ConfigAddress {
                slot: slot as usize,
                function,
                offset,
            };
            let ecam = u64::from(slot) << 15 | u64::from(function) << 12 | u64::from(offset);
            assert_eq!(ConfigAddress::from_ecam(ecam), expected);
            let port = ENABLE | slot << 11 | u32::from(function) << 8 | u32::from(offset & 0xfc);
            assert_eq!(ConfigAddress::from_port(port, u64::from(offset & 3)), Some(expected));
            assert_eq!(ConfigAddress::from_port(port & !ENABLE, 0), None);
            assert_eq!(ConfigAddress::from_port(port | 1 << 16, 0), None, "another bus");
        }
    }

    #[test]
    fn the_bridge_is_there_and_empty_slots_are_not() {
        let bus = Arc::new(PciBus::new(Vec::new()).unwrap());
        let ecam = Ecam(bus.clone());
        let mut data = [0xff; 4];
        ecam.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x0008_1b36);
        for offset in [1 << 15, 1 << 12, 0xf_fffc] {
            let mut data = [0xff; 4];
            ecam.read(offset, &mut data);
            assert_eq!(data, [0xff; 4], "{offset:#x}");
            ecam.write(offset, &data);
        }
        assert!(bus.at(layout::PCI_WINDOW + 5).is_none());
    }

    #[test]
    fn the_reset_register_asks_for_a_reset_and_only_when_told() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let bus = Arc::new(PciBus::new(Vec::new()).unwrap());
        let ports = ConfigPorts::new(bus, mailbox.clone());
        ports.write(1, &[0x02]);
        ports.write(0, &[0x06, 0x06, 0x06, 0x06]);
        assert!(mailbox.take().is_empty());
        ports.write(1, &[layout::RESET_VALUE]);
        assert_eq!(mailbox.take(), [Event::GuestReset]);
    }
}
