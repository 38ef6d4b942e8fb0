//! What a disk's contents are kept in.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use crate::buffers::Buffers;

/// Bytes of a virtio-blk sector, whatever the block size (virtio 1.2, 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Largest disk, 64 TiB: an overlay's map of it is what a process can still address without thinking about it.
pub const DISK_MAX_BYTES: u64 = 64 << 40;

/// Contents of a disk. The caller has checked every range against [`Storage::len`]. Several threads use it at once; where two requests
/// overlap, the driver cannot know which came first, but what only one of them touches must be that one's.
///
/// What is not said otherwise is for a disk that is never written.
pub trait Storage: Send + Sync {
    /// Size in bytes, a multiple of [`SECTOR_BYTES`]; it never changes.
    fn len(&self) -> u64;
    /// Whether the disk has no sector at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether writes are impossible.
    fn read_only(&self) -> bool {
        true
    }
    /// Fills the first `length` bytes of `buffers`, which are there, from `offset` on.
    ///
    /// # Errors
    /// Of the host's storage, or of an image that is damaged there.
    fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()>;
    /// Stores all of `buffers` from `offset` on.
    ///
    /// # Errors
    /// Of the host's storage; `ReadOnlyFilesystem` when the disk is read-only.
    fn write_at(&self, _buffers: &mut Buffers<'_>, _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    /// Returns when everything whose writing has returned before is on stable storage. Once it has failed it always fails: nobody knows
    /// any more what is there.
    ///
    /// # Errors
    /// Of the host's storage.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    /// The contents of a range no longer matter.
    ///
    /// # Errors
    /// Of the host's storage; `ReadOnlyFilesystem` when the disk is read-only.
    fn discard(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    /// A range shall read as zeros, without host storage behind it if `unmap`.
    ///
    /// # Errors
    /// Of the host's storage; `ReadOnlyFilesystem` when the disk is read-only.
    fn write_zeroes(&self, _offset: u64, _length: u64, _unmap: bool) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    /// Appends where the bytes of a range are, in order, if reading or overwriting them there is all that there is to do and this can be
    /// said without waiting for anything. `false`, with anything appended, when it takes [`Self::read_at`] or [`Self::write_at`].
    fn extents<'a>(&'a self, _offset: u64, _length: u64, _access: Access, _extents: &mut Vec<Extent<'a>>) -> bool {
        false
    }
    /// Fills bytes of the host's own from `offset` on: for whoever looks into a disk.
    ///
    /// # Errors
    /// As [`Self::read_at`]; `UnexpectedEof` beyond the disk's end.
    fn read_bytes_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let length = bytes.len();
        check_end(length, offset, self.len())?;
        self.read_at(&mut Buffers::over(bytes), length, offset)
    }
}

/// Whether so many bytes from `offset` on are on a disk of `disk_bytes`.
pub(super) fn check_end(length: usize, offset: u64, disk_bytes: u64) -> io::Result<()> {
    let end = offset.checked_add(length as u64).filter(|end| *end <= disk_bytes);
    end.map(drop).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// What [`Storage::extents`] are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To be read.
    Read,
    /// To be overwritten.
    Write,
}

/// A part of a disk that is a part of a file.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Bytes from the file's start.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Why a disk's contents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The host said no.
    #[error("failed to {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image cannot be a raw disk.
    #[error(
        "corrupt disk {path}: {length} bytes are not a whole number of 512-byte sectors; use a raw disk image that was not cut off"
    )]
    PartialSector {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        length: u64,
    },
    /// Nobody has such a disk.
    #[error(
        "corrupt disk {path}: it says that it has {length} bytes, and a disk may have {DISK_MAX_BYTES}; use a smaller disk image"
    )]
    TooLarge {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        length: u64,
    },
    /// There is nothing in it.
    #[error("corrupt disk {path}: it is empty; use a disk image")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// An image that is damaged, or that uses something which this build does not read.
    #[error("the {format} image {path} {problem}")]
    Format {
        /// `qcow2`, `VHD`, `VMDK`.
        format: &'static str,
        /// The image.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// An image of a kind that is not read.
    #[error("{path} is {kind}, which is no disk that this build reads; {advice}")]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The page cache cannot be left out.
    #[error("{path} {problem}; leave `cache` out, so that the page cache is used")]
    Direct {
        /// The file or device.
        path: PathBuf,
        /// Why not.
        problem: &'static str,
    },
    /// Another process uses the file.
    #[error("{path} is in use by another process; stop the other VMM first")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// An existing writable disk has another size than was asked for.
    #[error("{path} has {found} bytes and {wanted} were asked for; delete it or ask for its size")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size that was asked for.
        wanted: u64,
    },
    /// An overlay's map is not one, or not this disk's.
    #[error("the overlay map {path} {problem}; delete it and its data to start from the image again")]
    Map {
        /// The map.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}
