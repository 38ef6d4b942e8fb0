//! Load on the first disk (virtio 1.2, 5.2).

use crate::queue::{Part, Queue};
use crate::virtio::Device;
use crate::{memory, number, serial};

const TYPE: u16 = 2;
const READ: u32 = 0;
const WRITE: u32 = 1;
/// `VIRTIO_BLK_F_FLUSH`: without it every write would have to be on stable storage before it is done.
const FLUSH: u64 = 1 << 9;
const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: u32 = 16;
/// Descriptors of a request: header, data, status.
const PARTS: u16 = 3;
/// What a status is before the device writes it.
const UNDONE: u8 = 0xff;

/// The disk, once it was used.
pub(crate) struct Disk {
    queue: Queue,
    bytes: u64,
}

/// What a load is.
struct Load {
    operation: u32,
    is_sequential: bool,
    bytes: u32,
    depth: u16,
    count: u32,
}

/// Where the next request goes.
struct Places {
    blocks: u64,
    state: u64,
    is_sequential: bool,
}

impl Places {
    /// The number of a block: in order, or by a xorshift generator.
    fn next(&mut self) -> u64 {
        if self.is_sequential {
            let block = self.state % self.blocks;
            self.state += 1;
            return block;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.blocks
    }
}

/// Carries out a command.
pub(crate) fn command<'a>(
    disk: &mut Option<Disk>,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<(), &'static str> {
    let (operation, is_sequential) = match words.next() {
        Some("read") => (READ, false),
        Some("write") => (WRITE, false),
        Some("readseq") => (READ, true),
        Some("writeseq") => (WRITE, true),
        _ => return Err("neither read, write, readseq nor writeseq"),
    };
    let bytes = number(words)?;
    let depth = u16::try_from(number(words)?).map_err(|_| "too deep")?;
    let load = Load {
        operation,
        is_sequential,
        bytes,
        depth,
        count: number(words)?,
    };
    if disk.is_none() {
        *disk = Some(open()?);
    }
    let disk = disk.as_mut().ok_or("there is no disk")?;
    let kicks = disk.queue.kicks;
    run(disk, &load)?;
    serial::put_line(format_args!("block {} {}", load.count, disk.queue.kicks - kicks));
    Ok(())
}

fn open() -> Result<Disk, &'static str> {
    let device = Device::open(TYPE, FLUSH)?;
    let sectors: u64 =
        u64::from(memory::read::<u32>(device.config)) | u64::from(memory::read::<u32>(device.config + 4)) << 32;
    let queue = device.queue(0, 0)?;
    device.start();
    Ok(Disk {
        queue,
        bytes: sectors.saturating_mul(SECTOR_BYTES),
    })
}

fn header(disk: &Disk, slot: u16) -> u64 {
    disk.queue.room() + u64::from(slot) * u64::from(HEADER_BYTES)
}

fn status(disk: &Disk, slot: u16) -> u64 {
    disk.queue.room() + 0x4000 + u64::from(slot)
}

fn run(disk: &mut Disk, load: &Load) -> Result<(), &'static str> {
    let &Load {
        operation,
        is_sequential,
        bytes,
        depth,
        count,
    } = load;
    if bytes == 0
        || !u64::from(bytes).is_multiple_of(SECTOR_BYTES)
        || u64::from(bytes) * u64::from(depth) > memory::DATA_BYTES
    {
        return Err("the size is no multiple of 512, or too large for the depth");
    }
    let blocks = disk.bytes / u64::from(bytes);
    if depth == 0 || u32::from(depth) * u32::from(PARTS) > u32::from(disk.queue.size()) || blocks == 0 {
        return Err("the queue or the disk is too small");
    }
    let state = if is_sequential { 0 } else { 0x9e37_79b9_7f4a_7c15 };
    let mut places = Places {
        blocks,
        state,
        is_sequential,
    };
    for slot in 0..depth {
        let parts = [
            Part {
                address: header(disk, slot),
                bytes: HEADER_BYTES,
                is_written: false,
            },
            Part {
                address: memory::DATA + u64::from(slot) * u64::from(bytes),
                bytes,
                is_written: operation == READ,
            },
            Part {
                address: status(disk, slot),
                bytes: 1,
                is_written: true,
            },
        ];
        disk.queue.describe(slot * PARTS, &parts);
        memory::write(header(disk, slot), operation);
    }
    let mut submit = |disk: &mut Disk, slot: u16| {
        memory::write(
            header(disk, slot) + 8,
            places.next() * (u64::from(bytes) / SECTOR_BYTES),
        );
        memory::write(status(disk, slot), UNDONE);
        disk.queue.give(slot * PARTS);
    };
    let (mut given, mut taken) = (0, 0);
    while given < count && given < u32::from(depth) {
        submit(disk, given as u16);
        given += 1;
    }
    disk.queue.kick();
    while taken < count {
        let mut is_any = false;
        while let Some((head, _)) = disk.queue.take()? {
            let slot = head / PARTS;
            if head % PARTS != 0 || slot >= depth || memory::read::<u8>(status(disk, slot)) != 0 {
                return Err("a request failed");
            }
            taken += 1;
            if given < count {
                submit(disk, slot);
                given += 1;
                is_any = true;
            }
        }
        if is_any {
            disk.queue.kick();
        } else {
            core::hint::spin_loop();
        }
    }
    Ok(())
}
