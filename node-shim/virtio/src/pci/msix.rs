//! MSI-X (PCI 3.0, section 6.8.2): the vector table and the pending bits, between a device's triggers and the VMM's irqfds.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::lock::lock;
use crate::transport::{Interrupts, MsiMessage};

/// Bytes of a table entry: address, data, control.
pub const ENTRY_BYTES: usize = 16;
/// Vectors that one 64-bit word of pending bits holds; more than a function of ours has.
pub const MAX_VECTORS: u16 = 64;
/// Message control: MSI-X is enabled.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: every vector is masked.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Writable bits of the message control register.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
/// Vector control: this vector is masked; it is so after reset.
const VECTOR_MASKED: u32 = 1;

/// One function's vectors. Devices trigger through it, on any thread; it holds back what the guest masked. Its lock is the innermost of
/// the transport's.
pub struct Msix {
    interrupts: Arc<dyn Interrupts>,
    table: Mutex<Table>,
}

struct Table {
    entries: Vec<Entry>,
    pending: u64,
    control: u16,
}

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    /// What was last routed, so that rewriting a register with its own value costs no system call.
    routed: Option<MsiMessage>,
}

/// The table as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Address, data and control of each entry.
    entries: Vec<(u64, u32, u32)>,
    pending: u64,
    control: u16,
}

const RESET_ENTRY: Entry = Entry {
    address: 0,
    data: 0,
    control: VECTOR_MASKED,
    routed: None,
};

impl Msix {
    /// A table of `vectors` masked entries, at most [`MAX_VECTORS`].
    pub fn new(vectors: u16, interrupts: Arc<dyn Interrupts>) -> Self {
        let entries = vec![RESET_ENTRY; usize::from(vectors.min(MAX_VECTORS))];
        Self {
            interrupts,
            table: Mutex::new(Table {
                entries,
                pending: 0,
                control: 0,
            }),
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.lock().entries.len()).unwrap_or(MAX_VECTORS)
    }

    /// The guest wrote the message control register.
    pub fn set_control(&self, control: u16) {
        let mut table = self.lock();
        table.control = control & CONTROL_WRITABLE;
        for vector in 0..table.entries.len() {
            table.update(vector, self.interrupts.as_ref());
        }
    }

    /// Reads the vector table; what is beyond its end reads as zero.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let table = self.lock();
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(index);
            *byte = table
                .entries
                .get(at / ENTRY_BYTES)
                .map_or(0, |entry| entry.bytes()[at % ENTRY_BYTES]);
        }
    }

    /// Writes the vector table; what is beyond its end is ignored.
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        let mut table = self.lock();
        let mut index = 0;
        while index < data.len() {
            let at = offset.saturating_add(index);
            let (vector, start) = (at / ENTRY_BYTES, at % ENTRY_BYTES);
            let count = (ENTRY_BYTES - start).min(data.len() - index);
            let Some(entry) = table.entries.get_mut(vector) else {
                return;
            };
            let mut bytes = entry.bytes();
            bytes[start..start + count].copy_from_slice(&data[index..index + count]);
            entry.set_bytes(bytes);
            table.update(vector, self.interrupts.as_ref());
            index += count;
        }
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let pending = self.lock().pending.to_le_bytes();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset
                .checked_add(index)
                .and_then(|at| pending.get(at))
                .copied()
                .unwrap_or(0);
        }
    }

    /// Forgets interrupts that a masked vector still owes, as a device reset does.
    pub fn clear_pending(&self) {
        self.lock().pending = 0;
    }

    /// Back to the state after power-on: disabled, every vector masked.
    pub fn reset(&self) {
        let mut table = self.lock();
        table.control = 0;
        table.pending = 0;
        for vector in 0..table.entries.len() {
            table.entries[vector] = Entry {
                routed: table.entries[vector].routed,
                ..RESET_ENTRY
            };
            table.update(vector, self.interrupts.as_ref());
        }
    }

    /// The table, to be saved.
    pub fn save(&self) -> MsixState {
        let table = self.lock();
        let entries = table.entries.iter();
        MsixState {
            entries: entries
                .map(|entry| (entry.address, entry.data, entry.control))
                .collect(),
            pending: table.pending,
            control: table.control,
        }
    }

    /// Takes over a saved table, and routes its vectors; what masked vectors owe they go on owing. `false`, and nothing happens, when it
    /// has another number of vectors.
    pub fn restore(&self, state: &MsixState) -> bool {
        let mut table = self.lock();
        if state.entries.len() != table.entries.len() {
            return false;
        }
        table.control = state.control & CONTROL_WRITABLE;
        table.pending = state.pending;
        for (vector, (address, data, control)) in state.entries.iter().enumerate() {
            let mut bytes = [0; ENTRY_BYTES];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&data.to_le_bytes());
            bytes[12..].copy_from_slice(&control.to_le_bytes());
            table.entries[vector].set_bytes(bytes);
            table.update(vector, self.interrupts.as_ref());
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Interrupts for Msix {
    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        self.interrupts.route(vector, message)
    }

    fn trigger(&self, vector: u16) -> io::Result<()> {
        let mut table = self.lock();
        let Some(entry) = table.entries.get(usize::from(vector)) else {
            return Ok(());
        };
        if entry.routed.is_some() {
            return self.interrupts.trigger(vector);
        }
        // A disabled function owes nothing; a masked vector does (PCI 3.0, 6.8.3.4).
        if table.control & CONTROL_ENABLE != 0 {
            table.pending |= 1 << vector;
        }
        Ok(())
    }
}

impl Table {
    /// Brings one vector's route in line with its registers and delivers what it owed.
    fn update(&mut self, vector: usize, interrupts: &dyn Interrupts) {
        let enabled = self.control & CONTROL_WRITABLE == CONTROL_ENABLE;
        let entry = &mut self.entries[vector];
        let message = (enabled && entry.control & VECTOR_MASKED == 0).then_some(MsiMessage {
            address: entry.address,
            data: entry.data,
        });
        let Ok(number) = u16::try_from(vector) else { return };
        if entry.routed != message {
            // A route that KVM refuses is one that the guest chose badly: it gets no interrupts from it.
            entry.routed = interrupts.route(number, message).is_ok().then_some(message).flatten();
        }
        let owed = 1 << vector;
        if entry.routed.is_some() && self.pending & owed != 0 {
            self.pending &= !owed;
            // An eventfd that cannot be written is full, so the interrupt is on its way already.
            let _ = interrupts.trigger(number);
        }
    }
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    fn set_bytes(&mut self, bytes: [u8; ENTRY_BYTES]) {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        self.address = u64::from(word(0) & !0b11) | u64::from(word(4)) << 32;
        self.data = word(8);
        self.control = word(12) & VECTOR_MASKED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::InterruptLog;

    const ENABLED: u16 = CONTROL_ENABLE;

    fn msix() -> (Arc<InterruptLog>, Msix) {
        let log = Arc::new(InterruptLog::default());
        (log.clone(), Msix::new(3, log))
    }

    fn program(msix: &Msix, vector: usize, masked: bool) {
        msix.write_table(vector * 16, &0xfee0_1000_u64.to_le_bytes());
        msix.write_table(vector * 16 + 8, &0x41_u32.to_le_bytes());
        msix.write_table(vector * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    #[test]
    fn a_vector_is_routed_once_it_is_enabled_and_unmasked() {
        let (log, msix) = msix();
        program(&msix, 1, false);
        msix.trigger(1).unwrap();
        assert_eq!(log.triggered(), [0_u16; 0]);
        msix.set_control(ENABLED);
        assert_eq!(
            log.route_of(1),
            Some(MsiMessage {
                address: 0xfee0_1000,
                data: 0x41
            })
        );
        assert_eq!(
            log.triggered(),
            [0_u16; 0],
            "nothing is owed from before the function was enabled"
        );
        msix.trigger(1).unwrap();
        assert_eq!(log.triggered(), [1]);
    }

    #[test]
    fn a_masked_vector_owes_its_interrupt_until_it_is_unmasked() {
        let (log, msix) = msix();
        msix.set_control(ENABLED | CONTROL_FUNCTION_MASK);
        program(&msix, 2, true);
        msix.trigger(2).unwrap();
        msix.trigger(2).unwrap();
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending, 4_u64.to_le_bytes());
        msix.set_control(ENABLED);
        assert_eq!(log.triggered(), [0_u16; 0], "still masked by itself");
        program(&msix, 2, false);
        assert_eq!(log.triggered(), [2]);
        msix.read_pending(0, &mut pending);
        assert_eq!(pending, [0; 8]);
    }

    #[test]
    fn what_is_beyond_the_table_is_ignored() {
        let (log, msix) = msix();
        msix.set_control(0xffff);
        msix.write_table(40, &[0xff; 64]);
        msix.write_table(usize::MAX, &[1; 4]);
        let mut data = [0xaa; 20];
        msix.read_table(usize::MAX - 3, &mut data);
        msix.read_pending(usize::MAX - 3, &mut data);
        assert_eq!(data, [0; 20]);
        msix.trigger(77).unwrap();
        assert_eq!(log.triggered(), [0_u16; 0]);
    }
}
