use super::*;
use crate::testing::driver::{peek, put};
use crate::testing::{Descriptor, DriverQueue, InterruptLog, guest_memory};
use vmm_sys_util::eventfd::EventFd;

const LIST: u64 = 0x4_0000;
const ALL: u64 = FEATURE_STATISTICS | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING;

struct Setup {
    memory: Arc<Memory>,
    device: Balloon,
    handle: BalloonHandle,
    queues: [DriverQueue; QUEUES],
    interrupts: Arc<InterruptLog>,
    _kicks: Vec<EventFd>,
}

fn setup(features: u64) -> Setup {
    let memory = guest_memory();
    let (mut device, handle) = Balloon::new(&memory).unwrap();
    let queues: [DriverQueue; QUEUES] =
        std::array::from_fn(|index| DriverQueue::new(0x1000 + 0x1000 * index as u64, 16));
    let mut activated = crate::testing::activation::activation(&memory, features, &queues);
    activated.activation.config_vector = Some(9);
    device.activate(activated.activation).unwrap();
    Setup {
        memory,
        device,
        handle,
        queues,
        interrupts: activated.interrupts,
        _kicks: activated.kicks,
    }
}

impl Setup {
    fn send_pages(&mut self, queue: usize, pages: &[u32]) -> Result<(), DeviceError> {
        let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        put(&self.memory, LIST, &list);
        let buffer = Descriptor::readable(LIST, u32::try_from(list.len()).unwrap());
        self.queues[queue].send(&self.memory, 0, &[buffer]);
        self.device.handle(Event::Queue(u16::try_from(queue).unwrap()))
    }
}

#[test]
fn inflated_pages_are_gone_and_pages_that_are_not_ram_are_left_alone() {
    let mut setup = setup(ALL);
    put(&setup.memory, 0x8_0000, &[1; 0x4000]);
    setup.send_pages(0, &[0x81, 0x82, 0x100, u32::MAX]).unwrap();
    assert_eq!(setup.queues[0].used(&setup.memory), Some((0, 0)));
    assert_eq!(peek(&setup.memory, 0x8_0fff, 1), [1]);
    assert_eq!(peek(&setup.memory, 0x8_1000, 0x2000), vec![0; 0x2000]);
    assert_eq!(peek(&setup.memory, 0x8_3000, 1), [1]);
    assert_eq!(setup.interrupts.triggered(), [0]);
    setup.send_pages(1, &[0x83]).unwrap();
    assert_eq!(peek(&setup.memory, 0x8_3000, 1), [1], "deflating takes nothing");
    assert_eq!(setup.queues[1].used(&setup.memory), Some((0, 0)));
}

#[test]
fn hostile_lists_stop_the_device() {
    for descriptor in [
        Descriptor::readable(LIST, 3),
        Descriptor::readable(LIST, 4 * u32::try_from(pages::MAX_PAGES).unwrap() + 4),
        Descriptor::readable(0xf_ffff, 4),
        Descriptor::readable(u64::MAX - 1, 4),
    ] {
        let mut setup = setup(ALL);
        setup.queues[0].send(&setup.memory, 0, &[descriptor]);
        assert!(setup.device.handle(Event::Queue(0)).is_err(), "{descriptor:x?}");
    }
}

#[test]
fn the_target_is_bounded_and_announced() {
    let mut setup = setup(ALL);
    assert_eq!(setup.handle.set_target(0x3_1234), 0x3_1000);
    setup.device.handle(Event::Host(0)).unwrap();
    assert_eq!(setup.interrupts.triggered(), [9]);
    let mut config = [0xff; 12];
    setup.device.read_config(0, &mut config);
    assert_eq!(config, [0x31, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    setup.device.write_config(4, &0x20_u32.to_le_bytes());
    setup.device.write_config(4, &[1]);
    setup.device.write_config(0, &[1; 4]);
    let status = setup.handle.status();
    assert_eq!(
        (status.target_bytes, status.actual_bytes, status.driver),
        (0x3_1000, 0x2_0000, true)
    );
    assert_eq!(setup.handle.set_target(u64::MAX), 1 << 20);
    setup.device.write_config(4, &u32::MAX.to_le_bytes());
    assert_eq!(setup.handle.status().actual_bytes, 1 << 20);
    setup.device.reset();
    let status = setup.handle.status();
    assert_eq!(
        (status.target_bytes, status.actual_bytes, status.driver),
        (1 << 20, 0, false)
    );
}

#[test]
fn the_statistics_buffer_is_held_until_somebody_asks() {
    let mut setup = setup(ALL);
    let entries: Vec<u8> = [(4_u16, 0x1234_u64), (5, 7), (99, 1)]
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .chain([1, 2, 3])
        .collect();
    put(&setup.memory, LIST, &entries);
    let buffer = Descriptor::readable(LIST, u32::try_from(entries.len()).unwrap());
    setup.queues[2].send(&setup.memory, 3, &[buffer]);
    setup.device.handle(Event::Queue(2)).unwrap();
    assert_eq!(setup.queues[2].used(&setup.memory), None);
    let (statistics, _) = setup.handle.statistics().unwrap();
    let expected = Statistics {
        free: Some(0x1234),
        total: Some(7),
        ..Statistics::default()
    };
    assert_eq!(statistics, expected);
    setup.device.handle(Event::Host(0)).unwrap();
    assert_eq!(setup.queues[2].used(&setup.memory), Some((3, 0)));
    assert_eq!(setup.interrupts.triggered(), [2]);
    setup.device.handle(Event::Host(0)).unwrap();
    assert_eq!(setup.queues[2].used(&setup.memory), None, "it is returned once");
    for head in [4, 5] {
        setup.queues[2].send(&setup.memory, head, &[buffer]);
        setup.device.handle(Event::Queue(2)).unwrap();
    }
    assert_eq!(setup.queues[2].used(&setup.memory), Some((4, 0)), "only one is held");
}

#[test]
fn reported_pages_are_gone_on_whichever_queue_the_driver_reports() {
    for (features, queue) in [(ALL, 3), (ALL, 4), (FEATURE_REPORTING, 2), (FEATURE_REPORTING, 4)] {
        let mut setup = setup(features);
        put(&setup.memory, 0x8_0000, &[1; 0x4000]);
        let chain = [
            Descriptor::writable(0x8_0000, 0x1000),
            Descriptor::writable(0x8_1800, 0x2000),
        ];
        setup.queues[queue].send(&setup.memory, 0, &chain);
        setup
            .device
            .handle(Event::Queue(u16::try_from(queue).unwrap()))
            .unwrap();
        assert_eq!(setup.queues[queue].used(&setup.memory), Some((0, 0)));
        assert_eq!(
            peek(&setup.memory, 0x8_0000, 0x1001),
            [vec![0; 0x1000], vec![1]].concat()
        );
        assert_eq!(
            peek(&setup.memory, 0x8_2000, 0x1001),
            [vec![0; 0x1000], vec![1]].concat()
        );
    }
}

#[test]
fn a_restored_balloon_still_holds_the_buffer() {
    let mut setup = setup(ALL);
    setup.handle.set_target(0x5000);
    setup.device.write_config(4, &3_u32.to_le_bytes());
    setup.queues[2].send(&setup.memory, 3, &[Descriptor::readable(LIST, 10)]);
    setup.device.handle(Event::Queue(2)).unwrap();
    let saved = setup.device.save();
    assert_eq!(saved.queues.iter().flatten().count(), QUEUES);

    let (mut device, handle) = Balloon::new(&setup.memory).unwrap();
    device.restore(&saved.device).unwrap();
    let activated = crate::testing::activation::activation(&setup.memory, ALL, &setup.queues);
    device.activate(activated.activation).unwrap();
    assert_eq!(
        (handle.status().target_bytes, handle.status().actual_bytes),
        (0x5000, 0x3000)
    );
    handle.statistics();
    device.handle(Event::Host(0)).unwrap();
    assert_eq!(setup.queues[2].used(&setup.memory), Some((3, 0)));

    let damaged = DeviceState::Balloon(BalloonState {
        statistics_buffer: Some(16),
        ..BalloonState::default()
    });
    let (mut device, _handle) = Balloon::new(&setup.memory).unwrap();
    device.restore(&damaged).unwrap();
    let activated = crate::testing::activation::activation(&setup.memory, ALL, &setup.queues);
    assert!(device.activate(activated.activation).is_err());
    let (mut device, _handle) = Balloon::new(&setup.memory).unwrap();
    let too_large = DeviceState::Balloon(BalloonState {
        target_pages: 257,
        ..BalloonState::default()
    });
    assert!(device.restore(&too_large).is_err());
    assert!(device.restore(&DeviceState::Rng(crate::rng::RngState {})).is_err());
}
