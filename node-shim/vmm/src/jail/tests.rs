//! Devices whose threads have their filters: a call that is missing in a list ends this very process with exit code 50.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::Once;

use node_shim_virtio::block::{Block, Engine, FileStorage, Options, OverlayStorage, Storage, format};
use node_shim_virtio::device::{Event, FEATURE_VERSION_1, Memory, VirtioDevice};
use node_shim_virtio::rate_limit::Limits;
use node_shim_virtio::testing::driver::{peek, put};
use node_shim_virtio::testing::{Descriptor, DriverQueue, activate, guest_memory};
use node_shim_virtio::vsock::Vsock;

use super::*;

/// Threads of these tests, and of others that come later, have filters.
fn jail() -> &'static Jail {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| prepare(Mode::Enforce, true).unwrap());
    JAIL.get().unwrap()
}

/// Features of a disk beside those of a transport: flush, discard, write-zeroes (virtio 1.2, 5.2.3).
const DISK_FEATURES: u64 = 1 << 9 | 1 << 13 | 1 << 14;
const BLOCK_BYTES: u32 = 4096;
const HEADERS: u64 = 0x8000;
const STATUSES: u64 = 0x9000;
const DATA: u64 = 0x10000;

/// A driver of one disk, which offers requests together and waits for all of them.
struct Driver {
    memory: Arc<Memory>,
    queue: DriverQueue,
    offered: u16,
}

impl Driver {
    /// Request types: 0 reads, 1 writes, 4 flushes, 8 identifies, 11 discards, 13 writes zeroes (5.2.6).
    fn offer(&mut self, kind: u32, sector: u64) {
        let index = self.offered;
        self.offered += 1;
        let (header, status) = (HEADERS + 16 * u64::from(index), STATUSES + u64::from(index));
        let data = DATA + u64::from(BLOCK_BYTES) * u64::from(index);
        put(&self.memory, header, &kind.to_le_bytes());
        put(&self.memory, header + 8, &sector.to_le_bytes());
        put(&self.memory, status, &[0xff]);
        let mut chain = vec![Descriptor::readable(header, 16)];
        match kind {
            0 => chain.push(Descriptor::writable(data, BLOCK_BYTES)),
            1 => chain.push(Descriptor::readable(data, BLOCK_BYTES)),
            8 => chain.push(Descriptor::writable(data, 20)),
            11 | 13 => {
                // Eight sectors from 8 on, and with write-zeroes the permission to deallocate.
                put(&self.memory, data, &8_u64.to_le_bytes());
                put(&self.memory, data + 8, &8_u32.to_le_bytes());
                put(&self.memory, data + 12, &u32::from(kind == 13).to_le_bytes());
                chain.push(Descriptor::readable(data, 16));
            }
            _ => {}
        }
        chain.push(Descriptor::writable(status, 1));
        self.queue.send(&self.memory, index * 3, &chain);
    }

    fn await_all(&mut self, interrupts: &node_shim_virtio::testing::InterruptLog) {
        let mut left = self.offered;
        while left > 0 {
            interrupts.await_triggered();
            while self.queue.used(&self.memory).is_some() {
                left -= 1;
            }
        }
        let statuses = peek(&self.memory, STATUSES, usize::from(self.offered));
        assert!(statuses.iter().all(|status| *status == 0), "{statuses:?}");
        self.offered = 0;
    }
}

fn use_disk(engine: Engine, storage: Arc<dyn Storage>) {
    let options = Options {
        name: "blk0".to_owned(),
        serial: "serial".to_owned(),
        queues: 1,
        engine,
        limits: Limits::default(),
        on_thread: device_thread,
        discard: true,
        spare_processor: true,
    };
    let mut device = Block::start(options, storage).unwrap();
    let mut driver = Driver {
        memory: guest_memory(),
        queue: DriverQueue::new(0x1000, 128),
        offered: 0,
    };
    let features = FEATURE_VERSION_1 | DISK_FEATURES;
    let (interrupts, kicks) = activate(&mut device, &driver.memory, features, &[driver.queue]).unwrap();
    // Alone, which the disk's own thread may do, and together, which goes to others.
    for batch in [&[1][..], &[0], &[4], &[1, 1, 1, 0, 0, 4, 8, 11, 13, 1, 4], &[13], &[11]] {
        for (sector, kind) in batch.iter().enumerate() {
            driver.offer(*kind, 16 * sector as u64);
        }
        kicks[0].write(1).unwrap();
        driver.await_all(&interrupts);
    }
    device.pause().unwrap();
    device.resume();
    device.reset();
}

#[test]
fn disks_work_behind_their_filters() {
    jail();
    let directory = tempfile::tempdir().unwrap();
    let engines = [Engine::Pool, Engine::best()];
    for (index, engine) in engines.into_iter().enumerate() {
        let raw = FileStorage::open_or_create(&directory.path().join(format!("raw{index}")), 1 << 20).unwrap();
        use_disk(engine, Arc::new(raw));
        let image = directory.path().join(format!("image{index}"));
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        let file = File::open(&image).unwrap();
        let image = format::open(file, &image, Some(format::Format::Raw), None).unwrap();
        let overlay = OverlayStorage::open(image, &directory.path().join(format!("overlay{index}"))).unwrap();
        use_disk(engine, Arc::new(overlay));
    }
}

/// More threads than arenas, each of which takes memory in small pieces and gives all of it back.
#[test]
fn the_allocator_opens_no_file() {
    jail();
    let start = std::sync::Barrier::new(24);
    std::thread::scope(|scope| {
        for _ in 0..24 {
            let entry = thread(Kind::DiskIo);
            let start = &start;
            scope.spawn(move || {
                entry.enter();
                start.wait();
                for _ in 0..20 {
                    let pieces: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 1000]).collect();
                    assert_eq!(pieces.iter().map(Vec::len).sum::<usize>(), 2_000_000);
                }
            });
        }
    });
}

/// A packet's header (5.10.6): from the guest with context id 3 to the host, stream.
fn packet(ports: (u32, u32), operation: u16, length: u32) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend_from_slice(&3_u64.to_le_bytes());
    header.extend_from_slice(&2_u64.to_le_bytes());
    for word in [ports.0, ports.1, length] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    header.extend_from_slice(&1_u16.to_le_bytes());
    header.extend_from_slice(&operation.to_le_bytes());
    // No flags; room for 64 KiB.
    for word in [0_u32, 1 << 16, 0] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    header
}

/// The event loop's own devices: vsock makes sockets, the balloon gives memory back.
#[test]
fn vsock_works_behind_the_main_threads_filter() {
    let jail = jail();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let port = UnixListener::bind(directory.path().join("vsock_80")).unwrap();
    let mut device = Vsock::new(3, &path, listener).unwrap();
    let memory = guest_memory();
    let queues = [0x1000, 0x3000, 0x5000].map(|base| DriverQueue::new(base, 64));
    activate(&mut device, &memory, FEATURE_VERSION_1, &queues).unwrap();
    let [mut receive, mut transmit, _] = queues;
    receive.send(&memory, 0, &[Descriptor::writable(0x20000, 4096)]);
    receive.send(&memory, 1, &[Descriptor::writable(0x22000, 4096)]);
    let mut offer = |header: &[u8], data: &[u8]| {
        let at = 0x30000 + 0x1000 * u64::from(transmit.available);
        put(&memory, at, header);
        put(&memory, at + header.len() as u64, data);
        let length = u32::try_from(header.len() + data.len()).unwrap();
        let head = transmit.available;
        transmit.send(&memory, head, &[Descriptor::readable(at, length)]);
    };
    std::thread::scope(|scope| {
        let confined = scope.spawn(|| {
            jail.enter(Kind::Main).unwrap();
            offer(&packet((1024, 80), 1, 0), &[]);
            device.handle(Event::Queue(1)).unwrap();
            offer(&packet((1024, 80), 5, 5), b"hello");
            device.handle(Event::Queue(1)).unwrap();
            // Threads can be started, and have both filters.
            let entry = thread(Kind::Vcpu);
            std::thread::spawn(move || entry.enter()).join().unwrap();
            device
        });
        let (mut stream, _) = port.accept().unwrap();
        let mut said = [0; 5];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        stream.write_all(b"answer").unwrap();
        let mut device = confined.join().unwrap();
        let confined = scope.spawn(move || {
            jail.enter(Kind::Main).unwrap();
            device.handle(Event::Host(0)).unwrap();
            device.reset();
        });
        confined.join().unwrap();
    });
    assert_eq!(peek(&memory, 0x20000 + 30, 2), 2_u16.to_le_bytes(), "a response");
    assert_eq!(peek(&memory, 0x22000 + 44, 6), b"answer");
}

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// "Who has 10.0.2.1?", after a `virtio_net_hdr` of zeros.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&GUEST_MAC);
    // ARP for IPv4 on Ethernet, a request.
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&GUEST_MAC);
    frame.extend_from_slice(&[10, 0, 2, 2]);
    frame.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 0, 2, 1]);
    frame
}

/// A tap in a network namespace that ends with the calling thread.
fn tap() -> std::io::Result<std::os::fd::OwnedFd> {
    // SAFETY: only the test's own thread gets a network namespace of its own; no descriptor is affected.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    crate::devices::network::open_tap_queue("tap9")
}

#[test]
fn an_interface_works_behind_its_filter() {
    jail();
    let tap = match tap() {
        Ok(tap) => tap,
        Err(error) => {
            eprintln!("\n*** SKIPPED: making a tap needs CAP_NET_ADMIN and /dev/net/tun: {error} ***\n");
            return;
        }
    };
    let network = r#"{"address": "10.0.2.2", "prefixLength": 24, "gateway": "10.0.2.1", "gatewayMac": "02:00:00:00:00:01", "mtu": 1500}"#;
    let network = serde_json::from_str(network).unwrap();
    let mac = crate::config::check_mac("mac", "02:00:00:00:00:02").unwrap();
    let mut device = crate::devices::network::attach("net9", mac, "guest", &network, vec![tap]).unwrap();
    let memory = guest_memory();
    let queues = [0x1000, 0x3000].map(|base| DriverQueue::new(base, 64));
    let (interrupts, kicks) = activate(&mut device, &memory, FEATURE_VERSION_1, &queues).unwrap();
    let [mut receive, mut transmit] = queues;
    receive.send(&memory, 0, &[Descriptor::writable(0x20000, 2048)]);
    // The answer to the first comes back; the second is for the network, which is down.
    let request = arp_request();
    let mut sent = arp_request();
    sent[12..18].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    sent[24..26].copy_from_slice(&[8, 0]);
    for (head, frame) in [(0, &request), (1, &sent)] {
        let at = 0x30000 + 0x1000 * u64::from(head);
        put(&memory, at, frame);
        let length = u32::try_from(frame.len()).unwrap();
        transmit.send(&memory, head, &[Descriptor::readable(at, length)]);
    }
    for kick in &kicks {
        kick.write(1).unwrap();
    }
    while receive.used(&memory).is_none() {
        interrupts.await_triggered();
    }
    assert_eq!(peek(&memory, 0x20000 + 12, 6), GUEST_MAC, "an answer to the guest");
    device.reset();
}
