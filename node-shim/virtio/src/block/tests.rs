use std::sync::Arc;

use super::*;
use crate::device::{FEATURE_EVENT_IDX, FEATURE_INDIRECT_DESC, FEATURE_VERSION_1, Memory};
use crate::testing::driver::{peek, put};
use crate::testing::{Descriptor as D, DriverQueue, InterruptLog, MEMORY_BYTES, activate, guest_memory};

const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x3_0000;
const DISK_BYTES: u64 = 1 << 20;
const UNTOUCHED: u8 = 0xee;

struct Driver {
    memory: Arc<Memory>,
    queue: DriverQueue,
    device: Block,
    interrupts: Arc<InterruptLog>,
    kicks: Vec<vmm_sys_util::eventfd::EventFd>,
    directory: tempfile::TempDir,
}

impl Driver {
    fn new(features: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let storage = FileStorage::open_or_create(&path, DISK_BYTES).unwrap();
        Self::of(Arc::new(storage), features, directory)
    }

    fn read_only() -> Self {
        let storage = MemoryStorage::new(vec![0x11; 4096]);
        Self::of(Arc::new(storage), FEATURE_VERSION_1, tempfile::tempdir().unwrap())
    }

    fn of(storage: Arc<dyn Storage>, features: u64, directory: tempfile::TempDir) -> Self {
        let memory = guest_memory();
        let queue = DriverQueue::new(0x1000, 16);
        let mut device = Block::on_caller("blk0", "a-serial-that-is-longer-than-it-may-be", storage);
        let (interrupts, kicks) = activate(&mut device, &memory, features, &[queue]).unwrap();
        Self {
            memory,
            queue,
            device,
            interrupts,
            kicks,
            directory,
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        put(&self.memory, HEADER, &kind.to_le_bytes());
        put(&self.memory, HEADER + 4, &[0; 4]);
        put(&self.memory, HEADER + 8, &sector.to_le_bytes());
        put(&self.memory, STATUS, &[UNTOUCHED]);
    }

    fn request(&mut self, kind: u32, sector: u64, data: &[D]) -> (u8, u32) {
        self.header(kind, sector);
        let chain = [&[D::readable(HEADER, 16)], data, &[D::writable(STATUS, 1)]].concat();
        self.queue.send(&self.memory, 0, &chain);
        self.device.handle(Event::Queue(0)).unwrap();
        let (head, written) = self.queue.used(&self.memory).expect("the request was completed");
        assert_eq!(head, 0);
        (peek(&self.memory, STATUS, 1)[0], written)
    }

    fn contents(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("disk")).unwrap()
    }
}

#[test]
fn what_was_written_is_read_back() {
    let mut driver = Driver::new(FEATURE_VERSION_1 | FEATURE_FLUSH);
    put(&driver.memory, DATA, &[7; 1024]);
    assert_eq!(
        driver.request(1, 4, &[D::readable(DATA, 100), D::readable(DATA + 100, 924)]),
        (0, 1)
    );
    assert_eq!(driver.contents()[2048..3072], [7; 1024]);
    put(&driver.memory, DATA, &[0; 1024]);
    assert_eq!(
        driver.request(0, 4, &[D::writable(DATA, 1000), D::writable(DATA + 1000, 24)]),
        (0, 1025)
    );
    assert_eq!(peek(&driver.memory, DATA, 1024), [7; 1024]);
    assert_eq!(driver.request(4, 0, &[]), (0, 1));
    assert_eq!(driver.interrupts.triggered(), [0; 3]);
}

#[test]
fn the_serial_number_is_20_bytes_of_the_name() {
    let mut driver = Driver::new(FEATURE_VERSION_1);
    assert_eq!(driver.request(8, 0, &[D::writable(DATA, 20)]), (0, 21));
    assert_eq!(peek(&driver.memory, DATA, 20), b"a-serial-that-is-lon");
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    for kind in [11_u32, 13] {
        let mut driver = Driver::new(FEATURE_VERSION_1);
        put(&driver.memory, DATA, &[7; 8192]);
        driver.request(1, 0, &[D::readable(DATA, 8192)]);
        put(&driver.memory, DATA, &8_u64.to_le_bytes());
        put(&driver.memory, DATA + 8, &8_u64.to_le_bytes());
        assert_eq!(driver.request(kind, 0, &[D::readable(DATA, 16)]), (0, 1));
        let contents = driver.contents();
        assert_eq!(
            (&contents[..4096], &contents[4096..8192]),
            (&[7; 4096][..], &[0; 4096][..])
        );
        assert_eq!(contents.len() as u64, DISK_BYTES);
    }
}

#[test]
fn one_bad_range_spares_the_others() {
    let mut driver = Driver::new(FEATURE_VERSION_1);
    put(&driver.memory, DATA, &[7; 4096]);
    driver.request(1, 0, &[D::readable(DATA, 4096)]);
    for (at, sector) in [(DATA, 0_u64), (DATA + 16, 1 << 40)] {
        put(&driver.memory, at, &sector.to_le_bytes());
        put(&driver.memory, at + 8, &8_u64.to_le_bytes());
    }
    assert_eq!(driver.request(13, 0, &[D::readable(DATA, 32)]), (1, 1));
    assert_eq!(driver.contents()[..4096], [7; 4096]);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut driver = Driver::read_only();
    assert_ne!(driver.device.features() & FEATURE_READ_ONLY, 0);
    assert_eq!(driver.device.features() & (FEATURE_DISCARD | FEATURE_WRITE_ZEROES), 0);
    assert_eq!(driver.request(1, 0, &[D::readable(DATA, 512)]).0, 1);
    assert_eq!(driver.request(11, 0, &[D::readable(DATA, 16)]).0, 2);
    assert_eq!(driver.request(0, 7, &[D::writable(DATA, 512)]), (0, 513));
    assert_eq!(peek(&driver.memory, DATA, 512), [0x11; 512]);
}

#[test]
fn requests_outside_of_the_disk_fail_and_write_only_their_status() {
    let mut driver = Driver::new(FEATURE_VERSION_1);
    put(&driver.memory, DATA, &[UNTOUCHED; 1024]);
    for (sector, length) in [
        (2048, 512),
        (2047, 1024),
        (u64::MAX, 512),
        (0, 511),
        (u64::MAX / 512 + 1, 512),
    ] {
        assert_eq!(
            driver.request(0, sector, &[D::writable(DATA, length)]),
            (1, 1),
            "sector {sector} length {length}"
        );
        assert_eq!(
            driver.request(1, sector, &[D::readable(DATA, length)]),
            (1, 1),
            "sector {sector} length {length}"
        );
    }
    assert_eq!(peek(&driver.memory, DATA, 1024), [UNTOUCHED; 1024]);
}

#[test]
fn hostile_chains_stop_the_device_and_nothing_else() {
    let end = MEMORY_BYTES as u64;
    let chains: [(&str, Vec<D>); 9] = [
        ("no status", vec![D::readable(HEADER, 16)]),
        ("nothing at all", vec![D::readable(HEADER, 0)]),
        ("status only", vec![D::writable(STATUS, 1)]),
        ("short header", vec![D::readable(HEADER, 15), D::writable(STATUS, 1)]),
        ("header outside", vec![D::readable(end - 8, 16), D::writable(STATUS, 1)]),
        ("status outside", vec![D::readable(HEADER, 16), D::writable(end, 1)]),
        (
            "data outside",
            vec![
                D::readable(HEADER, 16),
                D::writable(u64::MAX - 100, 512),
                D::writable(STATUS, 1),
            ],
        ),
        (
            "huge data",
            vec![
                D::readable(HEADER, 16),
                D::writable(0, u32::MAX),
                D::writable(STATUS, 1),
            ],
        ),
        ("wrong order", vec![D::writable(STATUS, 1), D::readable(HEADER, 16)]),
    ];
    for (what, chain) in chains {
        let mut driver = Driver::new(FEATURE_VERSION_1);
        driver.header(0, 0);
        driver.queue.send(&driver.memory, 0, &chain);
        assert!(
            matches!(driver.device.handle(Event::Queue(0)), Err(DeviceError::Driver { .. })),
            "{what}"
        );
        assert_eq!(driver.queue.used(&driver.memory), None, "{what}");
        driver.device.reset();
        driver.device.handle(Event::Queue(0)).unwrap();
    }
}

#[test]
fn loops_and_index_jumps_stop_the_device() {
    let mut driver = Driver::new(FEATURE_VERSION_1);
    driver.queue.write_descriptor(
        &driver.memory,
        0,
        D {
            flags: D::NEXT,
            next: 0,
            ..D::readable(HEADER, 16)
        },
    );
    driver.queue.offer(&driver.memory, 0);
    assert!(driver.device.handle(Event::Queue(0)).is_err());
    for (index, head) in [(17, 0), (u16::MAX, 0), (0x8000, 0), (1, 16), (1, u16::MAX)] {
        let mut driver = Driver::new(FEATURE_VERSION_1);
        driver.queue.offer(&driver.memory, head);
        driver.queue.jump_to(&driver.memory, index);
        assert!(
            driver.device.handle(Event::Queue(0)).is_err(),
            "index {index} head {head}"
        );
    }
}

#[test]
fn an_indirect_request_works_only_when_it_was_agreed_on() {
    for (features, works) in [
        (FEATURE_VERSION_1 | FEATURE_INDIRECT_DESC, true),
        (FEATURE_VERSION_1, false),
    ] {
        let mut driver = Driver::new(features);
        driver.header(0, 0);
        for (index, (descriptor, flags)) in (0_u16..).zip([
            (D::readable(HEADER, 16), D::NEXT),
            (D::writable(DATA, 512), D::NEXT | D::WRITE),
            (D::writable(STATUS, 1), D::WRITE),
        ]) {
            let entry = D {
                flags,
                next: index + 1,
                ..descriptor
            };
            put(&driver.memory, 0x8000 + 16 * u64::from(index), &entry.bytes());
        }
        driver.queue.send(
            &driver.memory,
            3,
            &[D {
                flags: D::INDIRECT,
                ..D::readable(0x8000, 48)
            }],
        );
        assert_eq!(driver.device.handle(Event::Queue(0)).is_ok(), works);
        assert_eq!(driver.queue.used(&driver.memory), works.then_some((3, 513)));
    }
}

#[test]
fn a_batch_is_one_interrupt_and_suppression_is_honoured() {
    let mut driver = Driver::new(FEATURE_VERSION_1);
    driver.header(0, 0);
    let chain = [D::readable(HEADER, 16), D::writable(DATA, 512), D::writable(STATUS, 1)];
    for head in [0, 3, 6, 9] {
        driver.queue.send(&driver.memory, head, &chain);
    }
    driver.device.handle(Event::Queue(0)).unwrap();
    assert_eq!(driver.interrupts.triggered(), [0]);
    driver.queue.suppress_interrupts(&driver.memory, true);
    driver.queue.send(&driver.memory, 0, &chain);
    driver.device.handle(Event::Queue(0)).unwrap();
    assert_eq!(driver.interrupts.triggered(), [0_u16; 0]);
}

#[test]
fn with_event_idx_the_driver_says_when_it_is_interrupted() {
    let mut driver = Driver::new(FEATURE_VERSION_1 | FEATURE_EVENT_IDX);
    driver.header(0, 0);
    driver.queue.set_used_event(&driver.memory, 2);
    let chain = [D::readable(HEADER, 16), D::writable(DATA, 512), D::writable(STATUS, 1)];
    for (head, expected) in [(0, 0), (3, 0), (6, 1), (9, 0)] {
        driver.queue.send(&driver.memory, head, &chain);
        driver.device.handle(Event::Queue(0)).unwrap();
        assert_eq!(driver.interrupts.triggered().len(), expected, "head {head}");
    }
}

/// Writes `count` heads that all are the same indirect request, a flush, and offers them.
fn offer_flushes(driver: &mut Driver, count: u16) {
    driver.header(4, 0);
    for (at, descriptor) in [
        (
            0x8000,
            D {
                flags: D::NEXT,
                next: 1,
                ..D::readable(HEADER, 16)
            },
        ),
        (0x8010, D::writable(STATUS, 1)),
    ] {
        put(&driver.memory, at, &descriptor.bytes());
    }
    let table = D {
        flags: D::INDIRECT,
        ..D::readable(0x8000, 32)
    };
    for head in 0..count {
        driver.queue.send(&driver.memory, head, &[table]);
    }
}

#[test]
fn a_full_queue_is_handled_in_turns() {
    let mut driver = Driver::new(FEATURE_VERSION_1 | FEATURE_INDIRECT_DESC);
    offer_flushes(&mut driver, 16);
    driver.device.handle(Event::Queue(0)).unwrap();
    assert_eq!(
        driver.kicks[0].read().unwrap(),
        1,
        "the device comes back after a whole queue"
    );
    driver.device.handle(Event::Queue(0)).unwrap();
    assert!(driver.kicks[0].read().is_err(), "and then waits for the driver");
    assert_eq!(std::iter::from_fn(|| driver.queue.used(&driver.memory)).count(), 16);
}

#[test]
fn a_head_that_is_in_flight_is_refused() {
    let mut driver = Driver::new(FEATURE_VERSION_1 | FEATURE_INDIRECT_DESC);
    offer_flushes(&mut driver, 2);
    driver.queue.offer(&driver.memory, 1);
    let error = driver.device.handle(Event::Queue(0)).unwrap_err().to_string();
    assert!(error.contains("head 1 is in flight already"), "{error}");
    // What came before was carried out.
    assert_eq!(std::iter::from_fn(|| driver.queue.used(&driver.memory)).count(), 2);
}

#[test]
fn configuration_is_what_the_specification_says() {
    let driver = Driver::new(FEATURE_VERSION_1);
    let mut config = [0xff; 64];
    driver.device.read_config(0, &mut config);
    assert_eq!(config[..8], 2048_u64.to_le_bytes());
    assert_eq!(config[8..12], (4_u32 << 20).to_le_bytes(), "size_max");
    assert_eq!(config[12..16], 254_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[24], 3);
    assert_eq!(config[56..], [1, 0, 0, 0, 0, 0, 0, 0]);
    let mut beyond = [0xff; 8];
    driver.device.read_config(u64::MAX, &mut beyond[..1]);
    driver.device.read_config(60, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}
