//! Raw disks in files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation};

use super::storage::{Access, DISK_MAX_BYTES, Extent, SECTOR_BYTES, Storage, StorageError};
use crate::buffers::Buffers;

/// A raw disk whose bytes are a file's bytes.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    length: u64,
    read_only: bool,
    sync: Sync,
}

impl FileStorage {
    /// An image that is never written.
    ///
    /// # Errors
    /// When it cannot be opened, or is no raw disk.
    pub fn open_read_only(path: &Path) -> Result<Self, StorageError> {
        // Never waits for the other end of a FIFO that an image may contain.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(|source| failed("open", path, source))?;
        Self::read_only(file, path)
    }

    /// An image that the caller has opened, and that is never written; `path` is for messages.
    ///
    /// # Errors
    /// When it is no raw disk.
    pub fn read_only(file: File, path: &Path) -> Result<Self, StorageError> {
        let length = file_length(&file, path)?;
        check_length(length, path)?;
        Ok(Self {
            file,
            length,
            read_only: true,
            sync: Sync::default(),
        })
    }

    /// A writable raw disk that somebody else has opened for reading and writing. It is locked against other processes; `path` is for
    /// messages.
    ///
    /// # Errors
    /// When it is in use, or no raw disk.
    pub fn writable(file: File, path: &Path) -> Result<Self, StorageError> {
        lock(&file, path)?;
        let length = file_length(&file, path)?;
        check_length(length, path)?;
        Ok(Self {
            file,
            length,
            read_only: false,
            sync: Sync::default(),
        })
    }

    /// The first `length` bytes of a file that has them, as an image that is never written.
    pub(super) fn read_only_part(file: File, length: u64) -> Self {
        Self {
            file,
            length,
            read_only: true,
            sync: Sync::default(),
        }
    }

    /// A writable disk of `length` bytes, made sparse and empty when the file is not there. The file is locked against other processes.
    /// It is raw whatever its guest writes to it: nobody looks for a format in it.
    ///
    /// # Errors
    /// When it cannot be opened or made, is in use, has another size, or `length` is not a whole number of sectors.
    pub fn open_or_create(path: &Path, length: u64) -> Result<Self, StorageError> {
        let file = open_locked(path)?;
        let found = file_length(&file, path)?;
        check_length(length, path)?;
        if found == 0 {
            file.set_len(length)
                .map_err(|source| failed("set the size of", path, source))?;
        } else if found != length {
            return Err(StorageError::Size {
                path: path.to_owned(),
                found,
                wanted: length,
            });
        }
        Ok(Self {
            file,
            length,
            read_only: false,
            sync: Sync::default(),
        })
    }

    /// The same disk, which its guest may only read.
    #[must_use]
    pub fn write_protected(self) -> Self {
        Self {
            read_only: true,
            ..self
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        } else {
            Ok(())
        }
    }
}

impl Storage for FileStorage {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        buffers.read_exact_at(self.file.as_fd(), length, offset)
    }

    fn write_at(&self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
        self.check_writable()?;
        buffers.write_all_at(self.file.as_fd(), buffers.len(), offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            Ok(())
        } else {
            self.sync.data(&self.file)
        }
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        zero(&self.file, offset, length, true)
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        zero(&self.file, offset, length, unmap)
    }

    fn extents<'a>(&'a self, offset: u64, length: u64, access: Access, extents: &mut Vec<Extent<'a>>) -> bool {
        extents.push(Extent {
            file: self.file.as_fd(),
            offset,
            length,
        });
        access == Access::Read || !self.read_only
    }
}

/// Synchronisation of one disk's files. After a failure the kernel has forgotten what it could not write, and the next call would say
/// that all is well: so it is remembered here.
#[derive(Debug, Default)]
pub(super) struct Sync {
    failed: AtomicBool,
}

impl Sync {
    /// `fdatasync(2)`.
    pub(super) fn data(&self, file: &File) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "an earlier flush failed, so nobody knows what is on stable storage",
            ));
        }
        file.sync_data()
            .inspect_err(|_| self.failed.store(true, Ordering::Release))
    }
}

/// Opens a file that this process alone may use, making it if it is not there.
pub(super) fn open_locked(path: &Path) -> Result<File, StorageError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(|source| failed("open", path, source))?;
    lock(&file, path)?;
    Ok(file)
}

fn lock(file: &File, path: &Path) -> Result<(), StorageError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StorageError::InUse { path: path.to_owned() }),
        Err(errno) => Err(failed("lock", path, errno.into())),
    }
}

pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> StorageError {
    StorageError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Makes a range read as zeros, without storage behind it if `unmap`. Where the file system cannot do that, zeros are written.
pub(super) fn zero(file: &File, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let kind = if unmap {
        FallocateFlags::PUNCH_HOLE
    } else {
        FallocateFlags::ZERO_RANGE
    };
    match rustix::fs::fallocate(file, kind | FallocateFlags::KEEP_SIZE, offset, length) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(file, offset, length),
        Err(errno) => Err(errno.into()),
    }
}

fn write_zeros(file: &File, offset: u64, length: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut done = 0;
    while done < length {
        let step = (length - done).min(ZEROS.len() as u64);
        let bytes = usize::try_from(step).map_err(io::Error::other)?;
        file.write_all_at(&ZEROS[..bytes], offset + done)?;
        done += step;
    }
    Ok(())
}

/// The size of a regular file; nothing else is a disk.
pub(super) fn file_length(file: &File, path: &Path) -> Result<u64, StorageError> {
    let metadata = file.metadata().map_err(|source| failed("inspect", path, source))?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    Err(failed("use as a disk image", path, source))
}

/// Whether so many bytes can be a disk.
pub(super) fn check_length(length: u64, path: &Path) -> Result<(), StorageError> {
    if length == 0 {
        return Err(StorageError::Empty { path: path.to_owned() });
    }
    if length > DISK_MAX_BYTES {
        return Err(StorageError::TooLarge {
            path: path.to_owned(),
            length,
        });
    }
    if length.is_multiple_of(SECTOR_BYTES) {
        Ok(())
    } else {
        Err(StorageError::PartialSector {
            path: path.to_owned(),
            length,
        })
    }
}
