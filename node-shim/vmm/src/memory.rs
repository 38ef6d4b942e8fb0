//! Guest RAM: where it is and how it is mapped.

use std::fs::File;
use std::io;
use std::sync::Arc;

use node_shim_protocol::config::HugePages;
use node_shim_virtio::device::Memory;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
    MmapRegion,
};

use crate::config::CheckedConfig;
use crate::layout;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Why guest RAM cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// mmap(2) failed.
    #[error("failed to map {bytes} bytes of guest memory: {source}")]
    Map {
        /// Size of the region.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// The host's pool has too few huge pages.
    #[error(
        "failed to take {bytes} bytes of guest memory from the host's huge pages of {pages}: {source}; reserve more of them on the node \
         (/proc/sys/vm/nr_hugepages, or hugepagesz= and hugepages= of its command line), or leave memory.hugePages out"
    )]
    HugePages {
        /// Size of the region.
        bytes: u64,
        /// Of which pages.
        pages: HugePages,
        /// Why.
        source: io::Error,
    },
    /// The contents of memory cannot be read.
    #[error("failed to read {bytes} bytes of guest memory from their file: {source}")]
    Fill {
        /// Size of the region.
        bytes: u64,
        /// Why.
        source: GuestMemoryError,
    },
    /// The regions do not make a memory map: a defect.
    #[error("failed to build the guest's memory from its regions: {0}")]
    Regions(String),
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// First address.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) size: u64,
}

impl Range {
    /// First address after the range.
    pub(crate) const fn end(self) -> u64 {
        self.start + self.size
    }
}

/// Where `size_bytes` of RAM go: below the hole, and what is left above 4 GiB.
pub(crate) fn ram_ranges(size_bytes: u64) -> Vec<Range> {
    let low = size_bytes.min(layout::HOLE_START);
    let mut ranges = vec![Range { start: 0, size: low }];
    if size_bytes > low {
        ranges.push(Range {
            start: layout::RAM_ABOVE_4G,
            size: size_bytes - low,
        });
    }
    ranges
}

/// Where memory goes that is plugged later: whole blocks of virtio-mem after all RAM. `None` when there is none. It stays below 4 GiB where it
/// can: Linux takes 64 MiB for bounce buffers where memory may be above (`swiotlb_init`).
pub(crate) fn later_range(size_bytes: u64, max_bytes: u64) -> Option<Range> {
    use node_shim_virtio::mem::BLOCK_BYTES;
    let size = max_bytes.saturating_sub(size_bytes) / BLOCK_BYTES * BLOCK_BYTES;
    let end = ram_ranges(size_bytes).last().map_or(0, |range| range.end());
    let near = end.next_multiple_of(layout::LATER_MEMORY_ALIGNMENT_LOW);
    let start = if near + size <= layout::HOLE_START {
        near
    } else {
        end.max(layout::RAM_ABOVE_4G)
            .next_multiple_of(layout::LATER_MEMORY_ALIGNMENT)
    };
    (size > 0).then_some(Range { start, size })
}

/// What a range of the guest's memory map is for (ACPI 6.4, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MapKind {
    /// Usable RAM.
    Ram = 1,
    /// Not for the operating system.
    Reserved = 2,
}

/// The memory map that the guest is given (E820 for bzImage, `hvm_memmap_table` for PVH).
pub(crate) fn memory_map(size_bytes: u64) -> Vec<(Range, MapKind)> {
    let mut map = vec![
        (
            Range {
                start: 0,
                size: layout::LOW_RAM_END,
            },
            MapKind::Ram,
        ),
        (
            Range {
                start: layout::LOW_RAM_END,
                size: layout::HIGH_RAM_START - layout::LOW_RAM_END,
            },
            MapKind::Reserved,
        ),
    ];
    for range in ram_ranges(size_bytes) {
        let start = range.start.max(layout::HIGH_RAM_START);
        map.push((
            Range {
                start,
                size: range.end() - start,
            },
            MapKind::Ram,
        ));
    }
    map.push((
        Range {
            start: layout::ECAM,
            size: layout::ECAM_SIZE,
        },
        MapKind::Reserved,
    ));
    map.sort_by_key(|(range, _)| range.start);
    map
}

/// How much memory a guest has, and of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bytes at the start.
    pub(crate) size_bytes: u64,
    /// What is plugged later.
    pub(crate) later: Option<Range>,
    /// Where it is taken from.
    pub(crate) huge_pages: Option<HugePages>,
}

impl Plan {
    /// Of a configuration.
    pub(crate) fn of(config: &CheckedConfig) -> Self {
        Self {
            size_bytes: config.memory_bytes,
            later: later_range(config.memory_bytes, config.memory_max_bytes),
            huge_pages: config.huge_pages,
        }
    }

    /// Memory that nothing is plugged into.
    #[cfg(test)]
    pub(crate) const fn fixed(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            later: None,
            huge_pages: None,
        }
    }

    /// Bytes of all memory that [`map`] maps.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.size_bytes + self.later.map_or(0, |range| range.size)
    }
}

/// Maps guest RAM, and the range of memory that is plugged later: anonymous, private, not reserved in advance, with transparent huge pages
/// where the host has them; or from the host's pool of huge pages, which are then reserved.
///
/// With a file, memory starts as its contents, which are the ranges one after the other and are not changed for as long as the memory
/// lives. Pages are read when they are first used, and copied when they are first written: the file stays what it is. Huge pages cannot
/// do that: they are filled at once.
pub(crate) fn map(plan: &Plan, file: Option<&File>) -> Result<Arc<Memory>, MemoryError> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    if let Some(pages) = plan.huge_pages {
        let memory = map_ranges(plan, |bytes| map_huge(bytes, pages))?;
        file.map_or(Ok(()), |file| fill(&memory, file))?;
        return Ok(Arc::new(memory));
    }
    let mut offset = 0;
    let memory = map_ranges(plan, |bytes| {
        let address = map_aligned(bytes)?;
        let Some(file) = file else {
            return Ok(address);
        };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is exactly one new mapping that nobody knows of yet.
        unsafe { mmap(address, bytes, protection, flags, file, offset) }?;
        offset += bytes as u64;
        Ok(address)
    })?;
    for region in memory.iter() {
        advise(region);
    }
    Ok(Arc::new(memory))
}

/// Reads a file into memory, region by region.
fn fill(memory: &Memory, mut file: &File) -> Result<(), MemoryError> {
    for region in memory.iter() {
        let bytes = usize::try_from(region.len()).map_err(|error| MemoryError::Regions(error.to_string()))?;
        let read = region.read_exact_volatile_from(MemoryRegionAddress(0), &mut file, bytes);
        read.map_err(|source| MemoryError::Fill {
            bytes: region.len(),
            source,
        })?;
    }
    Ok(())
}

/// Maps each range with `map`.
fn map_ranges(
    plan: &Plan,
    mut map: impl FnMut(usize) -> rustix::io::Result<*mut std::ffi::c_void>,
) -> Result<Memory, MemoryError> {
    let mut regions = Vec::new();
    for range in ram_ranges(plan.size_bytes).into_iter().chain(plan.later) {
        let bytes = usize::try_from(range.size).map_err(|error| MemoryError::Regions(error.to_string()))?;
        let address = map(bytes).map_err(|source| match plan.huge_pages {
            Some(pages) => MemoryError::HugePages {
                bytes: range.size,
                pages,
                source: source.into(),
            },
            None => MemoryError::Map {
                bytes: range.size,
                source: source.into(),
            },
        })?;
        // SAFETY: the mapping is new, has this size, and nobody takes it away: RAM stays until the process ends.
        let mapping = unsafe {
            MmapRegion::<()>::build_raw(
                address.cast(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            )
        };
        let mapping = mapping.map_err(|error| MemoryError::Regions(error.to_string()))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
            .ok_or_else(|| MemoryError::Regions(format!("a region at {:#x} overflows", range.start)))?;
        regions.push(region);
    }
    Memory::from_regions(regions).map_err(|error| MemoryError::Regions(error.to_string()))
}

/// Maps memory of the host's pool, which is reserved by that: without `MAP_NORESERVE` no later access fails (mmap(2), `MAP_HUGETLB`).
fn map_huge(bytes: usize, pages: HugePages) -> rustix::io::Result<*mut std::ffi::c_void> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let size = match pages {
        HugePages::TwoMebibytes => MapFlags::HUGE_2MB,
        HugePages::OneGibibyte => MapFlags::HUGE_1GB,
    };
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping where the kernel has room.
    unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            bytes,
            protection,
            MapFlags::PRIVATE | MapFlags::HUGETLB | size,
        )
    }
}

/// Maps memory at a multiple of [`HUGE_PAGE`]: only where the addresses of guest and host agree in their low 21 bits can KVM map a huge
/// page as one. Kernels before 6.7 do not do that by themselves, and every small page costs an exit when the guest first uses it.
fn map_aligned(bytes: usize) -> rustix::io::Result<*mut std::ffi::c_void> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    let total = bytes.checked_add(HUGE_PAGE).ok_or(rustix::io::Errno::NOMEM)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping where the kernel has room.
    let start = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            total,
            protection,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?;
    let head = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let aligned = start.wrapping_byte_add(head);
    for (address, length) in [(start, head), (aligned.wrapping_byte_add(bytes), HUGE_PAGE - head)] {
        if length > 0 {
            // SAFETY: the part of the new mapping before or after what is kept; nobody knows of it.
            unsafe { munmap(address, length) }?;
        }
    }
    Ok(aligned)
}

/// Empties guest RAM: every page reads as zero again, also where it was a file's. KVM follows.
pub(crate) fn clear(memory: &Memory, huge_pages: Option<HugePages>) -> Result<(), MemoryError> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
    for region in memory.iter() {
        let bytes = usize::try_from(region.len()).map_err(|error| MemoryError::Regions(error.to_string()))?;
        let address = region.as_ptr().cast();
        let result = if huge_pages.is_some() {
            // SAFETY: the range is exactly one live anonymous mapping that nobody holds Rust references into; it stays mapped.
            unsafe { madvise(address, bytes, Advice::LinuxDontNeed) }
        } else {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            // SAFETY: the range is exactly one live private mapping that nobody holds Rust references into; it is replaced by an empty
            // one.
            unsafe { mmap_anonymous(address, bytes, protection, flags) }.map(drop)
        };
        result.map_err(|source| MemoryError::Map {
            bytes: region.len(),
            source: source.into(),
        })?;
        advise(region);
    }
    Ok(())
}

/// Asks for huge pages, and keeps guest memory out of core dumps. Both are optimisations: a refusal changes nothing else.
fn advise(region: &GuestRegionMmap<()>) {
    let Ok(bytes) = usize::try_from(region.len()) else {
        return;
    };
    for advice in [rustix::mm::Advice::LinuxHugepage, rustix::mm::Advice::LinuxDontDump] {
        // SAFETY: the range is exactly one live mapping, and neither advice changes its contents.
        let _ = unsafe { rustix::mm::madvise(region.as_ptr().cast(), bytes, advice) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_goes_around_the_hole() {
        let range = |start, size| Range { start, size };
        let cases = [
            (64 * MIB, vec![range(0, 64 * MIB)]),
            (3 * GIB, vec![range(0, 3 * GIB)]),
            (3 * GIB + 4096, vec![range(0, 3 * GIB), range(4 * GIB, 4096)]),
            (8 * GIB, vec![range(0, 3 * GIB), range(4 * GIB, 5 * GIB)]),
        ];
        for (size, expected) in cases {
            assert_eq!(ram_ranges(size), expected, "{size}");
        }
    }

    #[test]
    fn memory_that_comes_later_is_whole_blocks_after_all_ram() {
        for (size, max, expected) in [
            (64 * MIB, 64 * MIB, None),
            (64 * MIB, 65 * MIB, None),
            (64 * MIB, 32 * MIB, None),
            (64 * MIB, 67 * MIB, Some((128 * MIB, 2 * MIB))),
            (2 * GIB, 3 * GIB, Some((2 * GIB, GIB))),
            (2 * GIB, 3 * GIB + 2 * MIB, Some((4 * GIB, GIB + 2 * MIB))),
            (4 * GIB, 12 * GIB, Some((6 * GIB, 8 * GIB))),
            (3 * GIB, 4 * GIB, Some((4 * GIB, GIB))),
        ] {
            let expected = expected.map(|(start, size)| Range { start, size });
            assert_eq!(later_range(size, max), expected, "{size} {max}");
        }
    }

    #[test]
    fn the_map_covers_all_ram_but_the_bios_area_and_never_overlaps() {
        for size in [64 * MIB, 3 * GIB, 3 * GIB + 4096, 64 * GIB] {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(pair[0].0.end() <= pair[1].0.start, "{map:x?}");
            }
            let ram: u64 = map
                .iter()
                .filter(|(_, kind)| *kind == MapKind::Ram)
                .map(|(range, _)| range.size)
                .sum();
            assert_eq!(ram, size - (layout::HIGH_RAM_START - layout::LOW_RAM_END));
        }
    }

    #[test]
    fn memory_that_cannot_be_a_files_is_filled_from_it() {
        use std::os::unix::fs::FileExt;
        let plan = Plan {
            later: later_range(MIB, 3 * MIB),
            ..Plan::fixed(MIB)
        };
        let memory = map(&plan, None).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(plan.mapped_bytes()).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"last", plan.mapped_bytes() - 4).unwrap();
        fill(&memory, &file).unwrap();
        let mut found = [0; 5];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert_eq!(&found, b"first");
        let last = plan.later.unwrap().end() - 4;
        memory.read_slice(&mut found[..4], GuestAddress(last)).unwrap();
        assert_eq!(&found[..4], b"last");
        file.set_len(MIB).unwrap();
        assert!(fill(&memory, &file).is_err(), "the file is too short");
    }

    #[test]
    fn mapped_memory_has_the_size_that_was_asked_for() {
        let later = later_range(16 * MIB, 21 * MIB);
        let plan = Plan {
            size_bytes: 16 * MIB,
            later,
            huge_pages: None,
        };
        assert_eq!(plan.mapped_bytes(), 20 * MIB);
        let memory = map(&plan, None).unwrap();
        assert_eq!(memory.iter().map(GuestMemoryRegion::len).sum::<u64>(), 20 * MIB);
        assert!(
            memory
                .iter()
                .all(|region| region.as_ptr().addr().is_multiple_of(HUGE_PAGE))
        );
    }
}
