//! virtio-balloon (virtio 1.2, section 5.5): takes memory from the guest and gives it to the host, with deflation when the guest runs
//! out of memory, statistics, and reporting of pages that are free.
//!
//! What comes back from the guest goes to the host by `madvise(MADV_DONTNEED)`; a page that the guest uses again, whether it says so
//! before or not, is a new page of zeros. So the device keeps no list of pages.

pub mod handle;
mod pages;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

pub use self::handle::{BalloonHandle, BalloonStatus, Statistics};
use self::handle::{PAGE_SHIFT, Shared};
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{Activation, DeviceError, DeviceType, Event, HostSource, Memory, VirtioDevice, read_config_bytes};
use crate::discard::{discard, total_bytes};
use crate::ring::{Ring, Step};
use crate::state::{DeviceState, QueuePosition, RestoreError, SavedDevice};
use crate::transport::Interrupts;
use std::sync::Arc;

/// `VIRTIO_BALLOON_F_STATS_VQ` (5.5.3).
const FEATURE_STATISTICS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM` (5.5.3).
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING` (5.5.3).
const FEATURE_REPORTING: u64 = 1 << 5;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// Queues with a fixed number. Of the others the specification fixes the numbers too (2, 3 and 4), but Linux before 6.11 leaves no gap
/// for the one that is not negotiated (3), so a driver's statistics queue, if it has one, is queue 2, and every later one reports pages.
const FIXED_QUEUES: u16 = 2;
const QUEUES: usize = 5;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
/// Offset of `actual` in the configuration, which the driver writes (5.5.4).
const CONFIG_ACTUAL: u64 = 4;
/// Most bytes of statistics that are looked at: 32 entries of 10 bytes.
const STATISTICS_MAX_BYTES: usize = 320;

/// A memory balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    active: Option<Active>,
    chain: Chain,
    room: Room,
    restored: Option<u16>,
}

/// What a live device has.
struct Active {
    inflate: Ring,
    deflate: Ring,
    /// The statistics queue and its one buffer, which the device keeps until it wants new numbers (5.5.6.3).
    statistics: Option<(Ring, Option<u16>)>,
    reporting: Vec<(u16, Ring)>,
    interrupts: Arc<dyn Interrupts>,
    config_vector: Option<u16>,
}

/// What is saved of a balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    target_pages: u32,
    actual_pages: u32,
    /// Head of the statistics buffer that the device holds.
    statistics_buffer: Option<u16>,
}

impl Balloon {
    /// An empty balloon, and the handle that sets its size.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(memory: &Memory) -> std::io::Result<(Self, BalloonHandle)> {
        let shared = Arc::new(Shared::new(total_bytes(memory))?);
        let balloon = Self {
            shared: Arc::clone(&shared),
            active: None,
            chain: Chain::default(),
            room: Room::default(),
            restored: None,
        };
        Ok((balloon, BalloonHandle::new(shared)))
    }

    /// The handle has something: another target, or a wish for statistics.
    fn on_wake(&mut self) -> Result<(), DeviceError> {
        let wishes = self.shared.take_wishes();
        let Some(active) = &mut self.active else { return Ok(()) };
        if wishes.target {
            active.interrupts.raise(active.config_vector, "balloon")?;
        }
        if wishes.statistics
            && let Some((ring, held)) = &mut active.statistics
            && let Some(head) = held.take()
        {
            // The driver fills it anew and offers it again.
            ring.complete(head, 0)?;
            ring.announce()?;
        }
        Ok(())
    }

    fn on_queue(&mut self, index: u16) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let (chain, room) = (&mut self.chain, &mut self.room);
        match index {
            INFLATE => {
                active.inflate.drain(chain, |memory, chain| {
                    pages::for_each_run(memory, chain, room, |start, bytes| {
                        // A page that is not RAM is the driver's mistake, and nobody else's trouble (5.5.6.1.1 lets it choose).
                        let _ = discard(memory, GuestAddress(start), bytes);
                    })?;
                    Ok(Step::Done(0))
                })?;
            }
            DEFLATE => {
                active.deflate.drain(chain, |memory, chain| {
                    pages::for_each_run(memory, chain, room, |_, _| {})?;
                    Ok(Step::Done(0))
                })?;
            }
            _ => self.on_optional_queue(index)?,
        }
        Ok(())
    }

    fn on_optional_queue(&mut self, index: u16) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if index == FIXED_QUEUES
            && let Some((ring, held)) = &mut active.statistics
        {
            return take_statistics(&self.shared, ring, held, &mut self.chain, &mut self.room);
        }
        if let Some((_, ring)) = active.reporting.iter_mut().find(|(number, _)| *number == index) {
            ring.drain(&mut self.chain, |memory, chain| {
                for segment in chain.writable() {
                    let _ = discard(memory, segment.address, u64::from(segment.length));
                }
                Ok(Step::Done(0))
            })?;
        }
        Ok(())
    }
}

/// Reads every offered buffer of statistics and keeps the last of them.
fn take_statistics(
    shared: &Shared,
    ring: &mut Ring,
    held: &mut Option<u16>,
    chain: &mut Chain,
    room: &mut Room,
) -> Result<(), DeviceError> {
    for _ in 0..ring.size() {
        if !ring.next(chain)? {
            if ring.enable_kicks()? {
                continue;
            }
            break;
        }
        let mut bytes = [0; STATISTICS_MAX_BYTES];
        let mut buffers = Buffers::gather(std::mem::take(room), ring.memory(), chain.readable())
            .map_err(|source| pages::unreadable(&source))?;
        let count = buffers.copy_into(&mut bytes);
        *room = buffers.into_room();
        shared.set_statistics(Statistics::parse(&bytes[..count]));
        // A driver has one buffer; one that offers more gets the older one back.
        if let Some(older) = held.replace(chain.head()) {
            ring.complete(older, 0)?;
        }
    }
    ring.announce()
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn name(&self) -> &'static str {
        "balloon"
    }

    fn features(&self) -> u64 {
        FEATURE_STATISTICS | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (target, actual) = self.shared.pages();
        let mut config = [0; 8];
        config[..4].copy_from_slice(&target.to_le_bytes());
        config[4..].copy_from_slice(&actual.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (CONFIG_ACTUAL, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            self.shared.set_actual(u32::from_le_bytes(bytes));
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        let inflate = Ring::take(&mut activation, INFLATE, self.name())?;
        let deflate = Ring::take(&mut activation, DEFLATE, self.name())?;
        let mut next = FIXED_QUEUES;
        let mut statistics = None;
        if activation.features & FEATURE_STATISTICS != 0 {
            let ring = Ring::take(&mut activation, next, self.name())?;
            next += 1;
            let held = self.restored.take();
            if held.is_some_and(|head| head >= ring.size()) {
                return Err(DeviceError::Driver {
                    device: self.name().to_owned(),
                    what: "its statistics buffer is no entry of its queue".to_owned(),
                });
            }
            statistics = Some((ring, held));
        }
        let mut reporting = Vec::new();
        if activation.features & FEATURE_REPORTING != 0 {
            for index in next..u16::try_from(QUEUES).unwrap_or(next) {
                if let Ok(ring) = Ring::take(&mut activation, index, self.name()) {
                    reporting.push((index, ring));
                }
            }
        }
        self.shared.set_driver(true);
        self.active = Some(Active {
            inflate,
            deflate,
            statistics,
            reporting,
            interrupts: activation.interrupts,
            config_vector: activation.config_vector,
        });
        Ok(())
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![self.shared.wake().source()]
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        match event {
            Event::Queue(index) => self.on_queue(index),
            Event::Host(_) => self.on_wake(),
        }
    }

    fn reset(&mut self) {
        self.active = None;
        self.restored = None;
        self.shared.set_driver(false);
    }

    fn save(&self) -> SavedDevice {
        let mut queues: Vec<Option<QueuePosition>> = vec![None; QUEUES];
        let mut statistics_buffer = None;
        if let Some(active) = &self.active {
            let statistics = active.statistics.iter().map(|(ring, _)| (FIXED_QUEUES, ring));
            let reporting = active.reporting.iter().map(|(index, ring)| (*index, ring));
            let fixed = [(INFLATE, &active.inflate), (DEFLATE, &active.deflate)];
            for (index, ring) in fixed.into_iter().chain(statistics).chain(reporting) {
                queues[usize::from(index)] = Some(ring.position());
            }
            statistics_buffer = active.statistics.as_ref().and_then(|(_, held)| *held);
        }
        let (target_pages, actual_pages) = self.shared.pages();
        SavedDevice {
            queues,
            device: DeviceState::Balloon(BalloonState {
                target_pages,
                actual_pages,
                statistics_buffer,
            }),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Balloon(saved) = state else {
            return Err(RestoreError::kind(self.name(), state));
        };
        let max = self.shared.max_pages();
        if saved.target_pages > max {
            return Err(RestoreError::differs(
                self.name(),
                "size in pages",
                &saved.target_pages,
                &format_args!("at most {max}"),
            ));
        }
        self.shared.restore(saved.target_pages, saved.actual_pages);
        self.restored = saved.statistics_buffer;
        Ok(())
    }
}

/// Bytes of `pages` pages of 4 KiB, which a balloon always counts in (5.5.6).
const fn page_bytes(pages: u32) -> u64 {
    (pages as u64) << PAGE_SHIFT
}

#[cfg(test)]
mod tests;
