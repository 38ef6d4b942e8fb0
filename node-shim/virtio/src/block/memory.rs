//! A small read-only disk in the VMM's own memory.

use std::io;

use super::storage::{SECTOR_BYTES, Storage};
use crate::buffers::Buffers;

/// A read-only disk of some bytes.
#[derive(Clone, Debug)]
pub struct MemoryStorage {
    bytes: Vec<u8>,
}

impl MemoryStorage {
    /// A disk of these bytes, filled up with zeros to a whole number of sectors.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        bytes.resize(
            bytes
                .len()
                .next_multiple_of(usize::try_from(SECTOR_BYTES).unwrap_or(512)),
            0,
        );
        Self { bytes }
    }

    /// Its contents.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffers.fill_from(self.bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
