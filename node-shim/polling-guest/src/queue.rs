//! A split virtqueue with event index (virtio 1.2, 2.7), driven by polling: the device is asked for no interrupt, ever.

use core::sync::atomic::{Ordering, fence};

use crate::memory;

const DESCRIPTOR_BYTES: u64 = 16;
/// Another descriptor follows.
const NEXT: u16 = 1;
/// The device writes.
const WRITE: u16 = 2;
/// No interrupt, where there is no event index.
const NO_INTERRUPT: u16 = 1;

/// A part of a chain.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// Address.
    pub(crate) address: u64,
    /// Length.
    pub(crate) bytes: u32,
    /// Whether the device writes to it.
    pub(crate) is_written: bool,
}

/// See the [module](self).
pub(crate) struct Queue {
    start: u64,
    size: u16,
    index: u16,
    notify: u64,
    /// Chains made available, modulo 2^16; and how many of those the device was last told of.
    available: u16,
    told: u16,
    /// Chains taken back.
    taken: u16,
    /// Notifications.
    pub(crate) kicks: u64,
}

impl Queue {
    /// Descriptors at most: a page of them.
    pub(crate) const MAX_SIZE: u16 = 256;

    /// A queue with its rings in 12 KiB from `start`.
    pub(crate) fn new(start: u64, size: u16, index: u16, notify: u64) -> Self {
        let queue = Self {
            start,
            size,
            index,
            notify,
            available: 0,
            told: 0,
            taken: 0,
            kicks: 0,
        };
        for offset in (0..0x3000).step_by(8) {
            memory::write(start + offset, 0_u64);
        }
        memory::write(queue.available(), NO_INTERRUPT);
        queue.want_no_interrupt();
        queue
    }

    /// Descriptors that it has.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Address of the descriptor table.
    pub(crate) fn descriptors(&self) -> u64 {
        self.start
    }

    /// Address of the driver's area.
    pub(crate) fn available(&self) -> u64 {
        self.start + 0x1000
    }

    /// Address of the device's area.
    pub(crate) fn used(&self) -> u64 {
        self.start + 0x2000
    }

    /// Address that tells the device to look.
    pub(crate) fn notify(&self) -> u64 {
        self.notify
    }

    /// Memory after the rings that belongs to the queue: 52 KiB.
    pub(crate) fn room(&self) -> u64 {
        self.start + 0x3000
    }

    /// The interrupt that is asked for is one that lies behind: none comes for the next 65,535 chains.
    fn want_no_interrupt(&self) {
        let event = self.available() + 4 + 2 * u64::from(self.size);
        memory::write(event, self.taken.wrapping_sub(1));
    }

    /// Writes a chain to the descriptors from `head` on.
    pub(crate) fn describe(&self, head: u16, parts: &[Part]) {
        let mut at = head;
        for (position, part) in parts.iter().enumerate() {
            let last = position + 1 == parts.len();
            let flags = if last { 0 } else { NEXT } | if part.is_written { WRITE } else { 0 };
            let descriptor = self.descriptors() + u64::from(at) * DESCRIPTOR_BYTES;
            memory::write(descriptor, part.address);
            memory::write(descriptor + 8, part.bytes);
            memory::write(descriptor + 12, flags);
            at += 1;
            memory::write(descriptor + 14, at);
        }
    }

    /// Gives a chain to the device, which is told by [`Self::kick`].
    pub(crate) fn give(&mut self, head: u16) {
        let slot = self.available % self.size;
        memory::write(self.available() + 4 + 2 * u64::from(slot), head);
        self.available = self.available.wrapping_add(1);
        fence(Ordering::Release);
        memory::write(self.available() + 2, self.available);
    }

    /// Tells the device of what it was given, if it wants to be told.
    pub(crate) fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let event: u16 = memory::read(self.used() + 4 + 8 * u64::from(self.size));
        let new = self.available.wrapping_sub(event).wrapping_sub(1);
        if new < self.available.wrapping_sub(self.told) {
            memory::write(self.notify, self.index);
            self.kicks += 1;
        }
        self.told = self.available;
    }

    /// A chain that the device is done with: its head, and what it says it wrote.
    pub(crate) fn take(&mut self) -> Result<Option<(u16, u32)>, &'static str> {
        let used: u16 = memory::read(self.used() + 2);
        if used == self.taken {
            return Ok(None);
        }
        if used.wrapping_sub(self.taken) > self.available.wrapping_sub(self.taken) {
            return Err("the device used more than it was given");
        }
        fence(Ordering::Acquire);
        let element = self.used() + 4 + 8 * u64::from(self.taken % self.size);
        let (head, bytes): (u32, u32) = (memory::read(element), memory::read(element + 4));
        self.taken = self.taken.wrapping_add(1);
        self.want_no_interrupt();
        match u16::try_from(head) {
            Ok(head) if head < self.size => Ok(Some((head, bytes))),
            _ => Err("the device used a descriptor that is none"),
        }
    }
}
