//! A writable disk over an image that is never written: blocks that the guest wrote are in a sparse data file at their own offsets, all
//! others are still the image's.
//!
//! Blocks have 4 KiB. That is what guests' file systems write, so that nearly no write has to copy a part of the image first; with larger
//! blocks a random 4 KiB write would cost a whole one. The price is a map of one bit for each: 320 KiB for 10 GiB.
//!
//! ```text
//! write:  partial blocks are filled from the image --> data file --> bits in memory --> completed
//! flush:  fdatasync(data) --> changed pages of the map --> fdatasync(map) --> completed
//! ```
//!
//! So the map on stable storage never names a block whose data is not there. After a crash, blocks that were written but not flushed are
//! the image's again, as a disk may lose what was not flushed. A block that is in the map and a hole in the data file is zero: that is how
//! discarded and zeroed blocks hide the image.

pub mod map;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use self::map::BLOCK_BYTES;
use self::map::{BlockMap, HEADER_BYTES, Header, PAGE_BYTES};
use super::file::{FileStorage, failed, open_locked, zero};
use super::storage::{Storage, StorageError};
use crate::buffers::Buffers;

/// Bytes at both ends of an image by which it is recognised: partition tables and file system headers with their UUIDs are there.
const FINGERPRINT_BYTES: usize = 64 * 1024;

/// See the [module](self).
pub struct OverlayStorage {
    base: FileStorage,
    data: File,
    map: BlockMap,
    map_file: File,
}

impl OverlayStorage {
    /// The overlay of `base` whose data is in `path` and whose map is in `path` with `.map` behind its name: the one that is there, or
    /// a new one. It is locked against other processes.
    ///
    /// # Errors
    /// When a file cannot be opened or made, is in use, or the map is another image's.
    pub fn open(base: FileStorage, path: &Path) -> Result<Self, StorageError> {
        let data = open_locked(path)?;
        data.set_len(base.len())
            .map_err(|source| failed("set the size of", path, source))?;
        let map_path = map_path(path);
        let header = Header {
            disk_bytes: base.len(),
            fingerprint: fingerprint(&base, path)?,
        };
        let map_file = match File::options().read(true).write(true).open(&map_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_map(&map_path, &header)?,
            Err(source) => return Err(failed("open", &map_path, source)),
        };
        let map = load_map(&map_file, &map_path, &header)?;
        Ok(Self {
            base,
            data,
            map,
            map_file,
        })
    }

    /// Bytes of blocks that hide the image's.
    pub fn allocated_bytes(&self) -> u64 {
        self.map.present() * BLOCK_BYTES
    }

    /// Copies the image's part of those blocks that a change of this range covers only in part.
    fn fill_edges(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
        if !offset.is_multiple_of(BLOCK_BYTES) {
            self.fill(first)?;
        }
        let ends_inside = !end.is_multiple_of(BLOCK_BYTES) && end != self.base.len();
        if ends_inside && (last != first || offset.is_multiple_of(BLOCK_BYTES)) {
            self.fill(last)?;
        }
        Ok(())
    }

    fn fill(&mut self, block: u64) -> io::Result<()> {
        if self.map.run(block, block + 1).0 {
            return Ok(());
        }
        let mut bytes = [0; map::BLOCK_LENGTH];
        let start = block * BLOCK_BYTES;
        let length = usize::try_from((self.base.len() - start).min(BLOCK_BYTES)).map_err(io::Error::other)?;
        self.base.read_exact_at(&mut bytes[..length], start)?;
        self.data.write_all_at(&bytes[..length], start)
    }

    fn mark(&mut self, offset: u64, length: u64) {
        self.map
            .set(offset / BLOCK_BYTES, (offset + length).div_ceil(BLOCK_BYTES));
    }
}

impl Storage for OverlayStorage {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&mut self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        while !buffers.is_empty() {
            let end = at + buffers.len() as u64;
            let (present, run_end) = self.map.run(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            let until = (run_end * BLOCK_BYTES).min(end);
            let length = usize::try_from(until - at).map_err(io::Error::other)?;
            let file = if present { self.data.as_fd() } else { self.base.as_fd() };
            buffers.read_exact_at(file, length, at)?;
            at = until;
        }
        Ok(())
    }

    fn write_at(&mut self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
        let length = buffers.len();
        if length == 0 {
            return Ok(());
        }
        self.fill_edges(offset, length as u64)?;
        buffers.write_all_at(self.data.as_fd(), length, offset)?;
        self.mark(offset, length as u64);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.data.sync_data()?;
        if !self.map.is_dirty() {
            return Ok(());
        }
        for page in self.map.dirty_pages() {
            let at = HEADER_BYTES as u64 + page * PAGE_BYTES as u64;
            self.map_file.write_all_at(&self.map.page(page), at)?;
        }
        self.map_file.sync_data()?;
        self.map.set_clean();
        Ok(())
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        // Only what takes space: whole blocks of the overlay. The image's own blocks stay visible, as they may.
        let end = (offset + length) / BLOCK_BYTES;
        let mut block = offset.div_ceil(BLOCK_BYTES);
        while block < end {
            let (present, run_end) = self.map.run(block, end);
            if present {
                zero(&self.data, block * BLOCK_BYTES, (run_end - block) * BLOCK_BYTES, true)?;
            }
            block = run_end;
        }
        Ok(())
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.fill_edges(offset, length)?;
        zero(&self.data, offset, length, unmap)?;
        self.mark(offset, length);
        Ok(())
    }
}

impl Drop for OverlayStorage {
    fn drop(&mut self) {
        // A guest that ended properly has flushed; one that was stopped by force may as well keep what it wrote.
        let _ = self.flush();
    }
}

fn map_path(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".map");
    name.into()
}

/// Makes an empty map, complete before it has its name.
fn create_map(path: &Path, header: &Header) -> Result<File, StorageError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let unfinished = PathBuf::from(name);
    let create = || -> io::Result<File> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&unfinished)?;
        file.write_all(&header.encode())?;
        file.set_len(HEADER_BYTES as u64 + header.map_bytes())?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(directory)?.sync_all()?;
        }
        Ok(file)
    };
    create().map_err(|source| failed("make", path, source))
}

fn load_map(file: &File, path: &Path, expected: &Header) -> Result<BlockMap, StorageError> {
    let wrong = |problem: String| StorageError::Map {
        path: path.to_owned(),
        problem,
    };
    let unreadable = |source| failed("read", path, source);
    let length = file.metadata().map_err(unreadable)?.len();
    if length != HEADER_BYTES as u64 + expected.map_bytes() {
        return Err(wrong(format!(
            "has {length} bytes, which is not right for a disk of {} bytes",
            expected.disk_bytes
        )));
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).map_err(unreadable)?;
    let found = Header::decode(&header).map_err(|error| wrong(error.to_string()))?;
    if found != *expected {
        return Err(wrong("belongs to another image".to_owned()));
    }
    let bytes = usize::try_from(expected.map_bytes()).map_err(|_| wrong("is too large".to_owned()))?;
    let mut map = vec![0; bytes];
    file.read_exact_at(&mut map, HEADER_BYTES as u64).map_err(unreadable)?;
    Ok(BlockMap::decode(expected.disk_bytes, &map))
}

/// FNV-1a over both ends of an image. It tells a replaced image from the one that was written over; it is no defence against an
/// image made to collide, which could as well hold anything else.
fn fingerprint(base: &FileStorage, path: &Path) -> Result<u64, StorageError> {
    let length = base.len().min(FINGERPRINT_BYTES as u64);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(FINGERPRINT_BYTES)];
    let mut hash = map::Fnv::new();
    for offset in [0, base.len() - length] {
        base.read_exact_at(&mut bytes, offset)
            .map_err(|source| failed("read the image of", path, source))?;
        hash.add(&bytes);
    }
    Ok(hash.finish())
}

#[cfg(test)]
mod tests;
