//! The disk's own thread with each backend, from the driver's side.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::buffers::Buffers;
use crate::device::{FEATURE_EVENT_IDX, FEATURE_VERSION_1, Memory};
use crate::rate_limit::Rate;
use crate::testing::driver::{peek, put};
use crate::testing::{Descriptor as D, DriverQueue, InterruptLog, activate, guest_memory};

const DISK_BYTES: u64 = 1 << 20;
const QUEUE_ENTRIES: u16 = 32;
/// Each request of a queue has its own header, status and 4 KiB of data.
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x1_8000;
const DATA: u64 = 0x2_0000;
const DATA_BYTES: u32 = 4096;
const UNTOUCHED: u8 = 0xee;

fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Pool];
    // Where it is denied there is nothing to test: the VMM does not use it there.
    if Engine::best() == Engine::Uring {
        engines.push(Engine::Uring);
    }
    engines
}

struct Driver {
    memory: Arc<Memory>,
    queues: Vec<DriverQueue>,
    device: Block,
    interrupts: Arc<InterruptLog>,
    kicks: Vec<EventFd>,
}

impl Driver {
    fn new(engine: Engine, queues: u16, limits: Limits, storage: Arc<dyn Storage>) -> Self {
        let options = Options {
            name: "blk0".to_owned(),
            serial: "serial".to_owned(),
            queues,
            engine,
            limits,
            on_thread: crate::threads::unconfined,
            discard: true,
            spare_processor: true,
        };
        let mut driver = Self {
            memory: guest_memory(),
            queues: (0..u64::from(queues))
                .map(|queue| DriverQueue::new(0x1000 + 0x2000 * queue, QUEUE_ENTRIES))
                .collect(),
            device: Block::start(options, storage).unwrap(),
            interrupts: Arc::default(),
            kicks: Vec::new(),
        };
        driver.activate(FEATURE_VERSION_1 | FEATURE_FLUSH);
        driver
    }

    fn on_file(engine: Engine, limits: Limits) -> (Self, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let storage = FileStorage::open_or_create(&directory.path().join("disk"), DISK_BYTES).unwrap();
        (Self::new(engine, 2, limits, Arc::new(storage)), directory)
    }

    fn activate(&mut self, features: u64) {
        let activated = activate(&mut self.device, &self.memory, features, &self.queues);
        (self.interrupts, self.kicks) = activated.unwrap();
    }

    /// Where the request of a slot has its header, its status and its data.
    fn places(queue: u16, slot: u16) -> (u64, u64, u64) {
        let index = u64::from(queue) * 8 + u64::from(slot);
        (
            HEADERS + 16 * index,
            STATUSES + index,
            DATA + u64::from(DATA_BYTES) * index,
        )
    }

    /// Offers a request of type `kind`; heads are three apart.
    fn offer(&mut self, queue: u16, slot: u16, kind: u32, sector: u64, bytes: u32) {
        let (header, status, data) = Self::places(queue, slot);
        put(&self.memory, header, &kind.to_le_bytes());
        put(&self.memory, header + 8, &sector.to_le_bytes());
        put(&self.memory, status, &[UNTOUCHED]);
        let buffer = match kind {
            0 => D::writable(data, bytes),
            _ => D::readable(data, bytes),
        };
        let chain = [D::readable(header, 16), buffer, D::writable(status, 1)];
        self.queues[usize::from(queue)].send(&self.memory, slot * 3, &chain);
    }

    fn kick(&self, queue: u16) {
        self.kicks[usize::from(queue)].write(1).unwrap();
    }

    /// Whether the device asks for kicks of a queue (`VIRTQ_USED_F_NO_NOTIFY`, 2.7.10): it has seen nothing more in it.
    fn wants_kicks(&self, queue: u16) -> bool {
        let flags = self.queues[usize::from(queue)].used_ring;
        peek(&self.memory, flags, 1)[0] & 1 == 0
    }

    /// Waits for `count` requests of all queues and returns them as queue, slot and status, in the order of their rings.
    fn completed(&mut self, count: usize) -> Vec<(u16, u16, u8)> {
        let mut found = Vec::new();
        while found.len() < count {
            self.interrupts.await_triggered();
            self.collect(&mut found);
        }
        assert_eq!(found.len(), count);
        found
    }

    fn collect(&mut self, found: &mut Vec<(u16, u16, u8)>) {
        for (number, queue) in (0_u16..).zip(&mut self.queues) {
            while let Some((head, written)) = queue.used(&self.memory) {
                let slot = u16::try_from(head / 3).unwrap();
                let (_, status, _) = Self::places(number, slot);
                let status = peek(&self.memory, status, 1)[0];
                assert_ne!(status, UNTOUCHED);
                assert!(written >= 1);
                found.push((number, slot, status));
            }
        }
    }

    fn data(&self, queue: u16, slot: u16) -> Vec<u8> {
        peek(&self.memory, Self::places(queue, slot).2, DATA_BYTES as usize)
    }

    fn fill(&self, queue: u16, slot: u16, byte: u8) {
        put(&self.memory, Self::places(queue, slot).2, &[byte; DATA_BYTES as usize]);
    }
}

#[test]
fn requests_of_several_queues_are_all_done() {
    for engine in engines() {
        let (mut driver, _directory) = Driver::on_file(engine, Limits::default());
        assert_eq!(driver.device.engine(), engine);
        for queue in 0..2 {
            for slot in 0..8 {
                driver.fill(queue, slot, u8::try_from(queue * 8 + slot + 1).unwrap());
                driver.offer(queue, slot, 1, u64::from(queue * 8 + slot) * 8, DATA_BYTES);
            }
            driver.kick(queue);
        }
        let mut done = driver.completed(16);
        done.sort_unstable();
        let all: Vec<_> = (0..2)
            .flat_map(|queue| (0..8).map(move |slot| (queue, slot, 0)))
            .collect();
        assert_eq!(done, all, "{engine}");
        driver.offer(0, 0, 4, 0, 0);
        driver.kick(0);
        assert_eq!(driver.completed(1), [(0, 0, 0)]);
        for queue in 0..2 {
            for slot in 0..8 {
                driver.fill(queue, slot, UNTOUCHED);
                driver.offer(queue, slot, 0, u64::from(queue * 8 + slot) * 8, DATA_BYTES);
            }
            driver.kick(queue);
        }
        driver.completed(16);
        for queue in 0..2 {
            for slot in 0..8 {
                let byte = u8::try_from(queue * 8 + slot + 1).unwrap();
                assert_eq!(
                    driver.data(queue, slot),
                    [byte; DATA_BYTES as usize],
                    "{engine} {queue} {slot}"
                );
            }
        }
    }
}

/// A disk whose reads of sector 0 wait until the test lets them go.
struct Gate {
    entered: Mutex<Sender<()>>,
    leave: Mutex<Receiver<()>>,
}

impl Storage for Gate {
    fn len(&self) -> u64 {
        DISK_BYTES
    }
    fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        if offset == 0 {
            self.entered.lock().unwrap().send(()).unwrap();
            self.leave.lock().unwrap().recv().unwrap();
        }
        buffers.fill_zero(length);
        Ok(())
    }
}

fn gated(engine: Engine) -> (Driver, Receiver<()>, Sender<()>) {
    let (entered, wait) = channel();
    let (go, leave) = channel();
    let gate = Gate {
        entered: Mutex::new(entered),
        leave: Mutex::new(leave),
    };
    (Driver::new(engine, 1, Limits::default(), Arc::new(gate)), wait, go)
}

/// Offers two requests and waits until the first, which waits itself, is out.
fn offer_two(driver: &mut Driver, entered: &Receiver<()>) {
    driver.offer(0, 0, 0, 0, 512);
    driver.offer(0, 1, 0, 8, 512);
    driver.kick(0);
    entered.recv().unwrap();
}

/// Does something that waits for a request, which ends a moment later.
fn while_it_ends(go: &Sender<()>, act: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            go.send(()).unwrap();
        });
        act();
    });
}

#[test]
fn a_slow_request_does_not_hold_up_the_others() {
    for engine in engines() {
        let (mut driver, entered, go) = gated(engine);
        driver.offer(0, 0, 0, 0, 512);
        driver.offer(0, 1, 0, 8, 512);
        driver.offer(0, 2, 0, 16, 512);
        driver.kick(0);
        entered.recv().unwrap();
        let mut done = driver.completed(2);
        done.sort_unstable();
        assert_eq!(done, [(0, 1, 0), (0, 2, 0)], "{engine}");
        driver.offer(0, 3, 0, 24, 512);
        driver.kick(0);
        assert_eq!(driver.completed(1), [(0, 3, 0)], "{engine}");
        go.send(()).unwrap();
        assert_eq!(driver.completed(1), [(0, 0, 0)], "{engine}");
    }
}

#[test]
fn a_reset_and_a_pause_wait_for_what_is_in_flight() {
    for engine in engines() {
        let (mut driver, entered, go) = gated(engine);
        offer_two(&mut driver, &entered);
        while_it_ends(&go, || driver.device.pause().unwrap());
        let mut found = Vec::new();
        driver.collect(&mut found);
        assert_eq!(
            found.len(),
            2,
            "{engine}: everything is in the ring when a pause returns"
        );
        assert!(!driver.interrupts.triggered().is_empty());
        // While it is at rest nothing is taken.
        driver.offer(0, 2, 0, 16, 512);
        driver.kick(0);
        let SavedDevice { queues, .. } = driver.device.save();
        let position = QueuePosition {
            next_available: 2,
            next_used: 2,
        };
        assert_eq!(queues, [Some(position)], "{engine}");
        driver.device.pause().unwrap();
        assert_eq!(driver.device.save().queues, queues, "{engine}: a kick changes nothing");
        driver.device.resume();
        assert_eq!(driver.completed(1), [(0, 2, 0)], "{engine}");

        offer_two(&mut driver, &entered);
        while_it_ends(&go, || driver.device.reset());
        assert_eq!(driver.device.save().queues, [None], "{engine}");
        assert_eq!(
            Arc::strong_count(&driver.memory),
            1,
            "{engine}: guest memory is let go of"
        );
        // And it starts again.
        driver.queues = vec![DriverQueue::new(0x1000, QUEUE_ENTRIES)];
        put(&driver.memory, driver.queues[0].available_ring, &[0; 4]);
        put(&driver.memory, driver.queues[0].used_ring, &[0; 4]);
        driver.activate(FEATURE_VERSION_1);
        driver.offer(0, 5, 0, 8, 512);
        driver.kick(0);
        assert_eq!(driver.completed(1), [(0, 5, 0)], "{engine}");
    }
}

#[test]
fn a_head_that_is_still_in_flight_is_refused_and_nothing_is_written_afterwards() {
    for engine in engines() {
        let (mut driver, entered, go) = gated(engine);
        offer_two(&mut driver, &entered);
        driver.completed(1);
        while !driver.wants_kicks(0) {
            std::thread::yield_now();
        }
        // The first head again, while its request waits.
        driver.offer(0, 0, 0, 8, 512);
        driver.kick(0);
        // The thread looks at the queue in the round in which it takes the kick, or before: only then may the first request end.
        while poll_for(driver.kicks[0].as_raw_fd(), 0) && driver.wants_kicks(0) {
            std::thread::yield_now();
        }
        go.send(()).unwrap();
        let error = await_failure(&mut driver);
        assert!(error.contains("head 0 is in flight already"), "{engine}: {error}");
        driver.device.handle(Event::Host(0)).unwrap();
        driver.device.reset();
        assert_eq!(Arc::strong_count(&driver.memory), 1, "{engine}");
    }
}

/// Waits for the thread to give up on the driver, as the event loop does.
fn await_failure(driver: &mut Driver) -> String {
    let [source] = driver.device.host_sources()[..] else {
        panic!("one source")
    };
    assert!(poll_for(source.fd, 20_000), "the thread did not notice");
    driver.device.handle(Event::Host(0)).unwrap_err().to_string()
}

/// Whether a descriptor is or becomes readable within so many milliseconds.
fn poll_for(descriptor: RawFd, milliseconds: i32) -> bool {
    let mut polled = libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, of a descriptor that its owner keeps open.
    let ready = unsafe { libc::poll(&raw mut polled, 1, milliseconds) };
    ready == 1
}

#[test]
fn broken_rings_reach_the_transport() {
    for engine in engines() {
        let (mut driver, _directory) = Driver::on_file(engine, Limits::default());
        driver.queues[1].jump_to(&driver.memory, 0x8000);
        driver.kick(1);
        let error = await_failure(&mut driver);
        assert!(error.contains("queue 1"), "{engine}: {error}");
    }
}

#[test]
fn the_rate_limit_holds_requests_back_and_lets_them_go() {
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    for (limits, least) in [
        // Four requests go, the fifth owes nothing yet but waits for its turn: 4 more at 100 a second.
        (
            Limits {
                bytes: None,
                operations: rate(100, 4),
            },
            30,
        ),
        // 8 requests of 4 KiB: the first is the burst, each further one waits for the one before it.
        (
            Limits {
                bytes: rate(400_000, 4096),
                operations: None,
            },
            50,
        ),
    ] {
        for engine in engines() {
            let (mut driver, _directory) = Driver::on_file(engine, limits);
            let start = Instant::now();
            for slot in 0..8 {
                driver.offer(0, slot, 1, u64::from(slot) * 8, DATA_BYTES);
            }
            driver.kick(0);
            assert!(driver.completed(8).iter().all(|(_, _, status)| *status == 0));
            let took = start.elapsed();
            assert!(
                took >= Duration::from_millis(least),
                "{engine}: {took:?} with {limits:?}"
            );
        }
    }
}

#[test]
fn writes_are_flushed_when_the_driver_does_not() {
    /// Counts flushes.
    struct Counting(FileStorage, Mutex<usize>);
    impl Storage for Counting {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
            self.0.read_at(buffers, length, offset)
        }
        fn write_at(&self, buffers: &mut Buffers<'_>, offset: u64) -> io::Result<()> {
            self.0.write_at(buffers, offset)
        }
        fn flush(&self) -> io::Result<()> {
            *self.1.lock().unwrap() += 1;
            self.0.flush()
        }
        fn extents<'a>(
            &'a self,
            offset: u64,
            length: u64,
            access: storage::Access,
            extents: &mut Vec<storage::Extent<'a>>,
        ) -> bool {
            self.0.extents(offset, length, access, extents)
        }
    }
    for engine in engines() {
        let directory = tempfile::tempdir().unwrap();
        let file = FileStorage::open_or_create(&directory.path().join("disk"), DISK_BYTES).unwrap();
        let storage = Arc::new(Counting(file, Mutex::new(0)));
        let mut driver = Driver::new(engine, 1, Limits::default(), Arc::clone(&storage) as Arc<dyn Storage>);
        let flushes = || *storage.1.lock().unwrap();
        let mut writeback = [0];
        for (features, config, expected) in [
            (FEATURE_FLUSH, None, 0),
            (0, None, 1),
            (FEATURE_CONFIG_WRITE_BACK, None, 1),
            (FEATURE_CONFIG_WRITE_BACK, Some(1), 0),
            (FEATURE_FLUSH | FEATURE_CONFIG_WRITE_BACK, Some(0), 1),
            // A driver that did not agree on the field cannot change it.
            (FEATURE_FLUSH, Some(0), 0),
        ] {
            driver.device.reset();
            driver.queues = vec![DriverQueue::new(0x1000, QUEUE_ENTRIES)];
            put(&driver.memory, driver.queues[0].available_ring, &[0; 4]);
            put(&driver.memory, driver.queues[0].used_ring, &[0; 4]);
            driver.activate(FEATURE_VERSION_1 | features);
            if let Some(config) = config {
                driver.device.write_config(32, &[config]);
            }
            driver.device.read_config(32, &mut writeback);
            assert_eq!(writeback, [u8::from(expected == 0)]);
            let before = flushes();
            driver.offer(0, 0, 1, 0, 512);
            driver.kick(0);
            driver.completed(1);
            assert_eq!(flushes() - before, expected, "{engine} {features:#x} {config:?}");
        }
    }
}

#[test]
fn a_saved_disk_goes_on_as_another() {
    for engine in engines() {
        let (mut driver, directory) = Driver::on_file(engine, Limits::default());
        driver.device.reset();
        driver.queues = (0..2)
            .map(|queue| DriverQueue::new(0x1000 + 0x2000 * queue, QUEUE_ENTRIES))
            .collect();
        driver.activate(FEATURE_VERSION_1 | FEATURE_FLUSH | FEATURE_CONFIG_WRITE_BACK);
        driver.device.write_config(32, &[0]);
        for slot in 0..3 {
            driver.offer(1, slot, 1, u64::from(slot), 512);
        }
        driver.kick(1);
        driver.completed(3);
        driver.device.pause().unwrap();
        let saved = driver.device.save();
        let Driver {
            memory, queues, device, ..
        } = driver;
        drop(device);

        let storage = FileStorage::open_or_create(&directory.path().join("disk"), DISK_BYTES).unwrap();
        let mut other = Driver::new(engine, 2, Limits::default(), Arc::new(storage));
        other.device.reset();
        other.device.restore(&saved.device).unwrap();
        (other.memory, other.queues) = (memory, queues);
        let mut active = crate::testing::activation::activation(&other.memory, FEATURE_VERSION_1, &other.queues);
        for (queue, position) in active
            .activation
            .queues
            .iter_mut()
            .flatten()
            .zip(saved.queues.iter().flatten())
        {
            use virtio_queue::QueueT;
            queue.queue.set_next_avail(position.next_available);
            queue.queue.set_next_used(position.next_used);
        }
        other.device.activate(active.activation).unwrap();
        (other.interrupts, other.kicks) = (active.interrupts, active.kicks);
        let mut write_back = [9];
        other.device.read_config(32, &mut write_back);
        assert_eq!(write_back, [0], "{engine}: the driver's choice is kept");
        other.offer(1, 3, 1, 3, 512);
        other.kick(1);
        assert_eq!(other.completed(1), [(1, 3, 0)], "{engine}");
    }
}

#[test]
fn another_disk_is_not_restored() {
    let (mut driver, _directory) = Driver::on_file(Engine::Pool, Limits::default());
    driver.device.reset();
    let mut serial = [0; 20];
    serial[..6].copy_from_slice(b"serial");
    let state = |capacity, read_only| {
        DeviceState::Block(BlockState {
            serial,
            capacity,
            read_only,
            write_back: true,
        })
    };
    for (state, expected) in [
        (state(DISK_BYTES / 2, false), "its size in bytes was 524288"),
        (state(DISK_BYTES, true), "its being read-only was true"),
        (
            DeviceState::Block(BlockState::default()),
            "its serial number was \\x00\\x00",
        ),
        (DeviceState::Rng(crate::rng::RngState {}), "is of a entropy device"),
    ] {
        let error = driver.device.restore(&state).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[derive(Clone, Debug)]
struct Request {
    write: bool,
    sector: u64,
    sectors: u32,
    byte: u8,
}

fn batches() -> impl Strategy<Value = Vec<Vec<Request>>> {
    let request =
        (any::<bool>(), 0_u64..64, 1_u32..8, any::<u8>()).prop_map(|(write, sector, sectors, byte)| Request {
            write,
            sector,
            sectors,
            byte,
        });
    prop::collection::vec(prop::collection::vec(request, 1..8), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Batches of requests that may overlap, over an overlay: every byte that is read is one that was written there before, or at the
    /// same time.
    #[test]
    fn every_engine_is_a_disk(batches in batches()) {
        for engine in engines() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image");
            std::fs::write(&path, vec![0xa5; 96 * 512]).unwrap();
            let image = format::open(std::fs::File::open(&path).unwrap(), &path, None, None).unwrap();
            let overlay = OverlayStorage::open(image, &directory.path().join("overlay")).unwrap();
            let mut driver = Driver::new(engine, 1, Limits::default(), Arc::new(overlay));
            driver.device.reset();
            driver.activate(FEATURE_VERSION_1 | FEATURE_FLUSH | FEATURE_EVENT_IDX);
            let mut possible = vec![vec![0xa5_u8]; 96];
            for batch in &batches {
                let before = possible.clone();
                let mut written = vec![Vec::new(); 96];
                for (slot, request) in (0_u16..).zip(batch) {
                    driver.fill(0, slot, request.byte);
                    driver.offer(0, slot, u32::from(request.write), request.sector, request.sectors * 512);
                    if request.write {
                        for sector in request.sector..request.sector + u64::from(request.sectors) {
                            written[usize::try_from(sector).unwrap()].push(request.byte);
                        }
                    }
                }
                for (possible, written) in possible.iter_mut().zip(&written) {
                    if !written.is_empty() {
                        possible.clone_from(written);
                    }
                }
                driver.kick(0);
                let mut found = Vec::new();
                while found.len() < batch.len() {
                    // Asked for an interrupt, then looked again: what came in between would not be announced.
                    let seen = found.len();
                    driver.queues[0].set_used_event(&driver.memory, driver.queues[0].seen_used);
                    driver.collect(&mut found);
                    if found.len() == seen {
                        driver.interrupts.await_triggered();
                        driver.collect(&mut found);
                    }
                }
                for (slot, request) in (0_u16..).zip(batch) {
                    if request.write {
                        continue;
                    }
                    let data = driver.data(0, slot);
                    for (sector, bytes) in (request.sector..).zip(data.chunks(512)).take(request.sectors as usize) {
                        let sector = usize::try_from(sector).unwrap();
                        let may = |byte: u8| before[sector].contains(&byte) || written[sector].contains(&byte);
                        prop_assert!(bytes.iter().all(|byte| may(*byte)), "{} sector {}", engine, sector);
                    }
                }
            }
        }
    }
}
