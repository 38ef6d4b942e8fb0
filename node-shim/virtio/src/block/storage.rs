//! What a disk's contents are kept in.

use std::io;
use std::path::PathBuf;

use crate::buffers::Buffers;

/// Bytes of a virtio-blk sector, whatever the block size (virtio 1.2, 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Contents of a disk. The caller has checked every range against [`Storage::len`].
pub trait Storage: Send {
    /// Size in bytes, a multiple of [`SECTOR_BYTES`]; it never changes.
    fn len(&self) -> u64;
    /// Whether the disk has no sector at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether writes are impossible.
    fn read_only(&self) -> bool;
    /// Fills all of `buffers` from `offset` on.
    ///
    /// # Errors
    /// Of the host's storage.
    fn read_at(&mut self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()>;
    /// Stores all of `buffers` from `offset` on.
    ///
    /// # Errors
    /// Of the host's storage; `ReadOnlyFilesystem` when the disk is read-only.
    fn write_at(&mut self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()>;
    /// Returns when everything that was written is on stable storage.
    ///
    /// # Errors
    /// Of the host's storage.
    fn flush(&mut self) -> io::Result<()>;
    /// The contents of a range no longer matter.
    ///
    /// # Errors
    /// Of the host's storage; `ReadOnlyFilesystem` when the disk is read-only.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;
    /// A range shall read as zeros, without host storage behind it if `unmap`.
    ///
    /// # Errors
    /// Of the host's storage; `ReadOnlyFilesystem` when the disk is read-only.
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;
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
    /// There is nothing in it.
    #[error("corrupt disk {path}: it is empty; use a raw disk image")]
    Empty {
        /// The image.
        path: PathBuf,
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
