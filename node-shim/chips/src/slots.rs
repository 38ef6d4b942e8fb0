//! The controller for plugging and unplugging PCI functions: registers that the methods in the DSDT use, one bit for each slot.
//!
//! | offset | read | written |
//! |---|---|---|
//! | 0 | slots that were filled since the last read | |
//! | 4 | slots that the guest shall give up, since the last read | |
//! | 8 | | slots that the guest has given up |
//!
//! All have four bytes and are accessed as a whole.

use serde::{Deserialize, Serialize};

/// Bytes of the register block.
pub const BYTES: u16 = 12;
/// Slots of the bus, of which the first is the host bridge's.
pub const SLOTS: u8 = 32;
const FILLED: u64 = 0;
const REMOVING: u64 = 4;
const EJECT: u64 = 8;

/// The controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    filled: u32,
    removing: u32,
    /// What the guest may eject: what it was asked for and has not yet given up.
    asked: u32,
}

const fn bit(slot: u8) -> u32 {
    1_u32.wrapping_shl(slot as u32)
}

impl Slots {
    /// A slot was filled.
    pub const fn plug(&mut self, slot: u8) {
        self.filled |= bit(slot);
        self.removing &= !bit(slot);
        self.asked &= !bit(slot);
    }

    /// Asks the guest to give a slot up.
    pub const fn unplug(&mut self, slot: u8) {
        self.removing |= bit(slot);
        self.asked |= bit(slot);
    }

    /// Whether the guest was asked to give a slot up.
    pub const fn is_leaving(&self, slot: u8) -> bool {
        self.asked & bit(slot) != 0
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [a, b, c, d] = data else { return };
        let value = match offset {
            FILLED => std::mem::take(&mut self.filled),
            REMOVING => std::mem::take(&mut self.removing),
            _ => 0,
        };
        [*a, *b, *c, *d] = value.to_le_bytes();
    }

    /// Writes a register. Returns the slots that are empty from now on: only those that the guest was asked for, so that nothing goes that its
    /// owner wants to stay.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<u8> {
        let (EJECT, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) else {
            return Vec::new();
        };
        let ejected = u32::from_le_bytes(bytes) & self.asked;
        self.asked &= !ejected;
        self.removing &= !ejected;
        (1..SLOTS).filter(|slot| ejected & bit(*slot) != 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(slots: &mut Slots, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        slots.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn events_are_seen_once_and_only_what_was_asked_for_is_ejected() {
        let mut slots = Slots::default();
        slots.plug(5);
        assert_eq!((read(&mut slots, FILLED), read(&mut slots, FILLED)), (1 << 5, 0));
        assert_eq!(slots.write(EJECT, &[0xff; 4]), [0_u8; 0]);
        slots.unplug(5);
        slots.unplug(31);
        assert_eq!(
            (read(&mut slots, REMOVING), read(&mut slots, REMOVING)),
            (1 << 31 | 1 << 5, 0)
        );
        assert!(slots.is_leaving(5));
        assert_eq!(slots.write(EJECT, &(1_u32 << 5).to_le_bytes()), [5]);
        assert_eq!(slots.write(EJECT, &[0xff; 4]), [31]);
        assert_eq!(slots.write(EJECT, &[0xff; 4]), [0_u8; 0]);
        slots.unplug(5);
        slots.plug(5);
        assert_eq!(slots.write(EJECT, &[0xff; 4]), [0_u8; 0], "another one is there now");
        for (offset, bytes) in [(0, 1), (4, 2), (8, 2), (12, 4), (u64::MAX, 4)] {
            slots.read(offset, &mut [0; 4][..bytes]);
            slots.write(offset, &[0xff; 4][..bytes]);
        }
    }
}
