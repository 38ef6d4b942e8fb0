//! Raw disks in files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::direct;
use super::storage::{Access, DISK_MAX_BYTES, Extent, SECTOR_BYTES, Storage, StorageError, check_end};
use crate::buffers::Buffers;

/// `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// A raw disk whose bytes are a file's bytes.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    length: u64,
    read_only: bool,
    direct: bool,
    is_device: bool,
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
        Ok(Self::new(file, length, true))
    }

    /// A raw disk that the caller has opened for reading, and that nobody writes in the meantime: it is locked against other processes that would. `path`
    /// is for messages.
    ///
    /// # Errors
    /// When it is in use by a writer, or no raw disk.
    pub fn read_only_locked(file: File, path: &Path) -> Result<Self, StorageError> {
        lock(&file, path, FlockOperation::NonBlockingLockShared)?;
        Self::read_only(file, path)
    }

    /// A block device that the caller has opened; for writing with `O_EXCL`, which keeps others off it as a lock does. `path` is for messages.
    ///
    /// # Errors
    /// When it is no block device, or has no size.
    pub fn device(file: File, read_only: bool, path: &Path) -> Result<Self, StorageError> {
        let metadata = file.metadata().map_err(|source| failed("inspect", path, source))?;
        if !metadata.file_type().is_block_device() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device");
            return Err(failed("use as a disk", path, source));
        }
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0));
        let length = end.map_err(|errno| failed("find the size of", path, errno.into()))?;
        check_length(length, path)?;
        Ok(Self {
            is_device: true,
            ..Self::new(file, length, read_only)
        })
    }

    /// A file or a block device that another process has opened, and locked, and keeps open for us. Whether it may be written and whether it goes beside the
    /// page cache is what its descriptor says. `path` is for messages.
    ///
    /// # Errors
    /// When it is neither, is not open for what is wanted, or is no raw disk.
    pub fn lent(file: File, read_only: bool, path: &Path) -> Result<Self, StorageError> {
        let refused = |problem| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, problem);
            failed("use as a disk", path, source)
        };
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|errno| failed("inspect", path, errno.into()))?;
        let access = flags & OFlags::RWMODE;
        if flags.contains(OFlags::PATH) || !(access == OFlags::RDWR || (read_only && access == OFlags::RDONLY)) {
            return Err(refused("it is not open for that"));
        }
        let metadata = file.metadata().map_err(|source| failed("inspect", path, source))?;
        let disk = if metadata.file_type().is_block_device() {
            Self::device(file, read_only, path)?
        } else if metadata.is_file() {
            check_length(metadata.len(), path)?;
            Self::new(file, metadata.len(), read_only)
        } else {
            return Err(refused("it is neither a regular file nor a block device"));
        };
        Ok(Self {
            direct: flags.contains(OFlags::DIRECT),
            ..disk
        })
    }

    /// Its file, with its lock, for another process.
    pub fn into_file(self) -> File {
        self.file
    }

    fn new(file: File, length: u64, read_only: bool) -> Self {
        Self {
            file,
            length,
            read_only,
            direct: false,
            is_device: false,
            sync: Sync::default(),
        }
    }

    /// The same disk beside the page cache; `path` is for messages.
    ///
    /// # Errors
    /// When its storage cannot do that in sectors of 512 bytes.
    pub fn direct(self, path: &Path) -> Result<Self, StorageError> {
        direct::enable(&self.file, !self.read_only, path)?;
        Ok(Self { direct: true, ..self })
    }

    /// A writable raw disk that somebody else has opened for reading and writing. It is locked against other processes; `path` is for
    /// messages.
    ///
    /// # Errors
    /// When it is in use, or no raw disk.
    pub fn writable(file: File, path: &Path) -> Result<Self, StorageError> {
        Self::writable_at_least(file, 0, path)
    }

    /// As [`Self::writable`]; a file of less than `least` bytes, also a new one, is made as long as that, with nothing behind what is new.
    ///
    /// # Errors
    /// As there, and when it cannot grow.
    pub fn writable_at_least(file: File, least: u64, path: &Path) -> Result<Self, StorageError> {
        lock(&file, path, FlockOperation::NonBlockingLockExclusive)?;
        let mut length = file_length(&file, path)?;
        if length < least {
            check_length(least, path)?;
            file.set_len(least)
                .map_err(|source| failed("set the size of", path, source))?;
            length = least;
        }
        check_length(length, path)?;
        Ok(Self::new(file, length, false))
    }

    /// The first `length` bytes of a file that has them, as an image that is never written.
    pub(super) fn read_only_part(file: File, length: u64) -> Self {
        Self::new(file, length, true)
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
        Ok(Self::new(file, length, false))
    }

    /// The same disk, which its guest may only read.
    #[must_use]
    pub fn write_protected(self) -> Self {
        Self {
            read_only: true,
            ..self
        }
    }

    #[cfg(test)]
    pub(super) fn file(&self) -> &File {
        &self.file
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
        if self.direct {
            return direct::read(self.file.as_fd(), buffers, length, offset);
        }
        buffers.read_exact_at(self.file.as_fd(), length, offset)
    }

    fn write_at(&self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
        self.check_writable()?;
        if self.direct {
            return direct::write(self.file.as_fd(), buffers, offset);
        }
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
        give_back(&self.file, self.is_device, offset, length)
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
        // Beside the page cache, buffers may turn out to be where the kernel does not take them: then threads do it again.
        access == Access::Read || !self.read_only
    }

    fn read_bytes_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        check_end(bytes.len(), offset, self.length)?;
        if self.direct {
            return direct::read_bytes(self.file.as_fd(), bytes, offset);
        }
        self.file.read_exact_at(bytes, offset)
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
    lock(&file, path, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn lock(file: &File, path: &Path, operation: FlockOperation) -> Result<(), StorageError> {
    match rustix::fs::flock(file, operation) {
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
        // Also a range that is no whole number of a device's blocks.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => write_zeros(file, offset, length),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes the storage from behind a range. Where that cannot be done nothing is: what is there no longer matters, and zeros would take long to write.
fn give_back(file: &File, is_device: bool, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let done = if is_device {
        // fallocate(2) zeros a device, and refuses where it cannot do that without writing.
        discard_blocks(file, offset, length)
    } else {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, flags, offset, length)
    };
    match done {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// `BLKDISCARD`, of `linux/fs.h`.
fn discard_blocks(device: &File, offset: u64, length: u64) -> rustix::io::Result<()> {
    let range = [offset, length];
    // SAFETY: the request reads two numbers, which are there.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        let errno = io::Error::last_os_error().raw_os_error();
        Err(errno.map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error))
    }
}

/// Where `O_DIRECT` takes them, too.
#[repr(align(4096))]
struct Zeros([u8; 64 * 1024]);

pub(super) fn write_zeros(file: &File, offset: u64, length: u64) -> io::Result<()> {
    static ZEROS: Zeros = Zeros([0; 64 * 1024]);
    let mut done = 0;
    while done < length {
        let step = (length - done).min(ZEROS.0.len() as u64);
        let bytes = usize::try_from(step).map_err(io::Error::other)?;
        file.write_all_at(&ZEROS.0[..bytes], offset + done)?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::testing::LoopDevice;

    #[test]
    fn of_what_is_lent_only_disks_are_taken_and_only_for_what_they_are_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [0; 1024]).unwrap();
        std::fs::write(directory.path().join("odd"), [0; 1000]).unwrap();
        let open = |name: &str, write| {
            let mut options = File::options();
            options
                .read(true)
                .write(write)
                .open(directory.path().join(name))
                .unwrap()
        };
        let lent = |file, read_only| FileStorage::lent(file, read_only, Path::new("data"));
        assert_eq!(lent(open("disk", true), false).unwrap().len(), 1024);
        assert!(lent(open("disk", true), true).unwrap().read_only());
        assert!(lent(open("disk", false), true).is_ok());
        let direct = rustix::fs::open(&path, OFlags::RDWR | OFlags::DIRECT, rustix::fs::Mode::empty());
        // A file system without it says so here.
        if let Ok(direct) = direct {
            assert!(lent(direct.into(), false).unwrap().direct);
        }
        let named = rustix::fs::open(&path, OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let directory = File::open(directory.path()).unwrap();
        let (pipe, _other) = io::pipe().unwrap();
        for (file, read_only, expected) in [
            (open("disk", false), false, "not open for that"),
            (
                File::options().write(true).open(&path).unwrap(),
                true,
                "not open for that",
            ),
            (named.into(), true, "not open for that"),
            (open("odd", true), false, "whole number"),
            (directory, true, "neither a regular file nor a block device"),
            (
                File::from(std::os::fd::OwnedFd::from(pipe)),
                true,
                "neither a regular file nor a block device",
            ),
            (
                File::open("/dev/zero").unwrap(),
                true,
                "neither a regular file nor a block device",
            ),
        ] {
            let error = lent(file, read_only).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_lock_goes_with_what_is_lent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let lender = FileStorage::writable(open(), &path).unwrap().into_file();
        let borrower = FileStorage::lent(lender.try_clone().unwrap(), false, &path).unwrap();
        drop(lender);
        assert!(matches!(
            FileStorage::writable(open(), &path),
            Err(StorageError::InUse { .. })
        ));
        drop(borrower);
        assert!(FileStorage::writable(open(), &path).is_ok());
    }

    #[test]
    fn what_a_device_gives_back_is_free_below_it() {
        let directory = tempfile::tempdir().unwrap();
        let Some(device) = LoopDevice::new(directory.path(), 512, 1 << 20) else {
            return;
        };
        let file = File::options().read(true).write(true).open(&device.path).unwrap();
        let disk = FileStorage::device(file, false, &device.path).unwrap();
        disk.write_at(&mut Buffers::over(&mut vec![1; 1 << 20]), 0).unwrap();
        disk.flush().unwrap();
        let used = || device.backing.metadata().unwrap().blocks() * 512;
        assert_eq!(used(), 1 << 20);
        disk.discard(256 << 10, 512 << 10).unwrap();
        assert_eq!(used(), 512 << 10);
        disk.discard(1, 512).unwrap();
        let mut bytes = vec![0; 256 << 10];
        disk.read_bytes_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 1));
    }
}
