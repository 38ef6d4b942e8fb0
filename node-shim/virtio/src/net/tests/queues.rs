//! Queue pairs, the control queue, the rate limit, threads, and what a hostile header or a restored guest makes of them.

use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::rate_limit::Rate;
use crate::testing::activation::activation;

const CONTROL: u64 = FEATURE_CONTROL | control::FEATURE_MAC | control::FEATURE_OFFLOADS | FEATURE_ANNOUNCE;
const COMMAND_AT: u64 = 0xc_0000;
const STATUS_AT: u64 = 0xc_1000;

/// Two pairs and a control queue.
struct Pairs {
    memory: Arc<Memory>,
    queues: Vec<DriverQueue>,
    device: Net,
    interrupts: Arc<InterruptLog>,
    kicks: Vec<EventFd>,
    networks: Vec<OwnedFd>,
    attached: Vec<Arc<Mutex<Vec<bool>>>>,
    offloads: Arc<Mutex<Option<Offloads>>>,
}

fn two_pairs(on_threads: bool, features: u64, restored: Option<&DeviceState>) -> Pairs {
    let (mut networks, mut attached, mut links) = (Vec::new(), Vec::new(), Vec::<Box<dyn Link>>::new());
    let offloads = Arc::<Mutex<Option<Offloads>>>::default();
    for _ in 0..2 {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (end, network) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
        networks.push(network);
        attached.push(Arc::<Mutex<Vec<bool>>>::default());
        links.push(Box::new(Socket {
            end,
            offloads: Arc::clone(&offloads),
            attached: Arc::clone(attached.last().unwrap()),
        }));
    }
    let options = options(Limits::default());
    let device = if on_threads {
        Net::start(options, links)
    } else {
        Net::on_caller(options, links)
    };
    let mut device = device.unwrap();
    if let Some(state) = restored {
        device.restore(state).unwrap();
    }
    let memory = guest_memory();
    let count = if features & FEATURE_MULTI_QUEUE == 0 { 3 } else { 5 };
    let queues: Vec<DriverQueue> = (0..count)
        .map(|at| DriverQueue::new(0x1000 + 0x3000 * at, 64))
        .collect();
    let mut activated = activation(&memory, features | FEATURE_VERSION_1, &queues);
    activated.activation.config_vector = Some(9);
    device.activate(activated.activation).unwrap();
    Pairs {
        memory,
        queues,
        device,
        interrupts: activated.interrupts,
        kicks: activated.kicks,
        networks,
        attached,
        offloads,
    }
}

impl Pairs {
    /// Gives a command, as the event loop would deliver it; returns its status.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        put(&self.memory, COMMAND_AT, bytes);
        put(&self.memory, STATUS_AT, &[0xee]);
        let length = u32::try_from(bytes.len()).unwrap();
        let index = self.queues.len() - 1;
        let chain = [D::readable(COMMAND_AT, length), D::writable(STATUS_AT, 1)];
        self.queues[index].send(&self.memory, 0, &chain);
        let event = if self.device.own_kicks() {
            Event::Host(CONTROL_SOURCE)
        } else {
            Event::Queue(u16::try_from(index).unwrap())
        };
        self.device.handle(event).unwrap();
        assert_eq!(self.queues[index].used(&self.memory), Some((0, 1)));
        peek(&self.memory, STATUS_AT, 1)[0]
    }

    /// Sends a frame on a pair, with a kick.
    fn send(&mut self, pair: usize, frame: &[u8]) {
        let at = TX + 0x4000 * pair as u64;
        put(&self.memory, at, &[&[0; HEADER_BYTES], frame].concat());
        let length = u32::try_from(HEADER_BYTES + frame.len()).unwrap();
        self.queues[2 * pair + 1].send(&self.memory, 0, &[D::readable(at, length)]);
        self.kicks[2 * pair + 1].write(1).unwrap();
    }

    fn left(&self, pair: usize) -> Option<usize> {
        let mut frame = vec![0; 70_000];
        let received = rustix::net::recv(&self.networks[pair], &mut frame, RecvFlags::empty());
        received.ok().map(|(length, _)| length)
    }
}

#[test]
fn the_driver_chooses_how_many_pairs_it_uses() {
    let features = CONTROL | FEATURE_MULTI_QUEUE;
    let mut pairs = two_pairs(false, features, None);
    assert_eq!(pairs.device.queue_max_sizes(), [256, 256, 256, 256, 64]);
    assert_eq!(
        *pairs.attached[1].lock().unwrap(),
        [false],
        "the second is not in use yet"
    );
    assert!(pairs.attached[0].lock().unwrap().is_empty(), "the first always is");
    let out = frame(GUEST, 100);
    pairs.send(1, &out);
    pairs.device.handle(Event::Queue(3)).unwrap();
    assert_eq!(pairs.left(1), None, "not in use");
    for (count, status) in [(0, 1), (3, 1), (u16::MAX, 1), (2, 0)] {
        let [low, high] = count.to_le_bytes();
        assert_eq!(pairs.command(&[4, 0, low, high]), status, "{count}");
    }
    assert_eq!(*pairs.attached[1].lock().unwrap(), [false, true]);
    pairs.device.handle(Event::Queue(3)).unwrap();
    assert_eq!(pairs.left(1), Some(112), "what was there goes out");
    assert_eq!(pairs.command(&[4, 0, 1, 0]), 0);
    pairs.device.reset();
    assert_eq!(*pairs.attached[1].lock().unwrap(), [false, true, false]);
}

#[test]
fn a_driver_of_one_pair_has_its_control_queue_after_it() {
    let mut pairs = two_pairs(false, CONTROL, None);
    assert_eq!(pairs.command(&[1, 1, 2, 0, 0, 0, 0, 2]), 0, "the address that it has");
    assert_eq!(pairs.command(&[1, 1, 2, 0, 0, 0, 0, 3]), 1, "another address");
    assert_eq!(pairs.command(&[4, 0, 1, 0]), 1, "not agreed on");
    assert_eq!(pairs.command(&[7]), 1);
    assert_eq!(pairs.command(&[]), 1);
    for chain in [
        vec![D::readable(COMMAND_AT, 4)],
        vec![D::readable(u64::MAX, 4), D::writable(STATUS_AT, 1)],
    ] {
        pairs.queues[2].send(&pairs.memory, 0, &chain);
        assert!(pairs.device.handle(Event::Queue(2)).is_err());
        pairs.device.reset();
        pairs = two_pairs(false, CONTROL, None);
    }
}

#[test]
fn offloads_change_while_it_runs() {
    let mut pairs = two_pairs(false, CONTROL | CHECKSUM_AND_TSO, None);
    assert_eq!(
        *pairs.offloads.lock().unwrap(),
        Some(Offloads::CHECKSUM | Offloads::TSO4)
    );
    assert_eq!(pairs.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(*pairs.offloads.lock().unwrap(), Some(Offloads::empty()));
    assert_eq!(
        pairs.command(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        1,
        "TSO6 was not agreed on"
    );
}

#[test]
fn a_guest_that_arrives_announces_itself() {
    let features = CONTROL | FEATURE_MULTI_QUEUE | CHECKSUM_AND_TSO;
    let mut old = two_pairs(false, features, None);
    assert_eq!(old.command(&[4, 0, 2, 0]), 0);
    assert_eq!(old.command(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
    old.device.pause().unwrap();
    let saved = old.device.save();
    assert_eq!(saved.queues.len(), 5);
    assert_eq!(saved.queues[4].unwrap().next_available, 2);

    let mut new = two_pairs(false, features, Some(&saved.device));
    assert_eq!(*new.offloads.lock().unwrap(), Some(Offloads::CHECKSUM));
    assert_eq!(*new.attached[1].lock().unwrap(), [false, true], "both are in use again");
    assert_eq!(new.device.save().device, saved.device);
    new.device.pause().unwrap();
    assert!(new.interrupts.triggered().is_empty());
    new.device.resume();
    assert_eq!(new.interrupts.triggered(), [9], "the configuration changed");
    let status = |device: &Net| {
        let mut status = [0; 2];
        device.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!(status(&new.device), 3, "link up, announce");
    assert_eq!(new.command(&[3, 0]), 0);
    assert_eq!(status(&new.device), 1);

    // A driver that cannot is announced: ARP and neighbour discovery.
    let mut mute = two_pairs(false, FEATURE_MULTI_QUEUE, Some(&saved.device));
    mute.device.pause().unwrap();
    mute.device.resume();
    assert_eq!((mute.left(0), mute.left(0), mute.left(0)), (Some(54), Some(98), None));
}

#[test]
fn a_state_of_another_interface_is_refused() {
    let pairs = two_pairs(false, CONTROL, None);
    let DeviceState::Net(state) = pairs.device.save().device else {
        panic!()
    };
    let restore = |state| two_pairs(false, CONTROL, None).device.restore(&DeviceState::Net(state));
    for (what, wrong) in [
        ("MAC", NetState { mac: [2; 6], ..state }),
        ("pairs", NetState { pairs: 1, ..state }),
        (
            "use",
            NetState {
                pairs_in_use: 3,
                ..state
            },
        ),
        (
            "none",
            NetState {
                pairs_in_use: 0,
                ..state
            },
        ),
        (
            "offloads",
            NetState {
                offloads: 0x100,
                ..state
            },
        ),
    ] {
        assert!(restore(wrong).is_err(), "{what}");
    }
    assert!(restore(state).is_ok());
}

#[test]
fn a_header_cannot_undo_what_was_checked() {
    let csum = 1 << virtio_net::VIRTIO_NET_F_CSUM;
    let mut driver = Driver::new(csum);
    let out = frame(GUEST, 100);
    // The host would write a checksum into the source address.
    let header = |start: u8, offset: u8| [1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0];
    for (start, offset, leaves) in [(0, 26, false), (14, 12, false), (34, 6, true), (34, 200, false)] {
        put(&driver.memory, TX, &[&header(start, offset)[..], &out].concat());
        driver.transmit.send(&driver.memory, 0, &[D::readable(TX, 112)]);
        driver.device.handle(Event::Queue(TRANSMIT)).unwrap();
        assert_eq!(driver.left().is_some(), leaves, "{start} {offset}");
    }
    assert_eq!(driver.device.transmit_drops().malformed, 3);
}

#[test]
fn the_rate_limit_holds_frames_back_in_both_directions() {
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    let limits = Limits {
        bytes: None,
        operations: rate(1, 2),
    };
    let mut driver = Driver::limited(0, limits);
    for _ in 0..5 {
        driver.transmit(&frame(GUEST, 100));
        driver.arrive(&frame(GATEWAY, 100));
    }
    driver.offer(5, 1530);
    driver.device.handle(Event::Host(0)).unwrap();
    let sent = std::iter::from_fn(|| driver.left()).count();
    // As long as there is a trace of a token one more may go.
    assert!((2..=3).contains(&sent), "{sent}");
    let received = driver.received().len();
    assert!((2..=3).contains(&received), "{received}");
}

#[test]
fn pairs_on_threads_move_frames_and_stop() {
    let features = CONTROL | FEATURE_MULTI_QUEUE;
    let mut pairs = two_pairs(true, features, None);
    assert!(pairs.device.own_kicks());
    assert_eq!(pairs.device.host_sources().len(), 2, "failures, and the control queue");
    assert_eq!(pairs.command(&[4, 0, 2, 0]), 0);
    assert_eq!(pairs.interrupts.triggered(), [4], "the control queue's");
    for pair in [1, 0] {
        pairs.send(pair, &frame(GUEST, 100));
        let vector = u16::try_from(2 * pair + 1).unwrap();
        assert_eq!(pairs.interrupts.await_triggered(), [vector]);
        assert_eq!(pairs.left(pair), Some(112));
        // And back, without a kick after it arrived.
        pairs.queues[2 * pair].send(&pairs.memory, 0, &[D::writable(RX, 1530)]);
        pairs.kicks[2 * pair].write(1).unwrap();
        let arriving = [&[0; HEADER_BYTES][..], &frame(GATEWAY, 100)].concat();
        rustix::net::send(&pairs.networks[pair], &arriving, SendFlags::empty()).unwrap();
        assert_eq!(pairs.interrupts.await_triggered(), [vector - 1]);
        assert_eq!(pairs.queues[2 * pair].used(&pairs.memory), Some((0, 112)));
    }
    // At rest nothing moves; afterwards everything does.
    pairs.device.pause().unwrap();
    pairs.send(0, &frame(GUEST, 60));
    assert_eq!(pairs.device.save().queues[1].unwrap().next_available, 1);
    assert_eq!(pairs.left(0), None);
    pairs.device.resume();
    assert_eq!(pairs.interrupts.await_triggered(), [1]);
    assert_eq!(pairs.left(0), Some(72));
    pairs.device.reset();
    assert_eq!(pairs.device.save().queues, [None; 5]);
}

#[test]
fn a_thread_reports_a_broken_driver_to_the_event_loop() {
    let mut pairs = two_pairs(true, CONTROL, None);
    pairs.queues[1].send(&pairs.memory, 0, &[D::readable(u64::MAX - 5, 100)]);
    pairs.kicks[1].write(1).unwrap();
    let failure = pairs.device.host_sources()[0].fd;
    // SAFETY: the device is there, and keeps the descriptor open.
    let failure = unsafe { BorrowedFd::borrow_raw(failure) };
    let timeout = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(
        failure,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(rustix::event::poll(&mut polled, Some(&timeout)), Ok(1));
    assert!(pairs.device.handle(Event::Host(0)).is_err());
    assert!(pairs.device.handle(Event::Host(0)).is_ok(), "once");
    pairs.device.reset();
}

#[test]
fn the_rate_limit_lets_go_by_itself() {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (end, network) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
    let link = Socket {
        end,
        offloads: Arc::default(),
        attached: Arc::default(),
    };
    let operations = Some(Rate {
        per_second: 20,
        burst: 1,
    });
    let limits = Limits {
        bytes: None,
        operations,
    };
    let mut device = Net::start(options(limits), vec![Box::new(link)]).unwrap();
    let memory = guest_memory();
    let mut queues = [DriverQueue::new(0x1000, 64), DriverQueue::new(0x4000, 64)];
    let activated = activation(&memory, FEATURE_VERSION_1, &queues);
    let began = Instant::now();
    device.activate(activated.activation).unwrap();
    put(&memory, TX, &[&[0; HEADER_BYTES], &frame(GUEST, 60)[..]].concat());
    for head in 0..6 {
        queues[1].send(&memory, head, &[D::readable(TX, 72)]);
    }
    activated.kicks[1].write(1).unwrap();
    let mut sent = 0;
    while sent < 6 {
        activated.interrupts.await_triggered();
        let mut bytes = [0; 100];
        while rustix::net::recv(&network, &mut bytes, RecvFlags::empty()).is_ok() {
            sent += 1;
        }
    }
    // Two at once, because one may be owed, and four more at 20 in a second.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(150), "{took:?}");
}
