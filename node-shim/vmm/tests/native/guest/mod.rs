//! The guest of these tests: see `guest.s`. It is assembled into the test itself and made an ELF file with a PVH entry point.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata.node_shim_test_guest, \"a\"",
    include_str!("guest.s"),
    ".popsection"
);

unsafe extern "C" {
    static node_shim_test_guest_start: u8;
    static node_shim_test_guest_end: u8;
}

/// Where the guest is loaded and entered.
const ENTRY: u32 = 0x10_0000;
/// Bytes before the code: the ELF header and two program headers.
const HEADERS_BYTES: u32 = 64 + 2 * 56;
/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen include/public/elfnote.h).
const NOTE_ENTRY: u32 = 18;

fn code() -> &'static [u8] {
    let (start, end) = (
        &raw const node_shim_test_guest_start,
        &raw const node_shim_test_guest_end,
    );
    // SAFETY: both labels are in one section, in this order, and nothing writes to it.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// The guest as a kernel file.
pub(crate) fn kernel() -> Vec<u8> {
    let code = code();
    let length = u32::try_from(code.len()).unwrap();
    let mut file = Vec::new();
    let mut put = |bytes: u32, value: u32| file.extend_from_slice(&u64::from(value).to_le_bytes()[..bytes as usize]);
    // Identification: 64 bits, little-endian, version 1.
    put(4, u32::from_le_bytes(*b"\x7fELF"));
    put(4, 0x0001_0102);
    put(8, 0);
    // Executable, x86-64, version, entry, program headers, section headers, flags.
    for (bytes, value) in [(2, 2), (2, 62), (4, 1), (8, ENTRY), (8, 64), (8, 0), (4, 0)] {
        put(bytes, value);
    }
    // Sizes and numbers of headers.
    for value in [64, 56, 2, 0, 0, 0] {
        put(2, value);
    }
    // PT_LOAD of the code, readable, writable and executable.
    for (bytes, value) in [
        (4, 1),
        (4, 7),
        (8, HEADERS_BYTES),
        (8, ENTRY),
        (8, ENTRY),
        (8, length),
        (8, length),
        (8, 4),
    ] {
        put(bytes, value);
    }
    // PT_NOTE.
    for (bytes, value) in [
        (4, 4),
        (4, 4),
        (8, HEADERS_BYTES + length),
        (8, 0),
        (8, 0),
        (8, 20),
        (8, 20),
        (8, 4),
    ] {
        put(bytes, value);
    }
    file.extend_from_slice(code);
    for word in [4, 4, NOTE_ENTRY, u32::from_le_bytes(*b"Xen\0"), ENTRY] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file
}
