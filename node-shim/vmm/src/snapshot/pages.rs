//! Guest memory in a file: written without its zeros, mapped back without reading it.
//!
//! The file has the regions of guest memory one after the other; pages of zeros are holes in it. A page that the guest has never touched is
//! found in /proc/self/pagemap, so that looking at it does not make it (Linux Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use node_shim_virtio::device::Memory;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

const PAGE: usize = 4096;
/// Pages that are looked at together.
const CHUNK_PAGES: usize = 64;
const CHUNK: usize = CHUNK_PAGES * PAGE;
/// Page map: the page is in memory, or in swap.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Writes guest memory, of which nothing changes meanwhile, to an empty file. Returns the bytes that are not holes.
///
/// `mapped_file` says that the memory is a private mapping of a file: then a page that is not there is not zero but the file's.
pub(super) fn write(memory: &Memory, mapped_file: bool, file: &File) -> io::Result<u64> {
    let total = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(total)?;
    let pagemap = if mapped_file {
        None
    } else {
        File::open("/proc/self/pagemap").ok()
    };
    let mut buffer = vec![0; CHUNK];
    let (mut base, mut written) = (0, 0);
    for region in memory.iter() {
        let host = region.as_ptr().addr();
        let mut offset = 0;
        while offset < region.len() {
            let left = usize::try_from(region.len() - offset).unwrap_or(CHUNK);
            let length = left.min(CHUNK);
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            if is_touched(pagemap.as_ref(), host + at, length) {
                let chunk = &mut buffer[..length];
                region
                    .read_slice(chunk, MemoryRegionAddress(offset))
                    .map_err(io::Error::other)?;
                written += write_chunk(file, chunk, base + offset)?;
            }
            offset += length as u64;
        }
        base += region.len();
    }
    Ok(written)
}

/// Whether any page of the range was ever touched; yes where that cannot be known.
fn is_touched(pagemap: Option<&File>, address: usize, length: usize) -> bool {
    let Some(pagemap) = pagemap else {
        return true;
    };
    let mut entries = [0; CHUNK_PAGES * 8];
    let entries = &mut entries[..length.div_ceil(PAGE) * 8];
    if pagemap.read_exact_at(entries, (address / PAGE * 8) as u64).is_err() {
        return true;
    }
    entries
        .chunks_exact(8)
        .map(|entry| u64::from_le_bytes(entry.try_into().unwrap_or_default()))
        .any(|entry| entry & (PRESENT | SWAPPED) != 0)
}

/// Writes the runs of pages that are not zero.
fn write_chunk(file: &File, chunk: &[u8], offset: u64) -> io::Result<u64> {
    let mut written = 0;
    let mut run: Option<usize> = None;
    for (index, page) in chunk.chunks(PAGE).enumerate() {
        let at = index * PAGE;
        match (is_zero(page), run) {
            (false, None) => run = Some(at),
            (true, Some(start)) => {
                file.write_all_at(&chunk[start..at], offset + start as u64)?;
                written += at - start;
                run = None;
            }
            (true, None) | (false, Some(_)) => {}
        }
    }
    if let Some(start) = run {
        file.write_all_at(&chunk[start..], offset + start as u64)?;
        written += chunk.len() - start;
    }
    Ok(written as u64)
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory;

    #[test]
    fn memory_comes_back_and_untouched_pages_are_holes() {
        let bytes = 64_u64 << 20;
        let memory = memory::map(&crate::memory::Plan::fixed(bytes), None).unwrap();
        for at in [0, 4096 * 3 + 5, (1 << 20) - 1, bytes - 8] {
            memory.write_slice(b"mark", GuestAddress(at.min(bytes - 4))).unwrap();
        }
        memory.write_slice(&[0; 4096], GuestAddress(32 << 20)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let written = write(&memory, false, &file).unwrap();
        assert_eq!(written, 5 * 4096, "one of the marks is on two pages");
        assert_eq!(file.metadata().unwrap().len(), bytes);
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);

        let back = memory::map(&crate::memory::Plan::fixed(bytes), Some(&file)).unwrap();
        for at in [0, 4096 * 3 + 5, (1 << 20) - 1, bytes - 8] {
            let mut mark = [0; 4];
            back.read_slice(&mut mark, GuestAddress(at)).unwrap();
            assert_eq!(&mark, b"mark", "{at:#x}");
        }
        // What is written to it stays out of the file, and both are in the next snapshot.
        back.write_slice(b"more", GuestAddress(16 << 20)).unwrap();
        let next = tempfile::tempfile().unwrap();
        assert_eq!(write(&back, true, &next).unwrap(), 6 * 4096);
        let mut from_file = [0; 4];
        file.read_exact_at(&mut from_file, 16 << 20).unwrap();
        assert_eq!(from_file, [0; 4]);
        // A reset leaves nothing of the file.
        memory::clear(&back, None).unwrap();
        let mut mark = [1; 4];
        back.read_slice(&mut mark, GuestAddress(0)).unwrap();
        assert_eq!(mark, [0; 4]);
    }
}
