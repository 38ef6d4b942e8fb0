//! A writable disk over an image that is never written: blocks that the guest wrote are in a sparse data file at their own offsets, all
//! others are still the image's.
//!
//! Blocks have 4 KiB. That is what guests' file systems write, so that nearly no write has to copy a part of the image first; with larger
//! blocks a random 4 KiB write would cost a whole one. The price is a map of one bit for each: 320 KiB for 10 GiB, in memory as much as
//! is used of it.
//!
//! ```text
//! write:  blocks that are new and only partly written are filled from the image --> data file --> bits in memory --> completed
//! flush:  changed pages of the map copied --> fdatasync(data) --> those copies --> fdatasync(map) --> completed
//! ```
//!
//! So the map on stable storage never names a block whose data is not there, and bits only ever become set, so that a page of which a
//! crash left half is as good as the old or the new one. After a crash, blocks that were written but not flushed are the image's again,
//! as a disk may lose what was not flushed. A block that is in the map and a hole in the data file is zero: that is how discarded and
//! zeroed blocks hide the image.
//!
//! Several threads use it at once. Only a write that makes blocks appear excludes others, and those only that would make the same
//! blocks appear: what one of them fills from the image must not hide what the other has just written.

pub mod map;
mod removal;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use self::map::BLOCK_BYTES;
use self::map::{BlockMap, HEADER_BYTES, Header, PAGE_BYTES};
pub use self::removal::throw_away;
use super::file::{Sync, failed, file_length, open_locked, zero};
use super::format::Image;
use super::storage::{Access, Extent, Storage, StorageError};
use crate::buffers::Buffers;
use crate::lock::lock;

/// Bytes at both ends of an image by which it is recognised: partition tables and file system headers with their UUIDs are there.
const FINGERPRINT_BYTES: usize = 64 * 1024;
/// Bytes that are copied at once when an overlay is committed.
const COPY_BYTES: usize = 64 * 1024;

/// See the [module](self).
pub struct OverlayStorage {
    base: Box<dyn Storage>,
    data: File,
    map: RwLock<BlockMap>,
    map_file: File,
    /// Ranges of blocks that are about to appear.
    appearing: Mutex<Vec<(u64, u64)>>,
    appeared: Condvar,
    /// One flush at a time: an older copy of a page must not overwrite a newer one.
    flushing: Mutex<()>,
    sync: Sync,
}

impl OverlayStorage {
    /// The overlay of `image` whose data is in `path` and whose map is in `path` with `.map` behind its name: the one that is there, or
    /// a new one. It is locked against other processes.
    ///
    /// # Errors
    /// When a file cannot be opened or made, is in use, or the map is another image's.
    pub fn open(image: Image, path: &Path) -> Result<Self, StorageError> {
        let Image { format, storage: base } = image;
        let header = Header {
            disk_bytes: base.len(),
            fingerprint: fingerprint(base.as_ref()).map_err(|source| failed("read the image of", path, source))?,
            format,
        };
        let data = open_locked(path)?;
        let map_path = map_path(path);
        let map_file = match File::options().read(true).write(true).open(&map_path) {
            Ok(file) => {
                check_data(&data, path, &map_path, &header)?;
                file
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Whatever is in the data file belongs to no map.
                let emptied = data.set_len(0).and_then(|()| data.set_len(header.disk_bytes));
                let emptied = emptied.and_then(|()| data.sync_all());
                emptied.map_err(|source| failed("set the size of", path, source))?;
                create_map(&map_path, &header)?
            }
            Err(source) => return Err(failed("open", &map_path, source)),
        };
        let map = load_map(&map_file, &map_path, &header)?;
        Ok(Self {
            base,
            data,
            map: RwLock::new(map),
            map_file,
            appearing: Mutex::default(),
            appeared: Condvar::new(),
            flushing: Mutex::default(),
            sync: Sync::default(),
        })
    }

    /// Bytes of blocks that hide the image's.
    pub fn allocated_bytes(&self) -> u64 {
        self.map().present() * BLOCK_BYTES
    }

    /// Writes every block of the overlay to `target`, a raw disk of the same size: a writable copy of the image, or the image itself, of
    /// which this is then the new state. Everything is on stable storage when this returns. Nothing is taken from the overlay, so that after a
    /// crash it is done again; [`throw_away`] comes after it. Nobody writes to the disk meanwhile.
    ///
    /// # Errors
    /// Of the host's storage; `InvalidInput` when the target has another size.
    pub fn commit_into(&self, target: &File) -> io::Result<()> {
        if target.metadata()?.len() != self.len() {
            let problem = "the target of a commit has another size than the disk";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let blocks = self.len().div_ceil(BLOCK_BYTES);
        let mut buffer = vec![0; COPY_BYTES];
        let mut block = 0;
        while block < blocks {
            let (present, end) = self.map().run(block, blocks);
            if present {
                copy(
                    &self.data,
                    target,
                    block * BLOCK_BYTES,
                    (end * BLOCK_BYTES).min(self.len()),
                    &mut buffer,
                )?;
            }
            block = end;
        }
        target.sync_data()
    }

    /// Writes the whole disk as the guest sees it to `target`, an empty file, sparsely.
    ///
    /// # Errors
    /// Of the host's storage.
    pub fn flatten_into(&self, target: &File) -> io::Result<()> {
        target.set_len(self.len())?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        while offset < self.len() {
            let length = usize::try_from((self.len() - offset).min(COPY_BYTES as u64)).map_err(io::Error::other)?;
            self.read_bytes_at(&mut buffer[..length], offset)?;
            if buffer[..length].iter().any(|byte| *byte != 0) {
                target.write_all_at(&buffer[..length], offset)?;
            }
            offset += length as u64;
        }
        target.sync_all()
    }

    fn map(&self) -> RwLockReadGuard<'_, BlockMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, BlockMap> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a range with `change`, after which its blocks hide the image's.
    fn change(&self, offset: u64, length: u64, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let end = offset + length;
        let (first, end_block) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        if self.map().run(first, end_block) == (true, end_block) {
            return change();
        }
        let _reservation = self.reserve(first, end_block);
        if !offset.is_multiple_of(BLOCK_BYTES) {
            self.fill(first)?;
        }
        if !end.is_multiple_of(BLOCK_BYTES) && end != self.len() {
            self.fill(end_block - 1)?;
        }
        change()?;
        self.map_mut().set(first, end_block);
        Ok(())
    }

    /// Copies the image's block to the data file and lets it appear, unless the overlay has it.
    fn fill(&self, block: u64) -> io::Result<()> {
        if self.map().run(block, block + 1).0 {
            return Ok(());
        }
        let mut bytes = [0; map::BLOCK_LENGTH];
        let start = block * BLOCK_BYTES;
        let length = usize::try_from((self.len() - start).min(BLOCK_BYTES)).map_err(io::Error::other)?;
        self.base.read_bytes_at(&mut bytes[..length], start)?;
        self.data.write_all_at(&bytes[..length], start)?;
        self.map_mut().set(block, block + 1);
        Ok(())
    }

    /// Waits until nobody else lets any of these blocks appear.
    fn reserve(&self, first: u64, end: u64) -> Reservation<'_> {
        let mut ranges = lock(&self.appearing);
        while ranges
            .iter()
            .any(|(other, other_end)| *other < end && first < *other_end)
        {
            ranges = self.appeared.wait(ranges).unwrap_or_else(PoisonError::into_inner);
        }
        ranges.push((first, end));
        Reservation {
            overlay: self,
            range: (first, end),
        }
    }
}

/// A range of blocks that one writer may let appear, until it is dropped.
struct Reservation<'a> {
    overlay: &'a OverlayStorage,
    range: (u64, u64),
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut ranges = lock(&self.overlay.appearing);
        if let Some(index) = ranges.iter().position(|range| *range == self.range) {
            ranges.swap_remove(index);
        }
        drop(ranges);
        self.overlay.appeared.notify_all();
    }
}

impl Storage for OverlayStorage {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        let end = offset + length as u64;
        let mut at = offset;
        while at < end {
            let (present, run_end) = self.map().run(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            let until = (run_end * BLOCK_BYTES).min(end);
            let length = usize::try_from(until - at).map_err(io::Error::other)?;
            if present {
                buffers.read_exact_at(self.data.as_fd(), length, at)?;
            } else {
                self.base.read_at(buffers, length, at)?;
            }
            at = until;
        }
        Ok(())
    }

    fn write_at(&self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
        let length = buffers.len();
        if length == 0 {
            return Ok(());
        }
        let write = || buffers.write_all_at(self.data.as_fd(), length, offset);
        self.change(offset, length as u64, write)
    }

    fn flush(&self) -> io::Result<()> {
        let _one_at_a_time = lock(&self.flushing);
        // Copied first: a bit that is set from here on may be of data that the next line does not cover.
        let pages = self.map_mut().take_dirty();
        let done = self.sync.data(&self.data).and_then(|()| {
            if pages.is_empty() {
                return Ok(());
            }
            for (page, bytes) in &pages {
                let at = HEADER_BYTES as u64 + page * PAGE_BYTES as u64;
                self.map_file.write_all_at(bytes, at)?;
            }
            self.sync.data(&self.map_file)
        });
        if done.is_err() {
            self.map_mut().put_back_dirty(&pages);
        }
        done
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // Only what takes space: whole blocks of the overlay. The image's own blocks stay visible, as they may.
        let end = (offset + length) / BLOCK_BYTES;
        let mut block = offset.div_ceil(BLOCK_BYTES);
        while block < end {
            let (present, run_end) = self.map().run(block, end);
            if present {
                zero(&self.data, block * BLOCK_BYTES, (run_end - block) * BLOCK_BYTES, true)?;
            }
            block = run_end;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.change(offset, length, || zero(&self.data, offset, length, unmap))
    }

    fn extents<'a>(&'a self, offset: u64, length: u64, access: Access, extents: &mut Vec<Extent<'a>>) -> bool {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let (present, run_end) = self.map().run(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            let until = (run_end * BLOCK_BYTES).min(end);
            if present {
                extents.push(Extent {
                    file: self.data.as_fd(),
                    offset: at,
                    length: until - at,
                });
            } else if access == Access::Write || !self.base.extents(at, until - at, access, extents) {
                return false;
            }
            at = until;
        }
        true
    }
}

impl Drop for OverlayStorage {
    fn drop(&mut self) {
        // A guest that ended properly has flushed; one that was stopped by force may as well keep what it wrote.
        let _ = self.flush();
    }
}

fn copy(from: &File, to: &File, start: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let length = usize::try_from((end - at).min(buffer.len() as u64)).map_err(io::Error::other)?;
        from.read_exact_at(&mut buffer[..length], at)?;
        to.write_all_at(&buffer[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

fn map_path(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".map");
    name.into()
}

/// A map without its data would turn everything that was written into zeros.
fn check_data(data: &File, path: &Path, map_path: &Path, header: &Header) -> Result<(), StorageError> {
    let length = file_length(data, path)?;
    if length == header.disk_bytes {
        return Ok(());
    }
    Err(StorageError::Map {
        path: map_path.to_owned(),
        problem: format!(
            "is there, but its data {} has {length} bytes instead of {}",
            path.display(),
            header.disk_bytes
        ),
    })
}

/// Makes the names in the directory of `path` stable.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(directory) => File::open(directory)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
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
        sync_directory(path)?;
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
    if found.format != expected.format {
        let (then, now) = (found.format, expected.format);
        return Err(wrong(format!(
            "was made when its image was {then}, which is {now} now; state format: {then}, or"
        )));
    }
    if found != *expected {
        return Err(wrong("belongs to another image".to_owned()));
    }
    let mut map = BlockMap::empty(expected.disk_bytes);
    let mut bytes = [0; PAGE_BYTES];
    for page in 0..expected.map_bytes() / PAGE_BYTES as u64 {
        let at = HEADER_BYTES as u64 + page * PAGE_BYTES as u64;
        file.read_exact_at(&mut bytes, at).map_err(unreadable)?;
        map.load(page, &bytes);
    }
    Ok(map)
}

/// FNV-1a over both ends of an image. It tells a replaced image from the one that was written over; it is no defence against an
/// image made to collide, which could as well hold anything else.
fn fingerprint(base: &dyn Storage) -> io::Result<u64> {
    let length = base.len().min(FINGERPRINT_BYTES as u64);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(FINGERPRINT_BYTES)];
    let mut hash = map::Fnv::new();
    for offset in [0, base.len() - length] {
        base.read_bytes_at(&mut bytes, offset)?;
        hash.add(&bytes);
    }
    Ok(hash.finish())
}

#[cfg(test)]
mod tests;
