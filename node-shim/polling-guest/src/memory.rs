//! What lies where beyond the guest's own image, which ends below 16 MiB, and what the compiler wants of memory.
//!
//! Everything is mapped one to one, so that an address is what a device is told. What devices write is read through raw pointers and as
//! volatile, never as a reference.

use core::arch::asm;

/// Queues and small buffers: 16 pages for each of [`QUEUES`].
const QUEUES_START: u64 = 0x100_0000;
/// Queues that this guest has at most.
const QUEUES: u64 = 8;
const QUEUE_BYTES: u64 = 0x1_0000;
/// Buffers for data.
pub(crate) const DATA: u64 = 0x200_0000;
/// Bytes of them: a guest needs 80 MiB in all.
pub(crate) const DATA_BYTES: u64 = 0x300_0000;

/// Memory for the queue with this number.
pub(crate) fn of_queue(number: u64) -> u64 {
    assert!(number < QUEUES);
    QUEUES_START + number * QUEUE_BYTES
}

/// Reads a device's register, or memory that a device writes to.
pub(crate) fn read<T: Copy>(address: u64) -> T {
    // SAFETY: callers name registers of a BAR, or memory above the image, which Rust knows nothing of; all of it is mapped.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes a device's register, or memory that a device reads.
pub(crate) fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as above.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Copies bytes. The compiler calls it by this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

/// Fills bytes. The compiler calls it by this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") value as u8, options(nostack, preserves_flags));
    }
    to
}

/// Compares bytes. The compiler calls it by this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    for index in 0..bytes {
        // SAFETY: the caller's promise.
        let (left, right) = unsafe { (left.add(index).read_volatile(), right.add(index).read_volatile()) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}
