//! virtio-rng (virtio 1.2, section 5.4): random bytes from the host's `getrandom(2)`.

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{Activation, DeviceError, DeviceType, Event, Memory, VirtioDevice};
use crate::ring::{Ring, Step};
use crate::state::{DeviceState, RestoreError, SavedDevice};

/// Entries of the request queue. Linux has one request at a time.
const QUEUE_SIZE: u16 = 64;
/// Most bytes for one request; the driver asks again when it wants more. `getrandom(2)` is not interrupted below 256.
const MAX_BYTES: usize = 256;

/// A virtio entropy device.
#[derive(Default)]
pub struct Rng {
    ring: Option<Ring>,
    chain: Chain,
    room: Room,
}

/// What is saved of an entropy device: nothing but its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

impl Rng {
    /// An entropy device.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        self.ring = Some(Ring::take(&mut activation, 0, self.name())?);
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        match (event, &mut self.ring) {
            (Event::Queue(0), Some(ring)) => {
                let room = &mut self.room;
                ring.drain(&mut self.chain, |memory, chain| {
                    give(memory, chain, room).map(Step::Done)
                })?;
                Ok(())
            }
            (Event::Queue(_) | Event::Host(_), _) => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.ring = None;
    }

    fn save(&self) -> SavedDevice {
        SavedDevice {
            queues: vec![self.ring.as_ref().map(Ring::position)],
            device: DeviceState::Rng(RngState {}),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Rng(RngState {}) = state else {
            return Err(RestoreError::kind(self.name(), state));
        };
        Ok(())
    }
}

fn give(memory: &Memory, chain: &Chain, room: &mut Room) -> Result<u32, DeviceError> {
    let failed = |source| DeviceError::Host {
        device: "rng".into(),
        what: "give random bytes",
        source,
    };
    let mut buffers = Buffers::gather(std::mem::take(room), memory, chain.writable()).map_err(failed)?;
    let mut bytes = [0_u8; MAX_BYTES];
    let wanted = buffers.len().min(MAX_BYTES);
    let given = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let written = buffers.fill_from(&bytes[..given]);
    *room = buffers.into_room();
    // At most MAX_BYTES.
    Ok(u32::try_from(written).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::driver::{peek, put};
    use crate::testing::{Descriptor, DriverQueue, activate, guest_memory};

    #[test]
    fn requests_get_random_bytes_and_no_more_than_256() {
        let memory = guest_memory();
        let mut queue = DriverQueue::new(0x1000, 16);
        let mut device = Rng::new();
        let (interrupts, _kicks) = activate(&mut device, &memory, 0, &[queue]).unwrap();
        for (head, length) in [(0, 64_u32), (1, 256), (2, 0x8_0000), (3, 0)] {
            queue.send(&memory, head, &[Descriptor::writable(0x4_0000, length)]);
        }
        queue.send(&memory, 4, &[Descriptor::readable(0x2000, 16)]);
        device.handle(Event::Queue(0)).unwrap();
        let used: Vec<_> = std::iter::from_fn(|| queue.used(&memory)).collect();
        assert_eq!(used, [(0, 64), (1, 256), (2, 256), (3, 0), (4, 0)]);
        assert_ne!(peek(&memory, 0x4_0000, 64), [0; 64]);
        assert_eq!(peek(&memory, 0x4_0100, 256), [0; 256]);
        assert_eq!(interrupts.triggered(), [0]);
    }

    #[test]
    fn hostile_buffers_stop_the_device() {
        for descriptor in [
            Descriptor::writable(u64::MAX, 2),
            Descriptor::writable(0xf_ffff, 2),
            Descriptor {
                flags: Descriptor::NEXT | Descriptor::WRITE,
                next: 99,
                ..Descriptor::writable(0x4000, 2)
            },
        ] {
            let memory = guest_memory();
            let mut queue = DriverQueue::new(0x1000, 16);
            let mut device = Rng::new();
            activate(&mut device, &memory, 0, &[queue]).unwrap();
            put(&memory, 0x4000, &[0; 2]);
            queue.send(&memory, 0, &[descriptor]);
            assert!(device.handle(Event::Queue(0)).is_err(), "{descriptor:x?}");
            assert_eq!(queue.used(&memory), None);
        }
    }
}
