//! What the engines of a disk are worth, without KVM: `cargo run --release --example block_bench --features testing -- FILE [SECONDS]`.
//!
//! FILE is made, or has 256 MiB at least. A driver in this process keeps a number of random 4 KiB requests in flight. `same thread` is a disk
//! that its driver's thread serves, which is what a VMM without threads would do.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use node_shim_virtio::block::{Block, Engine, FileStorage, Options, Storage};
use node_shim_virtio::device::{Event, FEATURE_EVENT_IDX, FEATURE_VERSION_1, VirtioDevice};
use node_shim_virtio::rate_limit::Limits;
use node_shim_virtio::testing::activation::{Activated, activation};
use node_shim_virtio::testing::driver::put;
use node_shim_virtio::testing::{Descriptor as D, DriverQueue, guest_memory};
use node_shim_virtio::transport::{Interrupts, MsiMessage};
use vmm_sys_util::eventfd::EventFd;

const FILE_BYTES: u64 = 256 << 20;
const REQUEST_BYTES: u32 = 4096;
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x1_8000;
const DATA: u64 = 0x2_0000;

/// As an irqfd: an eventfd for the one queue.
struct Line(EventFd);

impl Interrupts for Line {
    fn route(&self, _vector: u16, _message: Option<MsiMessage>) -> io::Result<()> {
        Ok(())
    }
    fn trigger(&self, _vector: u16) -> io::Result<()> {
        self.0.write(1)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a file")?;
    let seconds = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let storage = prepare(Path::new(&path))?;
    println!(
        "{:>24} {:>6} {:>6} {:>10} {:>9}",
        "engine", "kind", "depth", "requests/s", "µs each"
    );
    for write in [false, true] {
        for depth in [1, 4, 32] {
            for engine in [Engine::Inline, Engine::Pool, Engine::Uring] {
                if engine == Engine::Uring && Engine::best() != Engine::Uring {
                    continue;
                }
                let rate = measure(&storage, engine, depth, write, Duration::from_secs(seconds))?;
                let name = match engine {
                    Engine::Inline => "same thread".to_owned(),
                    Engine::Pool | Engine::Uring => engine.to_string(),
                };
                let kind = if write { "write" } else { "read" };
                println!(
                    "{name:>24} {kind:>6} {depth:>6} {rate:>10.0} {:>9.1}",
                    1e6 * f64::from(depth) / rate
                );
            }
        }
    }
    Ok(())
}

fn prepare(path: &Path) -> Result<Arc<dyn Storage>, Box<dyn std::error::Error>> {
    if !path.exists() {
        let chunk = vec![0x5a; 1 << 20];
        let mut file = std::fs::File::create(path)?;
        for _ in 0..FILE_BYTES >> 20 {
            io::Write::write_all(&mut file, &chunk)?;
        }
    }
    let length = std::fs::metadata(path)?.len();
    Ok(Arc::new(FileStorage::open_or_create(path, length)?))
}

fn measure(storage: &Arc<dyn Storage>, engine: Engine, depth: u16, write: bool, time: Duration) -> io::Result<f64> {
    let memory = guest_memory();
    let mut queue = DriverQueue::new(0x1000, 256);
    let mut device = match engine {
        Engine::Inline => Block::on_caller("bench", "bench", Arc::clone(storage)),
        Engine::Pool | Engine::Uring => {
            let options = Options {
                name: "bench".to_owned(),
                serial: "bench".to_owned(),
                queues: 1,
                engine,
                limits: Limits::default(),
                on_thread: node_shim_virtio::threads::unconfined,
                discard: true,
                spare_processor: true,
            };
            Block::start(options, Arc::clone(storage))?
        }
    };
    let line = Arc::new(Line(EventFd::new(0)?));
    // FLUSH: writes are completed when they are in the page cache, as for a guest.
    let Activated {
        mut activation, kicks, ..
    } = activation(&memory, FEATURE_VERSION_1 | FEATURE_EVENT_IDX | 1 << 9, &[queue]);
    activation.interrupts = Arc::clone(&line) as Arc<dyn Interrupts>;
    device.activate(activation).map_err(io::Error::other)?;

    let blocks = storage.len() / u64::from(REQUEST_BYTES);
    let mut random = 1_u64;
    let mut offer = |queue: &mut DriverQueue, slot: u16| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let index = u64::from(slot);
        let (header, status, data) = (
            HEADERS + 16 * index,
            STATUSES + index,
            DATA + u64::from(REQUEST_BYTES) * index,
        );
        put(&memory, header, &u32::from(write).to_le_bytes());
        put(&memory, header + 8, &((random >> 20) % blocks * 8).to_le_bytes());
        let buffer = if write {
            D::readable(data, REQUEST_BYTES)
        } else {
            D::writable(data, REQUEST_BYTES)
        };
        queue.send(
            &memory,
            slot * 3,
            &[D::readable(header, 16), buffer, D::writable(status, 1)],
        );
    };
    for slot in 0..depth {
        offer(&mut queue, slot);
    }
    let (start, mut done) = (Instant::now(), 0_u32);
    while start.elapsed() < time {
        match engine {
            Engine::Inline => device.handle(Event::Queue(0)).map_err(io::Error::other)?,
            Engine::Pool | Engine::Uring => kicks[0].write(1)?,
        }
        // Asked for an interrupt, then looked again: what came in between would not be announced.
        queue.set_used_event(&memory, queue.seen_used);
        let mut used = queue.used(&memory);
        if used.is_none() {
            line.0.read()?;
            used = queue.used(&memory);
        }
        while let Some((head, _)) = used {
            done += 1;
            offer(&mut queue, u16::try_from(head / 3).map_err(io::Error::other)?);
            used = queue.used(&memory);
        }
    }
    let rate = f64::from(done) / start.elapsed().as_secs_f64();
    device.reset();
    Ok(rate)
}
