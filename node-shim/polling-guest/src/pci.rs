//! PCI configuration space by ports (PCI local bus specification 3.0, 3.2.2.3.2), of bus 0.

use crate::port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Command register: memory space and bus master.
const MEMORY_AND_MASTER: u32 = 0b110;

/// A function 0 of a slot.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    slot: u8,
}

impl Function {
    /// The first function with this vendor and device id.
    pub(crate) fn find(vendor: u16, device: u16) -> Option<Self> {
        let id = u32::from(device) << 16 | u32::from(vendor);
        (0..32)
            .map(|slot| Self { slot })
            .find(|function| function.read(0) == id)
    }

    fn select(self, offset: u8) {
        port::write32(ADDRESS, ENABLE | u32::from(self.slot) << 11 | u32::from(offset & 0xfc));
    }

    /// Four bytes from a multiple of four.
    pub(crate) fn read(self, offset: u8) -> u32 {
        self.select(offset);
        port::read32(DATA)
    }

    /// Lets the device use memory and be used.
    pub(crate) fn enable(self) {
        let command = self.read(4) & 0xffff;
        self.select(4);
        port::write32(DATA, command | MEMORY_AND_MASTER);
    }

    /// Where the firmware put a BAR of memory.
    pub(crate) fn bar(self, index: u8) -> Result<u64, &'static str> {
        if index > 5 {
            return Err("there is no such BAR");
        }
        let low = self.read(0x10 + index * 4);
        let is_wide = low & 0b110 == 0b100;
        let high = if is_wide && index < 5 {
            self.read(0x14 + index * 4)
        } else {
            0
        };
        match (low & !0xf, high) {
            (_, 1..) => Err("a BAR is above 4 GiB"),
            (0, 0) => Err("a BAR has no address"),
            (low, 0) => Ok(low.into()),
        }
    }

    /// Offsets of the capabilities with this id, in their order.
    pub(crate) fn capabilities(self, id: u8) -> impl Iterator<Item = u8> {
        let mut next = (self.read(0x34) & 0xfc) as u8;
        // At most 48 fit.
        let mut left = 48;
        core::iter::from_fn(move || {
            while next != 0 && left > 0 {
                left -= 1;
                let here = next;
                let header = self.read(here);
                next = (header >> 8 & 0xfc) as u8;
                if (header & 0xff) as u8 == id {
                    return Some(here);
                }
            }
            None
        })
    }
}
