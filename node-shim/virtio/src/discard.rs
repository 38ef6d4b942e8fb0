//! Gives pages of guest memory back to the host: they read as zero afterwards, or as what a mapped file has there.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::device::Memory;

/// Bytes of a host page (x86-64).
pub const PAGE_BYTES: u64 = 4096;

/// Whether guest memory is of the host's pool of huge pages. What such a mapping gives back is anybody's: its own next access may then find
/// the pool empty, which kills it (`hugetlbfs_reserv.rst`). So nothing is given back.
pub fn is_from_pool(memory: &Memory) -> bool {
    memory.iter().any(|region| region.flags() & libc::MAP_HUGETLB != 0)
}

/// Discards the whole pages of a range, all of which must be guest memory. Returns the bytes that were discarded: none where memory
/// [`is_from_pool`].
///
/// # Errors
/// `InvalidInput` when a byte of the range is not guest memory: then nothing was discarded. Otherwise of `madvise(2)`.
pub fn discard(memory: &Memory, address: GuestAddress, length: u64) -> io::Result<u64> {
    let end = address.0.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
    let start = address.0.checked_next_multiple_of(PAGE_BYTES).unwrap_or(u64::MAX);
    let end_page = end / PAGE_BYTES * PAGE_BYTES;
    let bytes = usize::try_from(length).map_err(io::Error::other)?;
    if !GuestMemoryBackend::check_range(memory, address, bytes) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if start >= end_page || is_from_pool(memory) {
        return Ok(0);
    }
    let whole = usize::try_from(end_page - start).map_err(io::Error::other)?;
    for slice in GuestMemoryBackend::get_slices(memory, GuestAddress(start), whole) {
        let slice = slice.map_err(io::Error::other)?;
        let first = slice.ptr_guard_mut().as_ptr();
        // SAFETY: the slice is a part of one live mapping of guest memory, into which nobody holds Rust references; its pages stay
        // mapped, and only what the guest finds in them changes.
        unsafe { rustix::mm::madvise(first.cast(), slice.len(), rustix::mm::Advice::LinuxDontNeed) }?;
    }
    Ok(end_page - start)
}

/// Bytes of guest memory of all regions.
pub fn total_bytes(memory: &Memory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestRegionMmap, MmapRegion};

    use super::*;
    use crate::testing::driver::{peek, put};
    use crate::testing::{MEMORY_BYTES, guest_memory};

    #[test]
    fn whole_pages_go_and_their_neighbours_stay() {
        let memory = guest_memory();
        put(&memory, 0x1000, &[7; 0x4000]);
        assert_eq!(discard(&memory, GuestAddress(0x1800), 0x2000).unwrap(), 0x1000);
        assert_eq!(peek(&memory, 0x1fff, 1), [7]);
        assert_eq!(peek(&memory, 0x2000, 0x1000), vec![0; 0x1000]);
        assert_eq!(peek(&memory, 0x3000, 1), [7]);
        assert_eq!(discard(&memory, GuestAddress(0x3001), 0xffe).unwrap(), 0);
        assert_eq!(peek(&memory, 0x3000, 0x1000), vec![7; 0x1000]);
    }

    #[test]
    fn what_is_of_the_pool_of_huge_pages_stays() {
        let plain = guest_memory();
        put(&plain, 0, &[7; 0x1000]);
        let region = plain.iter().next().unwrap();
        // SAFETY: the mapping is `plain`'s, which lives longer. Its flags are not its own: what is tested is that they are looked at.
        let mapping = unsafe {
            MmapRegion::<()>::build_raw(
                region.as_ptr(),
                MEMORY_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB,
            )
        };
        let region = GuestRegionMmap::new(mapping.unwrap(), GuestAddress(0)).unwrap();
        let memory = Memory::from_regions(vec![region]).unwrap();
        assert!(is_from_pool(&memory) && !is_from_pool(&plain));
        assert_eq!(discard(&memory, GuestAddress(0), 0x1000).unwrap(), 0);
        assert_eq!(peek(&memory, 0, 0x1000), vec![7; 0x1000]);
    }

    #[test]
    fn what_is_not_guest_memory_is_refused() {
        let memory = guest_memory();
        let end = MEMORY_BYTES as u64;
        for (address, length) in [
            (end, 0x1000),
            (end - 0x1000, 0x2000),
            (u64::MAX - 1, 4),
            (0, u64::MAX),
            (0, end + 1),
        ] {
            assert!(
                discard(&memory, GuestAddress(address), length).is_err(),
                "{address:#x} {length:#x}"
            );
        }
        assert_eq!(discard(&memory, GuestAddress(0), end).unwrap(), end);
    }
}
