//! Tables that `acpi_tables` does not make as they are needed here: the WDAT of the watchdog and the SRAT of memory that comes later.

use acpi_tables::sdt::Sdt;
use node_shim_chips::watchdog;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;
use crate::memory::Range;

/// The watchdog action table (Microsoft, Hardware Watchdog Timers Design Specification, 1.1): which register is for what.
#[allow(
    clippy::cast_possible_truncation,
    reason = "offsets of registers and a tick are small"
)]
pub(super) fn wdat() -> Sdt {
    use watchdog::{CONTROL, EXPIRED, PERIOD, REMAINING, RESET, RUNNING};
    const READ_VALUE: u8 = 0;
    const READ_COUNTDOWN: u8 = 1;
    const WRITE_VALUE: u8 = 2;
    const WRITE_COUNTDOWN: u8 = 3;
    /// Other bits of the register stay as they are.
    const PRESERVE: u8 = 0x80;
    const ALL: u32 = u32::MAX;
    // Action, instruction, register, value, mask.
    let entries: [(u8, u8, u64, u32, u32); 10] = [
        (1, WRITE_VALUE, RESET, 1, ALL),
        (4, READ_COUNTDOWN, REMAINING, 0, ALL),
        (5, READ_COUNTDOWN, PERIOD, 0, ALL),
        (6, WRITE_COUNTDOWN, PERIOD, 0, ALL),
        (8, READ_VALUE, CONTROL, RUNNING, RUNNING),
        (9, WRITE_VALUE, CONTROL, RUNNING, RUNNING),
        (10, READ_VALUE, CONTROL, 0, RUNNING),
        (11, WRITE_VALUE, CONTROL, 0, RUNNING),
        (32, READ_VALUE, CONTROL, EXPIRED, EXPIRED),
        (33, WRITE_VALUE | PRESERVE, CONTROL, EXPIRED, EXPIRED),
    ];
    let mut table = Sdt::new(*b"WDAT", 36, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&32_u32.to_le_bytes());
    // No PCI device: segment, of two bytes of which Linux wants the second to be 0, bus, device, function; reserved.
    table.append_slice(&[0xff, 0, 0xff, 0xff, 0xff]);
    table.append_slice(&[0; 3]);
    for number in [
        watchdog::TICK.as_millis() as u32,
        watchdog::TICKS_MAX,
        watchdog::TICKS_MIN,
    ] {
        table.append_slice(&number.to_le_bytes());
    }
    // Enabled; does not count while the machine sleeps.
    table.append_slice(&[0x81, 0, 0, 0]);
    table.append_slice(&(entries.len() as u32).to_le_bytes());
    for (action, instruction, register, value, mask) in entries {
        table.append_slice(&[action, instruction, 0, 0]);
        // Generic address: port, 32 bits from bit 0, accessed as 32 bits.
        table.append_slice(&[1, 32, 0, 3]);
        table.append_slice(&(u64::from(layout::WATCHDOG) + register).to_le_bytes());
        table.append_slice(&value.to_le_bytes());
        table.append_slice(&mask.to_le_bytes());
    }
    table
}

/// The system resource affinity table (ACPI 6.4, 5.2.16): one node with everything in it, and the range where memory may come later, from
/// which Linux knows how far its addresses can reach.
pub(super) fn srat(vcpus_max: u8, ram: &[Range], later: Range) -> Sdt {
    const ENABLED: u32 = 1;
    const HOT_PLUGGABLE: u32 = 2;
    let mut table = Sdt::new(*b"SRAT", 36, 3, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&1_u32.to_le_bytes());
    table.append_slice(&[0; 8]);
    for id in 0..vcpus_max {
        // Type 0: local APIC; node 0; enabled; SAPIC EID, more of the node, clock domain.
        table.append_slice(&[0, 16, 0, id, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    let later = std::iter::once((&later, ENABLED | HOT_PLUGGABLE));
    for (range, flags) in ram.iter().map(|range| (range, ENABLED)).chain(later) {
        // Type 1: memory; node 0; reserved.
        table.append_slice(&[1, 40, 0, 0, 0, 0, 0, 0]);
        table.append_slice(&range.start.to_le_bytes());
        table.append_slice(&range.size.to_le_bytes());
        table.append_slice(&[0; 4]);
        table.append_slice(&flags.to_le_bytes());
        table.append_slice(&[0; 8]);
    }
    table
}
