//! How the rest of the VMM sees a balloon.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::page_bytes;
use crate::lock::lock;
use crate::wake::Wake;

/// A balloon's pages have 4 KiB whatever the guest's have (virtio 1.2, 5.5.6).
pub(super) const PAGE_SHIFT: u32 = 12;

/// Sets a balloon's size and says how it is. Works from any thread and at any time, also before the guest has a driver.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

/// How a balloon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BalloonStatus {
    /// Whether the guest has a driver for it.
    pub driver: bool,
    /// Bytes that it shall take from the guest.
    pub target_bytes: u64,
    /// Bytes that it has taken, as the guest says.
    pub actual_bytes: u64,
}

/// What the guest says of its memory (virtio 1.2, 5.5.6.4), in bytes where nothing else is said. What it does not say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Read from swap since the guest's start.
    pub swapped_in: Option<u64>,
    /// Written to swap.
    pub swapped_out: Option<u64>,
    /// Number of page faults that needed IO.
    pub major_faults: Option<u64>,
    /// Number of page faults that did not.
    pub minor_faults: Option<u64>,
    /// Not used for anything.
    pub free: Option<u64>,
    /// All memory, less the balloon.
    pub total: Option<u64>,
    /// An estimate of what can be used without swapping.
    pub available: Option<u64>,
    /// Caches that can be dropped.
    pub disk_caches: Option<u64>,
    /// Number of huge pages that were allocated.
    pub huge_allocations: Option<u64>,
    /// Number of huge pages that could not be.
    pub huge_failures: Option<u64>,
}

/// Bytes of a tag and its value.
const ENTRY_BYTES: usize = 10;

impl Statistics {
    /// From the driver's buffer: pairs of a 16-bit tag and a 64-bit value (5.5.6.3). Unknown tags and a torn end are left out.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        for entry in bytes.chunks_exact(ENTRY_BYTES) {
            let [t0, t1, value @ ..] = entry else { continue };
            let Ok(value) = <[u8; 8]>::try_from(value) else {
                continue;
            };
            let field = match u16::from_le_bytes([*t0, *t1]) {
                0 => &mut statistics.swapped_in,
                1 => &mut statistics.swapped_out,
                2 => &mut statistics.major_faults,
                3 => &mut statistics.minor_faults,
                4 => &mut statistics.free,
                5 => &mut statistics.total,
                6 => &mut statistics.available,
                7 => &mut statistics.disk_caches,
                8 => &mut statistics.huge_allocations,
                9 => &mut statistics.huge_failures,
                _ => continue,
            };
            *field = Some(u64::from_le_bytes(value));
        }
        statistics
    }
}

impl BalloonHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Sets how many bytes the balloon takes from the guest: whole pages of 4 KiB, at most all of its memory. Returns what was set. The
    /// guest follows in its own time, and deflates by itself when it runs out of memory.
    pub fn set_target(&self, bytes: u64) -> u64 {
        let pages = u32::try_from(bytes >> PAGE_SHIFT)
            .unwrap_or(u32::MAX)
            .min(self.0.max_pages);
        let mut state = self.0.lock();
        state.target_pages = pages;
        state.wishes.target = true;
        drop(state);
        self.0.wake.signal();
        page_bytes(pages)
    }

    /// How the balloon is.
    pub fn status(&self) -> BalloonStatus {
        let state = self.0.lock();
        BalloonStatus {
            driver: state.driver,
            target_bytes: page_bytes(state.target_pages),
            actual_bytes: page_bytes(state.actual_pages),
        }
    }

    /// What the guest last said of its memory, and when. Also asks it to say so again, so that somebody who calls this now and then gets
    /// numbers as old as the time between.
    pub fn statistics(&self) -> Option<(Statistics, Instant)> {
        let mut state = self.0.lock();
        state.wishes.statistics = true;
        let last = state.statistics;
        drop(state);
        self.0.wake.signal();
        last
    }
}

/// What the handle wants of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Tell the driver that the target changed.
    pub(super) target: bool,
    /// Ask the driver for statistics.
    pub(super) statistics: bool,
}

#[derive(Default)]
struct State {
    driver: bool,
    target_pages: u32,
    actual_pages: u32,
    statistics: Option<(Statistics, Instant)>,
    wishes: Wishes,
}

/// What device and handle share.
pub(super) struct Shared {
    state: Mutex<State>,
    max_pages: u32,
    wake: Wake,
}

impl Shared {
    pub(super) fn new(memory_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            max_pages: u32::try_from(memory_bytes >> PAGE_SHIFT).unwrap_or(u32::MAX),
            wake: Wake::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) const fn max_pages(&self) -> u32 {
        self.max_pages
    }

    /// Readable when there are wishes.
    pub(super) const fn wake(&self) -> &Wake {
        &self.wake
    }

    pub(super) fn take_wishes(&self) -> Wishes {
        self.wake.clear();
        std::mem::take(&mut self.lock().wishes)
    }

    /// Target and actual size in pages.
    pub(super) fn pages(&self) -> (u32, u32) {
        let state = self.lock();
        (state.target_pages, state.actual_pages)
    }

    /// What the driver says that it has given; a wrong number is shown as it is, but for what is not possible.
    pub(super) fn set_actual(&self, pages: u32) {
        self.lock().actual_pages = pages.min(self.max_pages);
    }

    pub(super) fn set_statistics(&self, statistics: Statistics) {
        self.lock().statistics = Some((statistics, Instant::now()));
    }

    /// A driver comes, or goes: then nothing of what it said holds any more.
    pub(super) fn set_driver(&self, driver: bool) {
        let mut state = self.lock();
        state.driver = driver;
        if !driver {
            state.actual_pages = 0;
            state.statistics = None;
        }
    }

    pub(super) fn restore(&self, target_pages: u32, actual_pages: u32) {
        let mut state = self.lock();
        state.target_pages = target_pages;
        state.actual_pages = actual_pages.min(self.max_pages);
    }
}
