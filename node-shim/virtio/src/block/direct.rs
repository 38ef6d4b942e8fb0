//! Reads and writes beside the page cache (`O_DIRECT`, open(2)): the kernel takes only what begins and ends at a multiple of the storage's blocks, in the
//! file and in memory. A driver's requests are whole sectors of 512 bytes, wherever in its memory they are.
//!
//! Storage with larger blocks is refused rather than helped: a sector would have to be written together with its neighbours, which another
//! request may be writing.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::file::failed;
use super::storage::{SECTOR_BYTES, StorageError};
use crate::buffers::Buffers;

/// What must divide addresses, offsets and lengths. [`enable`] makes sure that it is enough.
const ALIGNMENT: usize = 512;
/// Bytes that are moved at a time where the driver's buffers cannot be used.
const BOUNCE_BYTES: usize = 256 << 10;

/// Bytes of the host's own that begin at a multiple of [`ALIGNMENT`] and of no power of two above that.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + 4 * ALIGNMENT];
        let twice = 2 * ALIGNMENT;
        let start = bytes.as_ptr().align_offset(twice) + ALIGNMENT;
        Self { bytes, start }
    }

    fn first(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + length]
    }
}

const LARGE_BLOCKS: &str = "is on storage with blocks of more than 512 bytes";
const NO_DIRECT: &str = "is on storage that has no O_DIRECT";

/// Switches the page cache off for a disk's file, if it takes requests of single sectors then.
///
/// # Errors
/// When the storage cannot do without the page cache, or only in larger blocks.
pub(super) fn enable(file: &File, writable: bool, path: &Path) -> Result<(), StorageError> {
    let refused = |problem| StorageError::Direct {
        path: path.to_owned(),
        problem,
    };
    let set = rustix::fs::fcntl_getfl(file).and_then(|flags| rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT));
    set.map_err(|errno| match errno {
        Errno::INVAL => refused(NO_DIRECT),
        errno => failed("leave out the page cache of", path, errno.into()),
    })?;
    match stated(file) {
        Some(alignment) => alignment.check().map_err(refused),
        None => probe(file, writable).map_err(|errno| match errno {
            Errno::INVAL => refused(LARGE_BLOCKS),
            errno => failed("leave out the page cache of", path, errno.into()),
        }),
    }
}

/// What must divide requests, as the kernel says (statx(2), `STATX_DIOALIGN`).
#[derive(Clone, Copy)]
struct Alignment {
    memory: u32,
    offset: u32,
    /// Where reads take less; else 0.
    read_offset: u32,
}

impl Alignment {
    fn check(self) -> Result<(), &'static str> {
        let most = u32::try_from(ALIGNMENT).unwrap_or(u32::MAX);
        // A file system for whose writes more is better takes less all the same: XFS writes parts of shared blocks through the page cache.
        let offset = if self.read_offset > 0 {
            self.read_offset
        } else {
            self.offset
        };
        if self.memory == 0 || offset == 0 {
            Err(NO_DIRECT)
        } else if offset > most {
            Err(LARGE_BLOCKS)
        } else if self.memory > most {
            Err("is on storage that takes memory in pieces of more than 512 bytes only")
        } else {
            Ok(())
        }
    }
}

/// `None` where the kernel (before 6.1) or the file system does not say it.
fn stated(file: &File) -> Option<Alignment> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let said = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    said.then_some(Alignment {
        memory: stat.stx_dio_mem_align,
        offset: stat.stx_dio_offset_align,
        read_offset: stat.stx_dio_read_offset_align,
    })
}

/// Reads a sector. One of a hole says nothing, because the storage is not asked: where there is nothing else, zeros become zeros.
fn probe(file: &File, writable: bool) -> rustix::io::Result<()> {
    let mut sector = Aligned::new(ALIGNMENT);
    let bytes = sector.first(ALIGNMENT);
    match rustix::fs::seek(file, SeekFrom::Data(0)) {
        Ok(at) => rustix::io::pread(file, bytes, at).map(drop),
        Err(Errno::NXIO) if writable => rustix::io::pwrite(file, bytes, 0).map(drop),
        Err(Errno::NXIO) => Ok(()),
        // A device has no holes.
        Err(_) => rustix::io::pread(file, bytes, 0).map(drop),
    }
}

/// As [`Buffers::read_exact_at`].
pub(super) fn read(file: BorrowedFd<'_>, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
    if buffers.is_aligned(length, ALIGNMENT) {
        return buffers.read_exact_at(file, length, offset);
    }
    if length > buffers.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    in_steps(length, offset, |bytes, at| {
        let count = bytes.len();
        Buffers::over(bytes).read_exact_at(file, count, at)?;
        buffers.fill_from(bytes);
        Ok(())
    })
}

/// As [`Buffers::write_all_at`], with all of them.
pub(super) fn write(file: BorrowedFd<'_>, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
    let length = buffers.len();
    if buffers.is_aligned(length, ALIGNMENT) {
        return buffers.write_all_at(file, length, offset);
    }
    in_steps(length, offset, |bytes, at| {
        let count = buffers.copy_into(bytes);
        Buffers::over(bytes).write_all_at(file, count, at)
    })
}

/// Bytes from anywhere, for whoever looks into a disk. All of them are on the disk, and so are the sectors that they are in.
pub(super) fn read_bytes(file: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let before = usize::try_from(offset % SECTOR_BYTES).map_err(io::Error::other)?;
    let length = (before + bytes.len()).next_multiple_of(ALIGNMENT);
    let mut done = 0;
    let mut skip = before;
    in_steps(length, offset - before as u64, |step, at| {
        let count = step.len();
        Buffers::over(step).read_exact_at(file, count, at)?;
        let found = &step[skip..];
        let taken = found.len().min(bytes.len() - done);
        bytes[done..done + taken].copy_from_slice(&found[..taken]);
        (done, skip) = (done + taken, 0);
        Ok(())
    })
}

/// Goes through whole sectors with bytes of the host's own.
fn in_steps(length: usize, offset: u64, mut step: impl FnMut(&mut [u8], u64) -> io::Result<()>) -> io::Result<()> {
    if !length.is_multiple_of(ALIGNMENT) || !offset.is_multiple_of(SECTOR_BYTES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut own = Aligned::new(length.min(BOUNCE_BYTES));
    let mut done = 0;
    while done < length {
        let count = (length - done).min(BOUNCE_BYTES);
        let at = offset.checked_add(done as u64).ok_or(io::ErrorKind::InvalidInput)?;
        step(own.first(count), at)?;
        done += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::block::{FileStorage, Storage};
    use crate::testing::LoopDevice;

    const DISK_BYTES: usize = 2 << 20;

    /// A disk of bytes that say where they are; `None`, loudly, where this machine's temporary files have no `O_DIRECT` in sectors.
    fn disk(directory: &Path) -> Option<(FileStorage, Vec<u8>)> {
        let path = directory.join("disk");
        let contents: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 3).to_le_bytes()[0]).collect();
        std::fs::write(&path, &contents).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        match FileStorage::writable(file, &path).unwrap().direct(&path) {
            Ok(storage) => Some((storage, contents)),
            Err(error) => {
                eprintln!("\n*** SKIPPED: {error} ***\n");
                None
            }
        }
    }

    #[test]
    fn buffers_anywhere_in_memory_are_read_and_written() {
        let directory = tempfile::tempdir().unwrap();
        let Some((storage, mut contents)) = disk(directory.path()) else {
            return;
        };
        for (start, length, offset) in [
            (0, 512, 512),
            (1, 512, 0),
            (7, 300 << 10, 1024),
            (64, 4096, 4096),
            (3, 1 << 20, 0),
        ] {
            let mut bytes = vec![0; start + length];
            storage
                .read_at(&mut Buffers::over(&mut bytes[start..]), length, offset)
                .unwrap();
            let at = usize::try_from(offset).unwrap();
            assert!(
                bytes[start..] == contents[at..at + length],
                "read {start} {length} {offset}"
            );
            let written = start.to_le_bytes()[0] ^ 0x5a;
            bytes[start..].fill(written);
            storage
                .write_at(&mut Buffers::over(&mut bytes[start..]), offset)
                .unwrap();
            contents[at..at + length].fill(written);
        }
        storage.flush().unwrap();
        assert!(std::fs::read(directory.path().join("disk")).unwrap() == contents);
    }

    #[test]
    fn any_bytes_can_be_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let Some((storage, contents)) = disk(directory.path()) else {
            return;
        };
        for (offset, length) in [
            (0, 1),
            (511, 2),
            (1000, 600 << 10),
            (DISK_BYTES - 1, 1),
            (5, 0),
            (0, DISK_BYTES),
        ] {
            let mut bytes = vec![0; length];
            storage.read_bytes_at(&mut bytes, offset as u64).unwrap();
            assert!(bytes == contents[offset..offset + length], "{offset} {length}");
        }
        assert!(storage.read_bytes_at(&mut [0; 2], DISK_BYTES as u64 - 1).is_err());
    }

    #[test]
    fn zeroed_ranges_are_zeros() {
        let directory = tempfile::tempdir().unwrap();
        let Some((storage, _)) = disk(directory.path()) else {
            return;
        };
        for (offset, unmap) in [(512, false), (1 << 20, true)] {
            storage.write_zeroes(offset, 1536, unmap).unwrap();
            super::super::file::write_zeros(storage.file(), offset + 4096, 512).unwrap();
            let mut bytes = [1; 1536];
            let file = File::open(directory.path().join("disk")).unwrap();
            file.read_exact_at(&mut bytes, offset).unwrap();
            assert_eq!(bytes, [0; 1536]);
            file.read_exact_at(&mut bytes[..512], offset + 4096).unwrap();
            assert_eq!(bytes[..512], [0; 512]);
        }
    }

    #[test]
    fn what_the_kernel_says_decides() {
        let check = |memory, offset, read_offset| {
            let alignment = Alignment {
                memory,
                offset,
                read_offset,
            };
            alignment.check()
        };
        assert_eq!(check(512, 512, 0), Ok(()));
        assert_eq!(check(4, 512, 0), Ok(()));
        assert_eq!(check(512, 4096, 512), Ok(()), "XFS, of a file with shared blocks");
        assert_eq!(check(512, 4096, 0), Err(LARGE_BLOCKS));
        assert_eq!(check(0, 0, 0), Err(NO_DIRECT));
        assert!(check(4096, 512, 0).unwrap_err().contains("memory"));
    }

    #[test]
    fn a_file_is_probed_where_it_has_something_or_can() {
        let directory = tempfile::tempdir().unwrap();
        let Some((storage, contents)) = disk(directory.path()) else {
            return;
        };
        probe(storage.file(), true).unwrap();
        assert!(std::fs::read(directory.path().join("disk")).unwrap() == contents);
        storage.discard(0, DISK_BYTES as u64).unwrap();
        probe(storage.file(), false).unwrap();
        probe(storage.file(), true).unwrap();
        let zeros = std::fs::read(directory.path().join("disk")).unwrap();
        assert!(zeros.len() == DISK_BYTES && zeros.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_device_with_large_blocks_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (sector_bytes, refused) in [(512, false), (4096, true)] {
            let Some(device) = LoopDevice::new(directory.path(), sector_bytes, 1 << 20) else {
                return;
            };
            let open = || File::options().read(true).write(true).open(&device.path).unwrap();
            let storage = FileStorage::device(open(), false, &device.path).unwrap();
            let error = storage.direct(&device.path).err();
            assert_eq!(error.is_some(), refused, "{sector_bytes}: {error:?}");
            if let Some(error) = error {
                assert!(error.to_string().contains(LARGE_BLOCKS), "{error}");
            }
            let file = open();
            rustix::fs::fcntl_setfl(&file, OFlags::DIRECT).unwrap();
            let probed = probe(&file, false);
            assert_eq!(
                probed,
                if refused { Err(Errno::INVAL) } else { Ok(()) },
                "{sector_bytes}"
            );
        }
    }

    #[test]
    fn the_hosts_own_bytes_are_aligned_to_no_more_than_is_said() {
        for length in [0, 512, 4096, 5000] {
            let mut own = Aligned::new(length);
            let address = own.first(length).as_ptr().addr();
            assert_eq!(address % (2 * ALIGNMENT), ALIGNMENT);
        }
    }
}
