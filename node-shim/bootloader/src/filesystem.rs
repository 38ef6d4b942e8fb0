//! Reading files of the file systems that Linux boots from. Nothing is ever written, not even a journal: what one still holds is
//! applied in memory.
//!
//! The readers of ext4, XFS and btrfs are libraries that return errors for damaged file systems. They are kept on a short lead:
//! a [`Window`] lets them read a limited amount for each operation, which also bounds their loops and their memory, and a panic
//! in one of them is an error like others.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::bytes::{le_u16, le_u64};
use crate::disk::Window;
use crate::limits::Limits;

mod btrfs;
mod ext4;
mod fat;
mod xfs;

/// The file systems that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// ext2, ext3 or ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT12, FAT16 or FAT32.
    Fat,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS",
            Self::Btrfs => "btrfs",
            Self::Fat => "FAT",
        })
    }
}

/// What a path names, when a link at its end is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// A regular file of so many bytes.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Link(String),
    /// A device, a socket, a pipe.
    Other,
}

/// Why a file system cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct FileSystemError(pub(crate) String);

impl FileSystemError {
    fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

type Result<T> = std::result::Result<T, FileSystemError>;

/// A mounted file system. Paths are absolute, without `.` and `..`, and no directory on the way is a link.
pub(crate) trait FileSystem {
    /// What `path` names; `None` where there is nothing.
    fn node(&self, path: &str) -> Result<Option<Node>>;
    /// The names in a directory, up to `limit`, in any order. Names that are not UTF-8 are left out.
    fn list(&self, path: &str, limit: usize) -> Result<Vec<String>>;
    /// Reads some bytes of a file from `offset` on; 0 at its end.
    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize>;
    /// The label, where there is one.
    fn label(&self) -> Option<String>;
    /// The UUID as `blkid` writes it.
    fn uuid(&self) -> String;
}

/// Tells file systems apart by their magic numbers. `None` for everything else.
pub(crate) fn identify(window: &Window) -> io::Result<Option<Kind>> {
    let mut head = [0; 2048];
    let bytes = usize::try_from(window.length()).unwrap_or(usize::MAX).min(head.len());
    window.read_at(0, &mut head[..bytes])?;
    if head.starts_with(b"XFSB") {
        return Ok(Some(Kind::Xfs));
    }
    if le_u16(&head, 1024 + 0x38) == 0xef53 {
        return Ok(Some(Kind::Ext4));
    }
    let magic = btrfs::SUPERBLOCK + 0x40;
    if window.length() >= magic + 8 && window.array::<8>(magic)? == *b"_BHRfS_M" {
        return Ok(Some(Kind::Btrfs));
    }
    Ok(fat::looks_like(&head).then_some(Kind::Fat))
}

/// A file system that is guarded against its own reader.
pub(crate) struct Mounted {
    window: Window,
    inner: Box<dyn FileSystem>,
}

impl Mounted {
    /// Mounts a file system of this kind.
    pub(crate) fn mount(kind: Kind, window: Window, limits: &Limits) -> Result<Self> {
        window.meter().begin(0);
        let reader = window.clone();
        let inner = guarded(|| {
            Ok(match kind {
                Kind::Ext4 => Box::new(ext4::Ext4FileSystem::mount(reader)?) as Box<dyn FileSystem>,
                Kind::Xfs => Box::new(xfs::XfsFileSystem::mount(reader)?),
                Kind::Btrfs => Box::new(btrfs::BtrfsFileSystem::mount(reader)?),
                Kind::Fat => Box::new(fat::FatFileSystem::mount(reader, limits.directory_entries)?),
            })
        })?;
        Ok(Self { window, inner })
    }
}

impl FileSystem for Mounted {
    fn node(&self, path: &str) -> Result<Option<Node>> {
        self.window.meter().begin(0);
        guarded(|| self.inner.node(path))
    }

    fn list(&self, path: &str, limit: usize) -> Result<Vec<String>> {
        self.window.meter().begin(0);
        guarded(|| self.inner.list(path, limit))
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.window.meter().begin(buffer.len() as u64);
        guarded(|| self.inner.read_at(path, offset, buffer))
    }

    fn label(&self) -> Option<String> {
        self.inner.label()
    }

    fn uuid(&self) -> String {
        self.inner.uuid()
    }
}

/// Runs a library's code. Its structures are only ever read again after an error, and are sound in memory whatever their contents.
fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(FileSystemError::new(
            "its structures are damaged in a way that its reader does not understand",
        ))
    })
}

/// 16 bytes as `blkid` writes a UUID.
fn uuid_text(bytes: [u8; 16]) -> String {
    let [high, low] = [le_u64(&bytes, 0).swap_bytes(), le_u64(&bytes, 8).swap_bytes()];
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests;
