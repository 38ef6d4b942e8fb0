//! A hostile driver of a block device. Beside not panicking, a read-only disk must stay what it was.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, drive};
use node_shim_virtio::block::{Block, MemoryStorage, Storage};
use node_shim_virtio::buffers::Buffers;

/// A writable disk in memory that insists on what the device promises its storage.
struct Strict {
    bytes: Vec<u8>,
}

impl Strict {
    fn range(&self, offset: u64, length: u64) -> std::ops::Range<usize> {
        let end = offset.checked_add(length).expect("a checked range");
        assert!(
            end <= self.len() && offset % 512 == 0 && length % 512 == 0,
            "{offset} {length}"
        );
        offset as usize..end as usize
    }
}

impl Storage for Strict {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&mut self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
        let range = self.range(offset, buffers.len() as u64);
        assert_eq!(buffers.fill_from(&self.bytes[range.clone()]), range.len());
        Ok(())
    }
    fn write_at(&mut self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
        let range = self.range(offset, buffers.len() as u64);
        assert_eq!(buffers.copy_into(&mut self.bytes[range.clone()]), range.len());
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let range = self.range(offset, length);
        self.bytes[range].fill(0);
        Ok(())
    }
    fn write_zeroes(&mut self, offset: u64, length: u64, _unmap: bool) -> io::Result<()> {
        self.discard(offset, length)
    }
}

fuzz_target!(|input: (bool, u64, Vec<Action>)| {
    let (read_only, features, actions) = input;
    let storage: Box<dyn Storage> = if read_only {
        Box::new(MemoryStorage::new(vec![1; 16 * 512]))
    } else {
        Box::new(Strict {
            bytes: vec![1; 64 * 512],
        })
    };
    drive(&mut Block::new("blk", "serial", storage), features, &actions, || {});
});
