use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::frame::{Arp, Ethernet, TYPE_ARP, Udp};
use super::*;
use crate::device::{FEATURE_VERSION_1, Memory};
use crate::testing::driver::{peek, put};
use crate::testing::{Descriptor as D, DriverQueue, InterruptLog, activate, guest_memory};

const GUEST: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const GATEWAY: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const RX: u64 = 0x2_0000;
const TX: u64 = 0x8_0000;
const CHECKSUM_AND_TSO: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM | 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4;

/// A datagram socket in the place of a tap: it keeps frames apart and never blocks.
struct Socket {
    end: OwnedFd,
    offloads: Arc<Mutex<Option<Offloads>>>,
    attached: Arc<Mutex<Vec<bool>>>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

impl Link for Socket {
    fn configure(&mut self, offloads: Offloads) -> io::Result<()> {
        *self.offloads.lock().unwrap() = Some(offloads);
        Ok(())
    }

    fn attach(&mut self, attached: bool) -> io::Result<()> {
        self.attached.lock().unwrap().push(attached);
        Ok(())
    }
}

struct Driver {
    memory: Arc<Memory>,
    receive: DriverQueue,
    transmit: DriverQueue,
    device: Net,
    interrupts: Arc<InterruptLog>,
    network: OwnedFd,
    offloads: Arc<Mutex<Option<Offloads>>>,
}

fn identity() -> GuestIdentity {
    GuestIdentity {
        mac: GUEST,
        network: responder::Network::Private,
        ipv4: Some(responder::GuestIpv4 {
            address: Ipv4Addr::new(10, 0, 2, 2),
            prefix_length: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 1)),
            routes: Vec::new(),
            server: Ipv4Addr::new(10, 0, 2, 1),
        }),
        ipv6: Some(responder::GuestIpv6 {
            address: "fd10:0:2::2".parse().unwrap(),
            prefix_length: 64,
            gateway: "fd10:0:2::1".parse().ok(),
            router: "fe80::1".parse().unwrap(),
            router_mac: Some(GATEWAY),
        }),
        gateway_mac: GATEWAY,
        mtu: 1500,
        name_servers: Vec::new(),
        search: Vec::new(),
        host_name: String::new(),
    }
}

fn options(limits: Limits) -> Options {
    Options {
        name: "net0".into(),
        guest: identity(),
        receive_limits: limits,
        transmit_limits: limits,
        log: |_| {},
        on_thread: crate::threads::unconfined,
    }
}

impl Driver {
    fn new(features: u64) -> Self {
        Self::limited(features, Limits::default())
    }

    fn limited(features: u64, limits: Limits) -> Self {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (end, network) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
        let offloads = Arc::default();
        let link = Socket {
            end,
            offloads: Arc::clone(&offloads),
            attached: Arc::default(),
        };
        let memory = guest_memory();
        let (receive, transmit) = (DriverQueue::new(0x1000, 64), DriverQueue::new(0x4000, 64));
        let mut device = Net::on_caller(options(limits), vec![Box::new(link)]).unwrap();
        let features = features | FEATURE_VERSION_1;
        let (interrupts, _) = activate(&mut device, &memory, features, &[receive, transmit]).unwrap();
        Self {
            memory,
            receive,
            transmit,
            device,
            interrupts,
            network,
            offloads,
        }
    }

    /// Offers `count` receive buffers of `bytes`, 4 KiB apart.
    fn offer(&mut self, count: u16, bytes: u32) {
        for head in 0..count {
            self.receive
                .send(&self.memory, head, &[D::writable(RX + 4096 * u64::from(head), bytes)]);
        }
        self.device.handle(Event::Queue(RECEIVE)).unwrap();
    }

    fn arrive(&self, frame: &[u8]) {
        let with_header = [&[0; HEADER_BYTES], frame].concat();
        rustix::net::send(&self.network, &with_header, SendFlags::empty()).unwrap();
    }

    /// Sends a frame in two pieces, the header apart.
    fn transmit(&mut self, frame: &[u8]) {
        put(&self.memory, TX, &[0; HEADER_BYTES]);
        put(&self.memory, TX + 0x1000, frame);
        let length = u32::try_from(frame.len()).unwrap();
        self.transmit.send(
            &self.memory,
            0,
            &[D::readable(TX, 12), D::readable(TX + 0x1000, length)],
        );
        self.device.handle(Event::Queue(TRANSMIT)).unwrap();
    }

    fn left(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        let (length, _) = rustix::net::recv(&self.network, &mut frame, RecvFlags::empty()).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    fn received(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.receive.used(&self.memory)).collect()
    }
}

/// A datagram of the guest's address, from a MAC address.
fn frame(source: MacAddress, bytes: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..bytes - 42).map(|at| at.to_le_bytes()[0]).collect();
    let packet = Udp {
        source: Ipv4Addr::new(10, 0, 2, 2),
        destination: Ipv4Addr::new(192, 0, 2, 1),
        source_port: 1000,
        destination_port: 2000,
        payload: &payload,
    };
    Ethernet {
        destination: GATEWAY,
        source,
        kind: 0x0800,
        payload: &packet.write().unwrap(),
    }
    .write()
}

#[test]
fn frames_go_both_ways() {
    let mut driver = Driver::new(0);
    let out = frame(GUEST, 100);
    driver.transmit(&out);
    assert_eq!(driver.left().unwrap()[HEADER_BYTES..], out);
    assert_eq!(driver.transmit.used(&driver.memory), Some((0, 0)));
    assert_eq!(driver.interrupts.triggered(), [1]);

    driver.offer(2, 1530);
    let incoming = frame(GATEWAY, 200);
    driver.arrive(&incoming);
    driver.device.handle(Event::Host(0)).unwrap();
    assert_eq!(driver.received(), [(0, 212)]);
    assert_eq!(peek(&driver.memory, RX + 12, 200), incoming);
    assert_eq!(
        peek(&driver.memory, RX + 10, 2),
        [1, 0],
        "num_buffers is set without mergeable buffers too"
    );
    assert_eq!(driver.interrupts.triggered(), [0]);
}

#[test]
fn a_large_frame_is_spread_over_mergeable_buffers() {
    let mut driver = Driver::new(FEATURE_MERGEABLE | CHECKSUM_AND_TSO);
    assert_eq!(
        *driver.offloads.lock().unwrap(),
        Some(Offloads::CHECKSUM | Offloads::TSO4)
    );
    driver.offer(40, 2048);
    let incoming = frame(GATEWAY, 60_000);
    driver.arrive(&incoming);
    driver.arrive(&incoming[..100]);
    driver.device.handle(Event::Host(0)).unwrap();
    let used = driver.received();
    assert_eq!(used.len(), 31);
    assert_eq!(used[29], (29, 60_012 - 29 * 2048));
    assert_eq!(used[30], (30, 112));
    assert_eq!(peek(&driver.memory, RX + 10, 2), [30, 0]);
    assert_eq!(peek(&driver.memory, RX + 30 * 4096 + 10, 2), [1, 0]);
    let mut gathered = Vec::new();
    for (head, bytes) in &used[..30] {
        gathered.extend(peek(
            &driver.memory,
            RX + 4096 * u64::from(*head),
            usize::try_from(*bytes).unwrap(),
        ));
    }
    assert_eq!(gathered[12..], incoming);
    assert_eq!(driver.interrupts.triggered(), [0], "one for the batch");
}

#[test]
fn a_frame_that_finds_too_few_buffers_waits_for_more() {
    let mut driver = Driver::new(FEATURE_MERGEABLE | CHECKSUM_AND_TSO);
    driver.offer(2, 1024);
    let incoming = frame(GATEWAY, 3000);
    driver.arrive(&incoming);
    driver.device.handle(Event::Host(0)).unwrap();
    assert_eq!(driver.received(), []);
    driver
        .receive
        .send(&driver.memory, 2, &[D::writable(RX + 2 * 4096, 1024)]);
    driver.device.handle(Event::Queue(RECEIVE)).unwrap();
    assert_eq!(driver.received(), [(0, 1024), (1, 1024), (2, 964)]);
    let gathered: Vec<u8> = (0..3)
        .flat_map(|at| peek(&driver.memory, RX + at * 4096, 1024))
        .collect();
    assert_eq!(gathered[12..3012], incoming);
}

#[test]
fn frames_wait_in_the_link_until_there_are_buffers() {
    let mut driver = Driver::new(0);
    for _ in 0..3 {
        driver.arrive(&frame(GATEWAY, 64));
    }
    driver.device.handle(Event::Host(0)).unwrap();
    assert_eq!(driver.received(), []);
    driver.offer(2, 1530);
    assert_eq!(driver.received(), [(0, 76), (1, 76)]);
    driver.receive.send(&driver.memory, 0, &[D::writable(RX, 1530)]);
    driver.device.handle(Event::Queue(RECEIVE)).unwrap();
    assert_eq!(
        driver.received(),
        [(0, 76)],
        "the kick is enough: the link does not report an edge again"
    );
}

#[test]
fn a_frame_that_fits_into_no_buffer_is_dropped() {
    let mut driver = Driver::new(0);
    driver.offer(1, 100);
    driver.arrive(&frame(GATEWAY, 200));
    driver.arrive(&frame(GATEWAY, 60));
    driver.device.handle(Event::Host(0)).unwrap();
    assert_eq!(driver.received(), [(0, 72)]);
    assert_eq!(driver.device.receive_drops(), 1);
}

#[test]
fn a_full_link_holds_the_guest_back() {
    let mut driver = Driver::new(0);
    let out = frame(GUEST, 1000);
    put(&driver.memory, TX, &[&[0; HEADER_BYTES], &out[..]].concat());
    driver.transmit.write_chain(&driver.memory, 0, &[D::readable(TX, 1012)]);
    let mut sent = 0;
    let mut offered = 0;
    while sent == offered {
        driver.transmit.offer(&driver.memory, 0);
        offered += 1;
        driver.device.handle(Event::Queue(TRANSMIT)).unwrap();
        sent += usize::from(driver.transmit.used(&driver.memory).is_some());
        assert!(offered < 10_000, "the socket has no end");
    }
    driver.device.handle(Event::Queue(TRANSMIT)).unwrap();
    assert_eq!(driver.transmit.used(&driver.memory), None, "still full");
    let mut left = 0;
    while driver.left().is_some() {
        left += 1;
    }
    driver.device.handle(Event::Host(0)).unwrap();
    assert_eq!(driver.transmit.used(&driver.memory), Some((0, 0)));
    while driver.left().is_some() {
        left += 1;
    }
    assert_eq!(left, offered, "nothing was lost");
}

/// The guest's question for its gateway, as a frame.
fn who_has_the_gateway() -> Vec<u8> {
    let request = Arp {
        operation: 1,
        sender: GUEST,
        sender_address: Ipv4Addr::new(10, 0, 2, 2),
        target: MacAddress([0; 6]),
        target_address: Ipv4Addr::new(10, 0, 2, 1),
    };
    let question = Ethernet {
        destination: MacAddress::BROADCAST,
        source: GUEST,
        kind: TYPE_ARP,
        payload: &request.write(),
    };
    question.write()
}

#[test]
fn arp_and_dhcp_are_answered_without_the_link() {
    let mut driver = Driver::new(FEATURE_MERGEABLE);
    driver.offer(4, 1530);
    driver.transmit(&who_has_the_gateway());
    assert_eq!(driver.received(), [(0, 12 + 42)]);
    let answer = peek(&driver.memory, RX + 12, 42);
    assert_eq!(Arp::parse(&answer[14..]).unwrap().sender, GATEWAY);
    assert_eq!(peek(&driver.memory, RX, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);

    let mut discover = vec![0; 240];
    discover[..3].copy_from_slice(&[1, 1, 6]);
    discover[28..34].copy_from_slice(&GUEST.0);
    discover[236..].copy_from_slice(&[99, 130, 83, 99]);
    discover.extend_from_slice(b"\x35\x01\x01\xff");
    let udp = Udp {
        source: Ipv4Addr::UNSPECIFIED,
        destination: Ipv4Addr::BROADCAST,
        source_port: 68,
        destination_port: 67,
        payload: &discover,
    };
    let packet = udp.write().unwrap();
    let question = Ethernet {
        destination: MacAddress::BROADCAST,
        source: GUEST,
        kind: 0x0800,
        payload: &packet,
    };
    driver.transmit(&question.write());
    let used = driver.received();
    assert_eq!(used.len(), 1);
    let offer = peek(&driver.memory, RX + 4096, 400);
    assert_eq!(offer[12 + 14 + 28 + 16..][..4], [10, 0, 2, 2]);
    assert_eq!(driver.left(), None, "the network saw nothing of it");
}

#[test]
fn answers_without_buffers_are_bounded() {
    let mut driver = Driver::new(0);
    let question = who_has_the_gateway();
    for _ in 0..40 {
        driver.transmit(&question);
    }
    assert_eq!(driver.device.receive_drops(), 8);
}

#[test]
fn spoofed_and_broken_frames_are_counted_and_go_nowhere() {
    let mut driver = Driver::new(0);
    driver.transmit(&frame(GATEWAY, 60));
    driver.transmit(&[0; 13]);
    let spoof = Arp {
        operation: 2,
        sender: GUEST,
        sender_address: Ipv4Addr::new(10, 0, 2, 1),
        target: GATEWAY,
        target_address: Ipv4Addr::new(10, 0, 2, 9),
    };
    driver.transmit(
        &Ethernet {
            destination: GATEWAY,
            source: GUEST,
            kind: TYPE_ARP,
            payload: &spoof.write(),
        }
        .write(),
    );
    for chain in [
        &[D::readable(TX, 0)][..],
        &[D::readable(TX, 11)],
        &[D::writable(TX, 100)],
    ] {
        driver.transmit.send(&driver.memory, 5, chain);
    }
    driver.device.handle(Event::Queue(TRANSMIT)).unwrap();
    assert_eq!(driver.left(), None);
    let expected = TransmitDrops {
        malformed: 4,
        spoofed_mac: 1,
        spoofed_arp: 1,
        ..TransmitDrops::default()
    };
    assert_eq!(driver.device.transmit_drops(), expected);
    driver.device.reset();
    assert_eq!(driver.device.transmit_drops(), expected, "a reset does not forget");
    driver.device.handle(Event::Queue(TRANSMIT)).unwrap();
}

#[test]
fn hostile_queues_stop_the_device() {
    let cases: [(&str, u16, Vec<D>); 5] = [
        ("no header's room", RECEIVE, vec![D::writable(RX, 11)]),
        ("readable receive buffer", RECEIVE, vec![D::readable(RX, 1530)]),
        ("receive outside", RECEIVE, vec![D::writable(u64::MAX - 10, 1530)]),
        ("transmit outside", TRANSMIT, vec![D::readable(0xf_fff0, 1530)]),
        (
            "transmit order",
            TRANSMIT,
            vec![D::writable(TX, 12), D::readable(TX, 100)],
        ),
    ];
    for (what, queue, chain) in cases {
        let mut driver = Driver::new(FEATURE_MERGEABLE);
        let rings = if queue == RECEIVE {
            &mut driver.receive
        } else {
            &mut driver.transmit
        };
        rings.send(&driver.memory, 0, &chain);
        assert!(driver.device.handle(Event::Queue(queue)).is_err(), "{what}");
    }
    let mut driver = Driver::new(FEATURE_MERGEABLE);
    driver.receive.send(&driver.memory, 0, &[D::writable(RX, 100)]);
    driver.receive.offer(&driver.memory, 0);
    let error = driver.device.handle(Event::Queue(RECEIVE)).unwrap_err().to_string();
    assert!(error.contains("offered twice"), "{error}");
    let mut driver = Driver::new(FEATURE_MERGEABLE);
    driver.receive.jump_to(&driver.memory, 65);
    assert!(driver.device.handle(Event::Queue(RECEIVE)).is_err());
}

#[test]
fn a_queue_that_is_missing_is_an_error() {
    let memory = guest_memory();
    let (end, _network) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
    let link = Socket {
        end,
        offloads: Arc::default(),
        attached: Arc::default(),
    };
    let mut device = Net::on_caller(options(Limits::default()), vec![Box::new(link)]).unwrap();
    assert!(activate(&mut device, &memory, FEATURE_VERSION_1, &[DriverQueue::new(0x1000, 64)]).is_err());
}

#[test]
fn configuration_is_what_the_specification_says() {
    let driver = Driver::new(0);
    let mut config = [0xff; 16];
    driver.device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 2, 1, 0, 1, 0, 0xdc, 5, 0, 0, 0, 0]);
}

mod queues;
