//! A driver that breaks every rule it can, as fast as it can: chains of nonsense, rings that jump, registers written at random, resets in
//! between. The monitor may give up on the device until it is reset, and on nothing else.
//!
//! What a device is told to write to is never this guest's own image: all that is below 16 MiB is left out.

use crate::virtio::Device;
use crate::{memory, number, serial};

/// Chains between two resets.
const ROUND: u32 = 64;
/// Bytes of the common configuration, and a few beyond.
const COMMON_BYTES: u64 = 0x48;
/// Offset of the status in it: what is written there is the driver's progress, and is left to `Device`.
const STATUS: u64 = 0x14;

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below a bound.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// An address: in the buffers, in the rings, about the end of memory, in the hole, at the end of what can be addressed.
    fn address(&mut self) -> u64 {
        match self.below(8) {
            0 => memory::of_queue(0) + self.below(0x4000),
            1 => 0x800_0000 - self.below(0x2000),
            2 => 0xc000_0000 + self.below(0x2000_0000),
            3 => u64::MAX - self.below(0x2000),
            4 => self.next() | 1 << 40,
            _ => memory::DATA + self.below(memory::DATA_BYTES),
        }
    }

    /// A length: mostly one that could be.
    fn length(&mut self) -> u32 {
        match self.below(6) {
            0 => 0,
            1 => self.next() as u32,
            2 => u32::MAX - self.below(4096) as u32,
            3 => 16,
            4 => 1,
            _ => 512 * self.below(9) as u32,
        }
    }
}

/// Carries out a command: `DEVICE-TYPE SEED CHAINS`.
pub(crate) fn command<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<(), &'static str> {
    let device_type = number(words)? as u16;
    let mut random = Random(u64::from(number(words)?) << 1 | 1 << 60);
    let count = number(words)?;
    let mut chains = 0;
    while chains < count {
        attack(device_type, &mut random)?;
        chains += ROUND;
    }
    // A device that is reset works again.
    Device::open(device_type, 0)?;
    // A console may have printed something.
    serial::put_line(format_args!("\nsurvived {chains}"));
    Ok(())
}

/// From one reset to the next.
fn attack(device_type: u16, random: &mut Random) -> Result<(), &'static str> {
    let device = Device::open(device_type, random.next() & 0xff_ffff)?;
    let queue = device.queue(0, 0)?;
    // Some devices want a second one, and some have none.
    let _ = device.queue(1, 1);
    if random.below(8) == 0 {
        scribble(&device, random);
    }
    device.start();
    let size = u64::from(queue.size());
    let mut available = 0_u16;
    for _ in 0..ROUND {
        let head = random.below(size);
        for _ in 0..=random.below(4) {
            let descriptor = queue.descriptors() + (head + random.below(4)) % size * 16;
            memory::write(descriptor, random.address());
            memory::write(descriptor + 8, random.length());
            // Next, written, indirect; seldom more.
            let flags = if random.below(16) == 0 {
                random.next()
            } else {
                random.below(8)
            };
            memory::write(descriptor + 12, flags as u16);
            let next = if random.below(8) == 0 {
                random.next()
            } else {
                (head + random.below(4)) % size
            };
            memory::write(descriptor + 14, next as u16);
        }
        // What may be a header of a request: a type, and a sector.
        let header = memory::DATA + random.below(64) * 16;
        memory::write(header, random.below(16) as u32);
        memory::write(
            header + 8,
            if random.below(4) == 0 {
                random.next()
            } else {
                random.below(4096)
            },
        );
        let listed = if random.below(16) == 0 { random.next() } else { head };
        memory::write(queue.available() + 4 + 2 * (u64::from(available) % size), listed as u16);
        available = available.wrapping_add(if random.below(32) == 0 { random.next() as u16 } else { 1 });
        memory::write(queue.available() + 2, available);
        memory::write(queue.notify(), random.below(2) as u16);
        if random.below(32) == 0 {
            scribble(&device, random);
        }
    }
    Ok(())
}

/// Writes to registers.
fn scribble(device: &Device, random: &mut Random) {
    for _ in 0..8 {
        let at = device.common() + random.below(COMMON_BYTES);
        let value = random.next();
        match random.below(4) {
            _ if (device.common() + STATUS).wrapping_sub(at) < 8 => {}
            0 => memory::write(at, value as u8),
            1 => memory::write(at & !1, value as u16),
            2 => memory::write(at & !3, value as u32),
            _ => memory::write(device.config + random.below(64), value as u8),
        }
    }
}
