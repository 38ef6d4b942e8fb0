//! A small read-only disk in the VMM's own memory.

use std::io;
use std::sync::Mutex;

use super::storage::{SECTOR_BYTES, Storage};
use crate::buffers::Buffers;
use crate::lock::lock;

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

/// A disk in the VMM's own memory that gets other contents of the same length while no guest uses it.
#[derive(Debug)]
pub struct ReplaceableStorage {
    contents: Mutex<MemoryStorage>,
    length: u64,
}

impl ReplaceableStorage {
    /// A disk with these contents at first.
    pub fn new(contents: MemoryStorage) -> Self {
        Self {
            length: contents.len(),
            contents: Mutex::new(contents),
        }
    }

    /// Gives it other contents.
    ///
    /// # Errors
    /// `InvalidInput` when they are not as long: a disk's size never changes.
    pub fn replace(&self, contents: MemoryStorage) -> io::Result<()> {
        if contents.len() != self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        *lock(&self.contents) = contents;
        Ok(())
    }
}

impl Storage for ReplaceableStorage {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        lock(&self.contents).read_at(buffers, length, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_replaced_by_as_many() {
        let disk = ReplaceableStorage::new(MemoryStorage::new(vec![1; 1000]));
        assert!(disk.replace(MemoryStorage::new(vec![2; 1025])).is_err());
        let mut bytes = [0; 2];
        disk.read_bytes_at(&mut bytes, 999).unwrap();
        assert_eq!(bytes, [1, 0]);
        disk.replace(MemoryStorage::new(vec![3; 1024])).unwrap();
        disk.read_bytes_at(&mut bytes, 999).unwrap();
        assert_eq!(bytes, [3, 3]);
        assert!(disk.read_bytes_at(&mut bytes, 1023).is_err());
    }
}
