//! An image's tables, read a page at a time and kept in a small cache: their size is the image's to say, so they are never held as
//! a whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard};

use crate::lock::lock;

/// Bytes of a page: 512 entries of a qcow2 table, which with its usual clusters map 32 MiB of the disk.
const PAGE_BYTES: usize = 4096;
/// Pages that are kept, at most 512 KiB: with the usual clusters the tables of 4 GiB of the disk.
const PAGES: usize = 128;

/// Whether a lookup may wait for the host's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// It may.
    Wait,
    /// It fails with `WouldBlock` instead.
    Cached,
}

/// A page and which one it is.
type Page = (u64, Box<[u8; PAGE_BYTES]>);

/// The tables of one image.
pub(super) struct Metadata {
    file_length: u64,
    pages: Mutex<Vec<Option<Page>>>,
}

impl Metadata {
    /// For a file of so many bytes.
    pub(super) fn new(file_length: u64) -> Self {
        Self {
            file_length,
            pages: Mutex::new((0..PAGES).map(|_| None).collect()),
        }
    }

    /// Reads `N` bytes, a power of two up to 8, at a multiple of `N`.
    pub(super) fn read<const N: usize>(&self, file: &File, offset: u64, patience: Patience) -> io::Result<[u8; N]> {
        let end = offset.checked_add(N as u64);
        if end.is_none_or(|end| end > self.file_length) || !offset.is_multiple_of(N as u64) {
            return Err(damaged(format!("a table entry at {offset} is not in the file")));
        }
        let number = offset / PAGE_BYTES as u64;
        let inside = usize::try_from(offset % PAGE_BYTES as u64).map_err(io::Error::other)?;
        let slot = usize::try_from(number % PAGES as u64).map_err(io::Error::other)?;
        let mut bytes = [0; N];
        if let Some((_, page)) = self.lock()[slot].as_ref().filter(|(held, _)| *held == number) {
            bytes.copy_from_slice(&page[inside..inside + N]);
            return Ok(bytes);
        }
        if patience == Patience::Cached {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Read without the lock: others go on meanwhile. The image does not change, so whoever comes second stores the same.
        let mut page = Box::new([0; PAGE_BYTES]);
        let start = number * PAGE_BYTES as u64;
        let length = usize::try_from((self.file_length - start).min(PAGE_BYTES as u64)).map_err(io::Error::other)?;
        file.read_exact_at(&mut page[..length], start)?;
        bytes.copy_from_slice(&page[inside..inside + N]);
        self.lock()[slot] = Some((number, page));
        Ok(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Page>>> {
        lock(&self.pages)
    }
}

/// An image that contradicts itself.
pub(super) fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged image: {}", what.into()))
}
