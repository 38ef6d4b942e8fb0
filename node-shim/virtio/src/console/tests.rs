use std::sync::mpsc;

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::testing::driver::{peek, put};
use crate::testing::{Descriptor, DriverQueue, InterruptLog, activate, guest_memory};

/// Hands every write to the test.
struct Printed(mpsc::Sender<Vec<u8>>);

impl Sink for Printed {
    fn write(&mut self, bytes: &[u8]) {
        self.0.send(bytes.to_vec()).unwrap();
    }
}

struct Fixture {
    device: Console,
    port: Port,
    drained: Arc<Wake>,
    printed: mpsc::Receiver<Vec<u8>>,
    memory: Arc<Memory>,
    receive: DriverQueue,
    transmit: DriverQueue,
    interrupts: Arc<InterruptLog>,
    _kicks: Vec<EventFd>,
}

impl Fixture {
    fn new() -> Self {
        let drained = Arc::new(Wake::new().unwrap());
        let port = Port::new(drained.clone()).unwrap();
        let (sender, printed) = mpsc::channel();
        let mut device = Console::new(port.clone(), Box::new(Printed(sender)));
        let memory = guest_memory();
        let receive = DriverQueue::new(0x1000, 16);
        let transmit = DriverQueue::new(0x2000, 16);
        let (interrupts, kicks) = activate(&mut device, &memory, 0, &[receive, transmit]).unwrap();
        Self {
            device,
            port,
            drained,
            printed,
            memory,
            receive,
            transmit,
            interrupts,
            _kicks: kicks,
        }
    }

    fn config(&self) -> [u8; 16] {
        let mut config = [0xff; 16];
        self.device.read_config(0, &mut config);
        config
    }
}

#[test]
fn output_comes_in_order_and_its_buffers_come_back() {
    let mut it = Fixture::new();
    put(&it.memory, 0x4_0000, b"hello, world");
    let chain = [Descriptor::readable(0x4_0000, 7), Descriptor::readable(0x4_0007, 5)];
    it.transmit.send(&it.memory, 0, &chain);
    it.transmit.send(&it.memory, 4, &[Descriptor::readable(0x4_0000, 1)]);
    it.device.handle(Event::Queue(TRANSMIT)).unwrap();
    let printed: Vec<Vec<u8>> = it.printed.try_iter().collect();
    assert_eq!(printed, [b"hello, world".to_vec(), b"h".to_vec()]);
    assert_eq!(it.transmit.used(&it.memory), Some((0, 0)));
    assert_eq!(it.transmit.used(&it.memory), Some((4, 0)));
    assert_eq!(it.interrupts.triggered(), [TRANSMIT]);
}

#[test]
fn one_buffer_prints_no_more_than_the_limit() {
    let mut it = Fixture::new();
    let all = [
        Descriptor::readable(0x4_0000, 0x1_8000),
        Descriptor::readable(0x4_0000, 0x1_8000),
    ];
    it.transmit.send(&it.memory, 0, &all);
    it.device.handle(Event::Queue(TRANSMIT)).unwrap();
    let printed: usize = it.printed.try_iter().map(|chunk| chunk.len()).sum();
    assert_eq!(printed, OUTPUT_MAX_BYTES);
    assert_eq!(it.transmit.used(&it.memory), Some((0, 0)));
}

#[test]
fn input_waits_for_buffers_and_fills_them_in_order() {
    let mut it = Fixture::new();
    it.port.input(b"root\r");
    it.device.handle(Event::Host(0)).unwrap();
    assert_eq!(it.receive.used(&it.memory), None);
    it.receive.send(&it.memory, 0, &[Descriptor::writable(0x4_0000, 3)]);
    it.receive.send(&it.memory, 1, &[Descriptor::writable(0x4_1000, 100)]);
    it.receive.send(&it.memory, 2, &[Descriptor::writable(0x4_2000, 100)]);
    it.device.handle(Event::Queue(RECEIVE)).unwrap();
    assert_eq!(it.receive.used(&it.memory), Some((0, 3)));
    assert_eq!(it.receive.used(&it.memory), Some((1, 2)));
    assert_eq!(it.receive.used(&it.memory), None);
    assert_eq!(peek(&it.memory, 0x4_0000, 3), *b"roo");
    assert_eq!(peek(&it.memory, 0x4_1000, 2), *b"t\r");
    assert_eq!(it.interrupts.triggered(), [RECEIVE]);
    it.port.input(b"x");
    it.device.handle(Event::Host(0)).unwrap();
    assert_eq!(it.receive.used(&it.memory), Some((2, 1)));
}

#[test]
fn a_buffer_without_room_does_not_stop_the_input() {
    let mut it = Fixture::new();
    it.receive.send(&it.memory, 0, &[Descriptor::readable(0x4_0000, 8)]);
    it.receive.send(&it.memory, 1, &[Descriptor::writable(0x4_0000, 8)]);
    it.port.input(b"x");
    it.device.handle(Event::Host(0)).unwrap();
    assert_eq!(it.receive.used(&it.memory), Some((0, 0)));
    assert_eq!(it.receive.used(&it.memory), Some((1, 1)));
}

#[test]
fn a_full_port_says_when_there_is_room() {
    let mut it = Fixture::new();
    it.port.input(&vec![b'x'; INPUT_MAX_BYTES + 1]);
    assert_eq!(it.port.capacity(), 0);
    it.device.handle(Event::Host(0)).unwrap();
    assert!(!it.drained.clear(), "nothing was read");
    it.receive.send(&it.memory, 0, &[Descriptor::writable(0x4_0000, 1)]);
    it.device.handle(Event::Queue(RECEIVE)).unwrap();
    assert!(it.drained.clear());
    assert_eq!(it.port.capacity(), 1);
}

#[test]
fn the_size_is_in_the_configuration_and_a_change_interrupts() {
    let mut it = Fixture::new();
    assert_eq!(it.config(), [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let size = Size { columns: 132, rows: 43 };
    it.port.resize(size);
    it.device.handle(Event::Host(0)).unwrap();
    assert_eq!(it.config()[..4], [132, 0, 43, 0]);
    assert_eq!(it.interrupts.triggered(), [2]);
    it.port.resize(size);
    it.device.handle(Event::Host(0)).unwrap();
    assert!(it.interrupts.triggered().is_empty());
}

#[test]
fn an_emergency_write_is_printed_without_a_queue() {
    let mut it = Fixture::new();
    it.device.reset();
    it.device.write_config(EMERGENCY_WRITE_OFFSET, b"!\0\0\0");
    it.device.write_config(0, b"?");
    it.device.write_config(EMERGENCY_WRITE_OFFSET, b"");
    assert_eq!(it.printed.try_iter().collect::<Vec<_>>(), [b"!".to_vec()]);
}

#[test]
fn unread_input_is_saved_and_a_damaged_state_is_refused() {
    let it = Fixture::new();
    it.port.input(b"abc");
    let saved = it.device.save();
    assert!(saved.queues.iter().all(Option::is_some));
    let mut other = Fixture::new();
    other.device.reset();
    other.device.restore(&saved.device).unwrap();
    assert_eq!(other.device.save().device, saved.device);
    let input = vec![0; INPUT_MAX_BYTES + 1];
    let damaged = DeviceState::Console(ConsoleState { input });
    assert!(other.device.restore(&damaged).is_err());
    let foreign = DeviceState::Rng(crate::rng::RngState {});
    assert!(
        other
            .device
            .restore(&foreign)
            .unwrap_err()
            .to_string()
            .contains("entropy")
    );
}

#[test]
fn hostile_buffers_stop_the_device() {
    for (queue, descriptor) in [
        (RECEIVE, Descriptor::writable(u64::MAX, 2)),
        (TRANSMIT, Descriptor::readable(u64::MAX, 2)),
        (TRANSMIT, Descriptor::readable(0xf_ffff, 2)),
    ] {
        let mut it = Fixture::new();
        it.port.input(b"x");
        let driver = if queue == RECEIVE {
            &mut it.receive
        } else {
            &mut it.transmit
        };
        driver.send(&it.memory, 0, &[descriptor]);
        assert!(it.device.handle(Event::Queue(queue)).is_err(), "{descriptor:x?}");
        assert_eq!(it.printed.try_iter().count(), 0);
    }
}
