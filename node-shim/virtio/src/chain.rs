//! Descriptor chains, checked as they are read (virtio 1.2, section 2.7.5).
//!
//! virtio-queue's own iterator ends silently at whatever is wrong, so that a broken chain looks like a short one, and it does not check
//! the order or the addresses of buffers. This walk refuses such a chain and says why.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::device::Memory;

/// Most descriptors in one chain, those of an indirect table included. Linux puts more of them into an indirect table than the queue has
/// entries, QEMU's limit is 1024 as well, and so is `IOV_MAX`.
pub const MAX_DESCRIPTORS: usize = 1024;
const DESCRIPTOR_BYTES: u32 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;

/// What is wrong with a chain. The device gives up: no reply could reach a driver that writes such things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// An index beyond the table.
    #[error("descriptor index {index} is beyond a table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Entries in the table.
        size: u16,
    },
    /// The descriptor itself cannot be read.
    #[error("a descriptor at {0:#x} is not in guest memory")]
    Table(u64),
    /// A buffer is not in guest memory.
    #[error("a buffer of {length} bytes at {address:#x} is not in guest memory")]
    Buffer {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// More than [`MAX_DESCRIPTORS`], which a loop is as well.
    #[error("a chain has more than {MAX_DESCRIPTORS} descriptors, or a loop")]
    TooLong,
    /// More than 2^32 - 1 bytes (2.7.5.2).
    #[error("a chain has 4 GiB or more")]
    TooManyBytes,
    /// A buffer for the device to read comes after one for it to write (2.7.4.2).
    #[error("a readable buffer comes after a writable one")]
    Order,
    /// An indirect table that may not be one (2.7.5.3.1).
    #[error("an indirect descriptor {0}")]
    Indirect(&'static str),
}

/// A buffer in guest memory; [`Chain::read`] has checked that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Bytes, never 0.
    pub length: u32,
}

/// A chain: what the device may read, then what it may write. Kept by its device and filled again and again, so that no request
/// allocates.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_bytes: u32,
    writable_bytes: u32,
}

/// Where descriptors are read from.
#[derive(Clone, Copy)]
struct Table {
    address: GuestAddress,
    size: u16,
    indirect: bool,
}

impl Chain {
    /// The head's index, which is returned to the driver.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Buffers that the device reads.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// Buffers that the device writes.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Bytes in [`Self::readable`].
    pub fn readable_bytes(&self) -> u32 {
        self.readable_bytes
    }

    /// Bytes in [`Self::writable`].
    pub fn writable_bytes(&self) -> u32 {
        self.writable_bytes
    }

    /// Address of the last byte that the device may write.
    pub fn last_writable(&self) -> Option<GuestAddress> {
        let last = self.writable.last()?;
        Some(GuestAddress(last.address.0 + u64::from(last.length) - 1))
    }

    /// Reads the chain that starts at `head` of a descriptor table of `size` entries. Descriptors without any bytes are left out.
    ///
    /// # Errors
    /// Whatever is wrong with the chain.
    pub fn read(
        &mut self,
        memory: &Memory,
        table: GuestAddress,
        size: u16,
        head: u16,
        indirect_allowed: bool,
    ) -> Result<(), ChainError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        (self.readable_bytes, self.writable_bytes) = (0, 0);
        let mut table = Table {
            address: table,
            size,
            indirect: false,
        };
        let mut index = head;
        for _ in 0..=MAX_DESCRIPTORS {
            let descriptor = table.descriptor(memory, index)?;
            let flags = descriptor.flags();
            if flags & FLAG_INDIRECT != 0 {
                table = table.enter(&descriptor, indirect_allowed)?;
                index = 0;
                continue;
            }
            self.push(memory, &descriptor)?;
            if flags & FLAG_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(ChainError::TooLong)
    }

    fn push(&mut self, memory: &Memory, descriptor: &Descriptor) -> Result<(), ChainError> {
        let (address, length) = (descriptor.addr(), descriptor.len());
        let writable = descriptor.flags() & FLAG_WRITE != 0;
        if !writable && !self.writable.is_empty() {
            return Err(ChainError::Order);
        }
        if length == 0 {
            return Ok(());
        }
        if !usize::try_from(length).is_ok_and(|bytes| GuestMemoryBackend::check_range(memory, address, bytes)) {
            return Err(ChainError::Buffer {
                address: address.0,
                length,
            });
        }
        if self.readable.len() + self.writable.len() == MAX_DESCRIPTORS {
            return Err(ChainError::TooLong);
        }
        let (segments, bytes) = if writable {
            (&mut self.writable, &mut self.writable_bytes)
        } else {
            (&mut self.readable, &mut self.readable_bytes)
        };
        segments.push(Segment { address, length });
        *bytes = bytes.checked_add(length).ok_or(ChainError::TooManyBytes)?;
        self.readable_bytes
            .checked_add(self.writable_bytes)
            .map(drop)
            .ok_or(ChainError::TooManyBytes)
    }
}

impl Table {
    fn descriptor(self, memory: &Memory, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.size {
            return Err(ChainError::Index { index, size: self.size });
        }
        let address = self
            .address
            .0
            .checked_add(u64::from(index) * u64::from(DESCRIPTOR_BYTES));
        let address = address.ok_or(ChainError::Table(self.address.0))?;
        // One copy: what the guest changes afterwards does not matter.
        memory
            .read_obj(GuestAddress(address))
            .map_err(|_| ChainError::Table(address))
    }

    fn enter(self, descriptor: &Descriptor, allowed: bool) -> Result<Self, ChainError> {
        if !allowed {
            return Err(ChainError::Indirect("was not negotiated"));
        }
        if self.indirect {
            return Err(ChainError::Indirect("is in an indirect table"));
        }
        if descriptor.flags() & FLAG_NEXT != 0 {
            return Err(ChainError::Indirect("has a next one"));
        }
        let length = descriptor.len();
        if length == 0 || !length.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(ChainError::Indirect(
                "has a table that is not a whole number of descriptors",
            ));
        }
        let size = u16::try_from(length / DESCRIPTOR_BYTES)
            .map_err(|_| ChainError::Indirect("has a table of more than 65535 descriptors"))?;
        Ok(Self {
            address: descriptor.addr(),
            size,
            indirect: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::driver::put;
    use crate::testing::{Descriptor as D, DriverQueue, MEMORY_BYTES, guest_memory};

    const QUEUE: DriverQueue = DriverQueue::new(0x1000, 8);

    fn read(chain: &[D], indirect_allowed: bool) -> Result<Chain, ChainError> {
        let memory = guest_memory();
        for (index, descriptor) in (0_u16..).zip(chain) {
            QUEUE.write_descriptor(&memory, index, *descriptor);
        }
        // An indirect table at 0x8000: one readable, one writable buffer.
        put(
            &memory,
            0x8000,
            &D {
                flags: D::NEXT,
                next: 1,
                ..D::readable(0x9000, 16)
            }
            .bytes(),
        );
        put(&memory, 0x8010, &D::writable(0xa000, 32).bytes());
        // A table whose only entry is indirect.
        put(
            &memory,
            0x8100,
            &D {
                flags: D::INDIRECT,
                ..D::readable(0x8000, 32)
            }
            .bytes(),
        );
        let mut chain = Chain::default();
        chain
            .read(
                &memory,
                GuestAddress(QUEUE.descriptor_table),
                QUEUE.size,
                0,
                indirect_allowed,
            )
            .map(|()| chain)
    }

    fn next(descriptor: D, next: u16) -> D {
        D {
            flags: descriptor.flags | D::NEXT,
            next,
            ..descriptor
        }
    }

    fn indirect(address: u64, length: u32) -> D {
        D {
            flags: D::INDIRECT,
            ..D::readable(address, length)
        }
    }

    #[test]
    fn a_chain_is_split_by_direction() {
        let chain = [
            next(D::readable(0x4000, 16), 1),
            next(D::readable(0, 0), 2),
            D::writable(0x5000, 512),
        ];
        let chain = read(&chain, true).unwrap();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (16, 512));
        assert_eq!(
            chain.readable(),
            [Segment {
                address: GuestAddress(0x4000),
                length: 16
            }]
        );
        assert_eq!(chain.last_writable(), Some(GuestAddress(0x51ff)));
    }

    #[test]
    fn an_indirect_table_may_follow_direct_descriptors() {
        let chain = read(&[next(D::readable(0x4000, 4), 1), indirect(0x8000, 32)], true).unwrap();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (20, 32));
    }

    #[test]
    fn broken_chains_are_refused() {
        let end = MEMORY_BYTES as u64;
        let buffer = |address, length| Err(ChainError::Buffer { address, length });
        let indirect_error = |what| Err(ChainError::Indirect(what));
        let not_whole = "has a table that is not a whole number of descriptors";
        for (chain, expected) in [
            (vec![next(D::readable(0x4000, 1), 0)], Err(ChainError::TooLong)),
            (vec![next(D::readable(0x4000, 0), 0)], Err(ChainError::TooLong)),
            (
                vec![next(D::writable(0x4000, 1), 8)],
                Err(ChainError::Index { index: 8, size: 8 }),
            ),
            (
                vec![next(D::writable(0x4000, 1), 1), D::readable(0x4000, 1)],
                Err(ChainError::Order),
            ),
            (vec![D::readable(end - 1, 2)], buffer(end - 1, 2)),
            (vec![D::writable(u64::MAX, 1)], buffer(u64::MAX, 1)),
            (
                vec![D::writable(u64::MAX - 4, u32::MAX)],
                buffer(u64::MAX - 4, u32::MAX),
            ),
            (vec![D::writable(0, u32::MAX)], buffer(0, u32::MAX)),
            (vec![indirect(0x8000, 0)], indirect_error(not_whole)),
            (vec![indirect(0x8000, 31)], indirect_error(not_whole)),
            (
                vec![indirect(0x8000, 16 << 16)],
                indirect_error("has a table of more than 65535 descriptors"),
            ),
            (vec![indirect(0x8100, 16)], indirect_error("is in an indirect table")),
            (vec![next(indirect(0x8000, 32), 1)], indirect_error("has a next one")),
            (vec![indirect(0x8000, 16)], Err(ChainError::Index { index: 1, size: 1 })),
            (vec![indirect(end, 16)], Err(ChainError::Table(end))),
            (vec![indirect(u64::MAX - 7, 16)], Err(ChainError::Table(u64::MAX - 7))),
        ] {
            assert_eq!(read(&chain, true).map(drop), expected, "{chain:x?}");
        }
        assert_eq!(
            read(&[indirect(0x8000, 32)], false).map(drop),
            indirect_error("was not negotiated")
        );
    }

    #[test]
    fn many_descriptors_for_the_same_large_buffer_do_not_add_up_to_4_gib() {
        let memory = guest_memory();
        let length = u32::try_from(MEMORY_BYTES).unwrap();
        // 1024 times 1 MiB is 1 GiB; a table of 1025 entries is too long before its bytes are too many.
        for index in 0..1025_u16 {
            let flags = if index < 1024 { D::NEXT } else { 0 };
            let entry = D {
                address: 0,
                length,
                flags,
                next: index + 1,
            };
            put(&memory, 0x10000 + 16 * u64::from(index), &entry.bytes());
        }
        QUEUE.write_descriptor(&memory, 0, indirect(0x10000, 16 * 1025));
        let mut chain = Chain::default();
        let result = chain.read(&memory, GuestAddress(QUEUE.descriptor_table), QUEUE.size, 0, true);
        assert_eq!(result, Err(ChainError::TooLong));
    }
}
