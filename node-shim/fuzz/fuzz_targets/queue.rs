//! A hostile driver of a virtqueue alone: what a device is given of it is in guest memory, in order and bounded, and one kick takes no more than
//! the queue has entries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, drive};
use node_shim_virtio::chain::{Chain, MAX_DESCRIPTORS};
use node_shim_virtio::device::{Activation, DeviceError, DeviceType, Event, Memory, VirtioDevice};
use node_shim_virtio::ring::{Ring, Step};
use node_shim_virtio::rng::RngState;
use node_shim_virtio::state::{DeviceState, RestoreError, SavedDevice};
use vm_memory::GuestMemoryBackend;

const QUEUE_SIZE: u16 = 64;

/// A device that looks at what it is given, keeps back every chain that it cannot write to, and says that it filled the others.
#[derive(Default)]
struct Inspector {
    ring: Option<Ring>,
    chain: Chain,
}

fn inspect(memory: &Memory, chain: &Chain) -> Step {
    let segments = || chain.readable().iter().chain(chain.writable());
    assert!(segments().count() <= MAX_DESCRIPTORS);
    for segment in segments() {
        assert!(segment.length > 0 && memory.check_range(segment.address, segment.length as usize));
    }
    let bytes = |segments: &[node_shim_virtio::chain::Segment]| -> u64 {
        segments.iter().map(|segment| u64::from(segment.length)).sum()
    };
    assert_eq!(bytes(chain.readable()), u64::from(chain.readable_bytes()));
    assert_eq!(bytes(chain.writable()), u64::from(chain.writable_bytes()));
    assert!(bytes(chain.readable()) + bytes(chain.writable()) <= u64::from(u32::MAX));
    match chain.writable_bytes() {
        0 => Step::Stall,
        written => Step::Done(written),
    }
}

impl VirtioDevice for Inspector {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn name(&self) -> &'static str {
        "inspector"
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        self.ring = Some(Ring::take(&mut activation, 0, self.name())?);
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        let (Event::Queue(0), Some(ring)) = (event, &mut self.ring) else {
            return Ok(());
        };
        let before = ring.position();
        let mut taken = 0_u16;
        ring.drain(&mut self.chain, |memory, chain| {
            assert!(chain.head() < QUEUE_SIZE);
            let step = inspect(memory, chain);
            taken += u16::from(step != Step::Stall);
            Ok(step)
        })?;
        assert!(taken <= ring.size());
        let after = ring.position();
        assert_eq!(after.next_available.wrapping_sub(before.next_available), taken);
        assert_eq!(after.next_used.wrapping_sub(before.next_used), taken);
        Ok(())
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

    fn restore(&mut self, _state: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

fuzz_target!(|input: (u64, Vec<Action>)| {
    let (features, actions) = input;
    drive(&mut Inspector::default(), features, &actions, || {});
});
