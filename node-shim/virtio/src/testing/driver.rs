//! The driver's side of a virtqueue: rings in guest memory, written without any regard for the specification where a test asks so.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::device::Memory;

/// A descriptor as a driver writes it (virtio 1.2, 2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// [`Descriptor::NEXT`], [`Descriptor::WRITE`], [`Descriptor::INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl Descriptor {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes to this buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;

    /// A buffer that the device reads.
    pub const fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: 0,
            next: 0,
        }
    }

    /// A buffer that the device writes.
    pub const fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: Self::WRITE,
            next: 0,
        }
    }

    /// The 16 bytes that are in guest memory.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A virtqueue from the driver's side: descriptor table, available ring and used ring, one after the other from `base`.
#[derive(Clone, Copy, Debug)]
pub struct DriverQueue {
    /// Number of entries.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the available ring.
    pub available_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// Index of the next available entry.
    pub available: u16,
    /// Index of the next used entry that was not looked at.
    pub seen_used: u16,
}

impl DriverQueue {
    /// A queue of `size` entries at `base`, which is aligned to 16. It takes less than 26 × size + 64 bytes.
    pub const fn new(base: u64, size: u16) -> Self {
        let available_ring = base + 16 * size as u64;
        let used_ring = (available_ring + 6 + 2 * size as u64).next_multiple_of(4);
        Self {
            size,
            descriptor_table: base,
            available_ring,
            used_ring,
            available: 0,
            seen_used: 0,
        }
    }

    /// The device's side of the same queue, as a transport would make it.
    ///
    /// # Panics
    /// When the queue's addresses are not aligned.
    pub fn device_queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptor_table))
            .expect("aligned");
        queue
            .try_set_avail_ring_address(GuestAddress(self.available_ring))
            .expect("aligned");
        queue
            .try_set_used_ring_address(GuestAddress(self.used_ring))
            .expect("aligned");
        queue.set_ready(true);
        queue
    }

    /// Writes one descriptor.
    pub fn write_descriptor(&self, memory: &Memory, index: u16, descriptor: Descriptor) {
        put(
            memory,
            self.descriptor_table + 16 * u64::from(index),
            &descriptor.bytes(),
        );
    }

    /// Writes a chain to consecutive descriptors from `head`, linked, and returns `head`.
    pub fn write_chain(&self, memory: &Memory, head: u16, chain: &[Descriptor]) -> u16 {
        for (offset, descriptor) in (0_u16..).zip(chain) {
            let last = usize::from(offset) + 1 == chain.len();
            let index = (head + offset) % self.size;
            let next = (index + 1) % self.size;
            let linked = Descriptor {
                flags: descriptor.flags | Descriptor::NEXT,
                next,
                ..*descriptor
            };
            self.write_descriptor(memory, index, if last { *descriptor } else { linked });
        }
        head
    }

    /// Makes a chain available.
    pub fn offer(&mut self, memory: &Memory, head: u16) {
        put(
            memory,
            self.available_ring + 4 + 2 * u64::from(self.available % self.size),
            &head.to_le_bytes(),
        );
        self.available = self.available.wrapping_add(1);
        put(memory, self.available_ring + 2, &self.available.to_le_bytes());
    }

    /// Writes and offers a chain.
    pub fn send(&mut self, memory: &Memory, head: u16, chain: &[Descriptor]) {
        let head = self.write_chain(memory, head, chain);
        self.offer(memory, head);
    }

    /// Sets the available index to anything at all.
    pub fn jump_to(&mut self, memory: &Memory, index: u16) {
        self.available = index;
        put(memory, self.available_ring + 2, &index.to_le_bytes());
    }

    /// Asks for no interrupts (without `EVENT_IDX`).
    pub fn suppress_interrupts(&self, memory: &Memory, suppress: bool) {
        put(memory, self.available_ring, &u16::from(suppress).to_le_bytes());
    }

    /// With `EVENT_IDX`: asks for an interrupt when the used index passes `index`.
    pub fn set_used_event(&self, memory: &Memory, index: u16) {
        put(
            memory,
            self.available_ring + 4 + 2 * u64::from(self.size),
            &index.to_le_bytes(),
        );
    }

    /// The next chain that the device has used: its head and the bytes that the device says it wrote.
    ///
    /// # Panics
    /// When the queue is not in guest memory.
    pub fn used(&mut self, memory: &Memory) -> Option<(u32, u32)> {
        let index: u16 = memory
            .read_obj(GuestAddress(self.used_ring + 2))
            .expect("in guest memory");
        if index == self.seen_used {
            return None;
        }
        let at = self.used_ring + 4 + 8 * u64::from(self.seen_used % self.size);
        self.seen_used = self.seen_used.wrapping_add(1);
        let head = memory.read_obj(GuestAddress(at)).expect("in guest memory");
        Some((head, memory.read_obj(GuestAddress(at + 4)).expect("in guest memory")))
    }
}

/// Writes to guest memory; outside of it a hostile driver achieves nothing.
pub fn put(memory: &Memory, address: u64, bytes: &[u8]) {
    let _ = memory.write_slice(bytes, GuestAddress(address));
}

/// Reads guest memory.
///
/// # Panics
/// When the range is not in guest memory.
pub fn peek(memory: &Memory, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .expect("in guest memory");
    bytes
}
