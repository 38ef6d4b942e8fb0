use vm_memory::Bytes;

use super::*;
use crate::testing::driver::{peek, put};
use crate::testing::{Descriptor, DriverQueue, InterruptLog};

const START: u64 = 64 << 20;
const BLOCKS: u64 = 4;
const REQUEST: u64 = 0x4000;
const RESPONSE: u64 = 0x5000;

struct Setup {
    memory: Arc<Memory>,
    device: Mem,
    handle: MemHandle,
    queue: DriverQueue,
    interrupts: Arc<InterruptLog>,
}

fn region() -> Region {
    Region {
        start: START,
        bytes: BLOCKS * BLOCK_BYTES,
    }
}

fn setup() -> Setup {
    let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(START), 8 << 20)];
    let memory = Arc::new(Memory::from_ranges(&ranges).unwrap());
    let (mut device, handle) = Mem::new(region(), memory.clone()).unwrap();
    let queue = DriverQueue::new(0x1000, 16);
    let mut activated = crate::testing::activation::activation(&memory, FEATURE_UNPLUGGED_INACCESSIBLE, &[queue]);
    activated.activation.config_vector = Some(9);
    device.activate(activated.activation).unwrap();
    Setup {
        memory,
        device,
        handle,
        queue,
        interrupts: activated.interrupts,
    }
}

impl Setup {
    /// The response's type and state.
    fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u8, u8) {
        let mut request = [0; REQUEST_BYTES];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        put(&self.memory, REQUEST, &request);
        put(&self.memory, RESPONSE, &[0xee; RESPONSE_BYTES]);
        let chain = [Descriptor::readable(REQUEST, 24), Descriptor::writable(RESPONSE, 10)];
        self.queue.send(&self.memory, 0, &chain);
        self.device.handle(Event::Queue(0)).unwrap();
        assert_eq!(self.queue.used(&self.memory), Some((0, 10)));
        let response = peek(&self.memory, RESPONSE, RESPONSE_BYTES);
        (response[0], response[8])
    }

    fn config(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_config(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: (u8, u8) = (0, 0);
const NACK: (u8, u8) = (1, 0);
const ERROR: (u8, u8) = (3, 0);

#[test]
fn blocks_are_plugged_as_far_as_the_host_wants_and_unplugging_gives_them_back() {
    let mut setup = setup();
    assert_eq!(setup.ask(PLUG, START, 1), NACK, "nothing was asked for");
    assert_eq!(setup.handle.set_requested(5 << 20), 4 << 20);
    setup.device.handle(Event::Host(0)).unwrap();
    assert!(setup.interrupts.triggered().contains(&9));
    assert_eq!(
        (setup.config(0), setup.config(16), setup.config(24)),
        (BLOCK_BYTES, START, 8 << 20)
    );
    assert_eq!(
        (setup.config(32), setup.config(40), setup.config(48)),
        (8 << 20, 0, 4 << 20)
    );
    assert_eq!(setup.ask(PLUG, START + BLOCK_BYTES, 2), ACK);
    assert_eq!(setup.ask(PLUG, START, 1), NACK, "more than requested");
    assert_eq!(
        (setup.config(40), setup.handle.status().plugged_bytes),
        (4 << 20, 4 << 20)
    );
    assert_eq!(setup.ask(STATE, START + BLOCK_BYTES, 2), (0, 0));
    assert_eq!(setup.ask(STATE, START, 1), (0, 1));
    assert_eq!(setup.ask(STATE, START, 2), (0, 2));
    setup
        .memory
        .write_obj(7_u64, GuestAddress(START + BLOCK_BYTES))
        .unwrap();
    assert_eq!(setup.ask(UNPLUG, START, 2), ERROR, "half of it is not plugged");
    assert_eq!(setup.ask(UNPLUG, START + BLOCK_BYTES, 1), ACK);
    assert_eq!(
        setup.memory.read_obj::<u64>(GuestAddress(START + BLOCK_BYTES)).unwrap(),
        0
    );
    assert_eq!(setup.config(40), 2 << 20);
    assert_eq!(setup.ask(UNPLUG_ALL, 99, 99), ACK);
    assert_eq!(setup.config(40), 0);
}

#[test]
fn requests_that_make_no_sense_change_nothing() {
    let mut setup = setup();
    setup.handle.set_requested(u64::MAX);
    assert_eq!(setup.config(48), 8 << 20);
    for (kind, address, count) in [
        (PLUG, START, 0),
        (PLUG, START + 1, 1),
        (PLUG, START - BLOCK_BYTES, 1),
        (PLUG, START, 5),
        (PLUG, START + 4 * BLOCK_BYTES, 1),
        (PLUG, u64::MAX - BLOCK_BYTES + 1, u16::MAX),
        (UNPLUG, START, 1),
        (STATE, 0, 1),
        (4, START, 1),
        (u16::MAX, START, 1),
    ] {
        assert_eq!(setup.ask(kind, address, count), ERROR, "{kind} {address:#x} {count}");
        assert_eq!(setup.config(40), 0);
    }
    assert_eq!(setup.ask(PLUG, START, 1), ACK);
    assert_eq!(setup.ask(PLUG, START, 2), ERROR, "one is plugged already");
}

#[test]
fn short_buffers_stop_the_device() {
    for chain in [
        vec![Descriptor::readable(REQUEST, 23), Descriptor::writable(RESPONSE, 10)],
        vec![Descriptor::readable(REQUEST, 24), Descriptor::writable(RESPONSE, 9)],
        vec![Descriptor::readable(REQUEST, 24)],
        vec![Descriptor::writable(RESPONSE, 10)],
    ] {
        let mut setup = setup();
        setup.queue.send(&setup.memory, 0, &chain);
        assert!(setup.device.handle(Event::Queue(0)).is_err(), "{chain:x?}");
    }
}

#[test]
fn a_driver_reset_keeps_what_is_plugged_and_a_machine_reset_does_not() {
    let mut setup = setup();
    setup.handle.set_requested(8 << 20);
    setup.ask(PLUG, START, 3);
    setup.device.reset();
    assert_eq!((setup.config(40), setup.handle.status().driver), (6 << 20, false));
    setup.memory.write_obj(7_u64, GuestAddress(START)).unwrap();
    setup.device.power_on();
    assert_eq!((setup.config(40), setup.config(48)), (0, 8 << 20));
    assert_eq!(setup.memory.read_obj::<u64>(GuestAddress(START)).unwrap(), 0);
}

#[test]
fn the_state_is_restored_and_damaged_ones_are_refused() {
    let mut setup = setup();
    setup.handle.set_requested(6 << 20);
    setup.ask(PLUG, START + BLOCK_BYTES, 2);
    let saved = setup.device.save();
    let (mut device, handle) = Mem::new(region(), setup.memory.clone()).unwrap();
    device.restore(&saved.device).unwrap();
    let status = handle.status();
    assert_eq!((status.requested_bytes, status.plugged_bytes), (6 << 20, 4 << 20));
    let DeviceState::Mem(good) = saved.device else { panic!() };
    for damaged in [
        MemState {
            start: 0,
            ..good.clone()
        },
        MemState {
            bytes: 2 << 20,
            ..good.clone()
        },
        MemState {
            requested_bytes: 10 << 20,
            ..good.clone()
        },
        MemState {
            plugged: vec![0xff; 8],
            ..good.clone()
        },
        MemState {
            plugged: vec![],
            ..good
        },
    ] {
        assert!(device.restore(&DeviceState::Mem(damaged)).is_err());
    }
    assert!(device.restore(&DeviceState::Rng(crate::rng::RngState {})).is_err());
}

#[test]
fn a_region_that_is_not_memory_is_refused() {
    let memory = setup().memory;
    for (start, bytes) in [
        (0, 2 << 20),
        (START, 16 << 20),
        (START, 0),
        (START, 1 << 20),
        (START + 4096, 2 << 20),
    ] {
        assert!(
            Mem::new(Region { start, bytes }, memory.clone()).is_err(),
            "{start:#x} {bytes:#x}"
        );
    }
}
