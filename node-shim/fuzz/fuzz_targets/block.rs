//! A hostile driver of a block device: served by its caller, so that runs are fast and the same each time, or by a thread with a pool or
//! `io_uring`. Beside not panicking, the device keeps every range that it gives its storage, and nothing is in flight after a reset.
#![no_main]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, drive};
use node_shim_virtio::block::{Block, Engine, FileStorage, MemoryStorage, Options, Storage};
use node_shim_virtio::buffers::Buffers;
use node_shim_virtio::rate_limit::{Limits, Rate};

/// A writable disk in memory that insists on what the device promises its storage.
struct Strict {
    bytes: Mutex<Vec<u8>>,
}

impl Strict {
    fn new() -> Self {
        Self {
            bytes: Mutex::new(vec![1; 64 * 512]),
        }
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        self.bytes().len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        let range = self.range(offset, length as u64);
        assert_eq!(buffers.fill_from(&self.bytes()[range.clone()]), range.len());
        Ok(())
    }
    fn write_at(&self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
        let range = self.range(offset, buffers.len() as u64);
        assert_eq!(buffers.copy_into(&mut self.bytes()[range.clone()]), range.len());
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let range = self.range(offset, length);
        self.bytes()[range].fill(0);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, length: u64, _unmap: bool) -> io::Result<()> {
        self.discard(offset, length)
    }
}

#[derive(Arbitrary, Debug)]
enum Disk {
    ReadOnly,
    Writable,
    Pool { queues: u8, limited: bool },
    Uring { queues: u8 },
}

fn start(engine: Engine, queues: u8, limited: bool, storage: Arc<dyn Storage>) -> Block {
    let operations = limited.then_some(Rate {
        per_second: 2000,
        burst: 2,
    });
    let options = Options {
        name: "blk".to_owned(),
        serial: "serial".to_owned(),
        queues: u16::from(queues % 4 + 1),
        engine,
        limits: Limits {
            bytes: None,
            operations,
        },
        on_thread: node_shim_virtio::threads::unconfined, spare_processor: true,
        discard: true,
    };
    Block::start(options, storage).expect("threads")
}

/// A small file in memory, for `io_uring`.
fn file() -> Arc<dyn Storage> {
    let path = std::env::temp_dir().join(format!("fuzz-block-{}", std::process::id()));
    let storage = FileStorage::open_or_create(&path, 64 * 512).expect("a file");
    std::fs::remove_file(&path).expect("the file that was just made");
    Arc::new(storage)
}

fuzz_target!(|input: (Disk, u64, Vec<Action>)| {
    let (disk, features, actions) = input;
    match disk {
        Disk::ReadOnly => {
            let storage = MemoryStorage::new(vec![1; 16 * 512]);
            drive(
                &mut Block::in_memory("blk", "serial", storage),
                features,
                &actions,
                || {},
            );
        }
        Disk::Writable => {
            let mut device = Block::on_caller("blk", "serial", Arc::new(Strict::new()));
            drive(&mut device, features, &actions, || {});
        }
        Disk::Pool { queues, limited } => {
            let mut device = start(Engine::Pool, queues, limited, Arc::new(Strict::new()));
            drive(&mut device, features, &actions, || {});
        }
        Disk::Uring { queues } => {
            if Engine::best() == Engine::Uring {
                drive(
                    &mut start(Engine::Uring, queues, false, file()),
                    features,
                    &actions,
                    || {},
                );
            }
        }
    }
});
