use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::packet::{Credit, Operation, Ports};
use super::*;
use crate::testing::driver::{peek, put};
use crate::testing::{Descriptor, DriverQueue, activate, guest_memory};

const CID: u64 = 3;
const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const RECEIVE_AT: u64 = 0x2_0000;
const RECEIVE_BYTES: u32 = 4096;

struct Setup {
    directory: tempfile::TempDir,
    memory: Arc<Memory>,
    device: Vsock,
    queues: [DriverQueue; 3],
}

fn device(directory: &Path) -> Vsock {
    let path = directory.join("vsock");
    let _ = std::fs::remove_file(&path);
    Vsock::new(CID, &path, UnixListener::bind(&path).unwrap()).unwrap()
}

fn setup() -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let memory = guest_memory();
    let queues = std::array::from_fn(|index| DriverQueue::new(0x1000 + 0x1000 * index as u64, 16));
    let mut device = device(directory.path());
    activate(&mut device, &memory, 0, &queues).unwrap();
    let mut setup = Setup {
        directory,
        memory,
        device,
        queues,
    };
    for head in 0..8 {
        setup.offer(head);
    }
    setup
}

/// A packet that the guest found: its header's fields and its data.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    operation: u16,
    ports: Ports,
    flags: u32,
    forwarded: u32,
    data: Vec<u8>,
}

const PORTS: Ports = Ports { host: 52, guest: 1024 };
const CREDIT: Credit = Credit {
    allocated: 8192,
    forwarded: 0,
};

impl Setup {
    fn offer(&mut self, head: u16) {
        let at = RECEIVE_AT + u64::from(head) * u64::from(RECEIVE_BYTES);
        self.queues[0].send(&self.memory, head, &[Descriptor::writable(at, RECEIVE_BYTES)]);
    }

    fn host(&mut self) {
        self.device.handle(Event::Host(0)).unwrap();
    }

    /// Everything that came for the guest; its buffers go back.
    fn received(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some((head, length)) = self.queues[0].used(&self.memory) {
            let head = u16::try_from(head).unwrap();
            let bytes = peek(
                &self.memory,
                RECEIVE_AT + u64::from(head) * u64::from(RECEIVE_BYTES),
                length as usize,
            );
            let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!((u32_at(0), u32_at(8)), (2, 3));
            assert_eq!(u32_at(24) as usize, bytes.len() - HEADER_BYTES);
            packets.push(Packet {
                operation: u16::from_le_bytes([bytes[30], bytes[31]]),
                ports: Ports {
                    host: u32_at(16),
                    guest: u32_at(20),
                },
                flags: u32_at(32),
                forwarded: u32_at(40),
                data: bytes[HEADER_BYTES..].to_vec(),
            });
            self.offer(head);
        }
        self.device.handle(Event::Queue(RECEIVE)).unwrap();
        packets
    }

    fn header(&self, ports: Ports, operation: u16, length: u32, flags: u32, credit: Credit) {
        let mut bytes = Sent {
            ports: Ports {
                host: ports.guest,
                guest: ports.host,
            },
            operation: Operation::Reset,
            length,
            flags,
            credit,
        }
        .bytes(HOST_CID);
        bytes[0] = 3;
        bytes[30..32].copy_from_slice(&operation.to_le_bytes());
        put(&self.memory, HEADER, &bytes);
    }

    fn send(&mut self, ports: Ports, operation: Operation, flags: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.header(ports, operation as u16, length, flags, CREDIT);
        put(&self.memory, DATA, data);
        let chain = [Descriptor::readable(HEADER, 44), Descriptor::readable(DATA, length)];
        self.queues[1].send(&self.memory, 0, &chain);
        self.device.handle(Event::Queue(TRANSMIT)).unwrap();
        assert_eq!(self.queues[1].used(&self.memory), Some((0, 0)));
    }

    /// A connection that the guest has made, and the host's end of it.
    fn guest_connects(&mut self) -> UnixStream {
        let listener = UnixListener::bind(self.directory.path().join("vsock_52")).unwrap();
        self.send(PORTS, Operation::Request, 0, &[]);
        let packets = self.received();
        assert_eq!(
            packets.iter().map(|packet| packet.operation).collect::<Vec<_>>(),
            [Operation::Response as u16]
        );
        assert_eq!(packets[0].ports, PORTS);
        listener.accept().unwrap().0
    }

    fn operations(&mut self) -> Vec<u16> {
        self.received().iter().map(|packet| packet.operation).collect()
    }
}

const REQUEST: u16 = Operation::Request as u16;
const RESET: u16 = Operation::Reset as u16;
const SHUTDOWN: u16 = Operation::Shutdown as u16;
const RW: u16 = Operation::Data as u16;

#[test]
fn a_client_of_the_host_reaches_a_port_of_the_guest() {
    let mut setup = setup();
    let mut client = UnixStream::connect(setup.directory.path().join("vsock")).unwrap();
    client.write_all(b"CONN").unwrap();
    setup.host();
    assert!(setup.operations().is_empty());
    client.write_all(b"ECT 7000\nhello").unwrap();
    setup.host();
    let packets = setup.received();
    let ports = packets[0].ports;
    assert_eq!((packets.len(), packets[0].operation, ports.guest), (1, REQUEST, 7000));
    setup.send(ports, Operation::Response, 0, &[]);
    let packets = setup.received();
    assert_eq!(
        (packets.len(), packets[0].operation, packets[0].data.as_slice()),
        (1, RW, &b"hello"[..])
    );
    setup.send(ports, Operation::Data, 0, b"world");
    let mut answer = [0; 64];
    let expected = format!("OK {}\nworld", ports.host);
    client.read_exact(&mut answer[..expected.len()]).unwrap();
    assert_eq!(&answer[..expected.len()], expected.as_bytes());
    drop(client);
    setup.host();
    let packets = setup.received();
    assert_eq!((packets[0].operation, packets[0].flags), (SHUTDOWN, 3));
    setup.send(ports, Operation::Reset, 0, &[]);
    assert!(setup.operations().is_empty());
    setup.send(ports, Operation::Data, 0, b"late");
    assert_eq!(setup.operations(), [RESET]);
}

#[test]
fn a_guest_that_refuses_closes_the_client() {
    let mut setup = setup();
    let mut client = UnixStream::connect(setup.directory.path().join("vsock")).unwrap();
    client.write_all(b"CONNECT 7000\n").unwrap();
    setup.host();
    let ports = setup.received()[0].ports;
    setup.send(ports, Operation::Reset, 0, &[]);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    let mut rude = UnixStream::connect(setup.directory.path().join("vsock")).unwrap();
    rude.write_all(b"GET / HTTP/1.1\n").unwrap();
    setup.host();
    assert!(matches!(rude.read(&mut [0; 8]), Ok(0) | Err(_)));
    assert!(setup.operations().is_empty());
}

#[test]
fn a_guest_reaches_a_socket_of_the_host_and_half_closes() {
    let mut setup = setup();
    let mut host = setup.guest_connects();
    setup.send(PORTS, Operation::Data, 0, b"question");
    setup.send(PORTS, Operation::Shutdown, packet::SHUTDOWN_SEND, &[]);
    let mut question = String::new();
    host.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    host.write_all(b"answer").unwrap();
    drop(host);
    setup.host();
    let mut packets = setup.received();
    packets.extend(setup.received());
    assert_eq!(packets[0].data, b"answer");
    assert_eq!(packets[0].forwarded, 8);
    assert_eq!(packets[1].operation, SHUTDOWN);
    assert_eq!(packets[2].operation, RESET, "both have ended");
}

#[test]
fn nobody_listening_is_a_reset_and_so_is_every_packet_of_no_connection() {
    let mut setup = setup();
    setup.send(PORTS, Operation::Request, 0, &[]);
    assert_eq!(setup.operations(), [RESET]);
    for operation in [
        Operation::Response,
        Operation::Data,
        Operation::Shutdown,
        Operation::CreditUpdate,
        Operation::CreditRequest,
    ] {
        setup.send(PORTS, operation, 0, b"x");
        assert_eq!(setup.operations(), [RESET], "{operation:?}");
    }
    setup.send(PORTS, Operation::Reset, 0, &[]);
    assert!(setup.operations().is_empty());
}

#[test]
fn data_goes_to_the_guest_only_as_far_as_its_credit() {
    let mut setup = setup();
    let mut host = setup.guest_connects();
    host.write_all(&[7; 10_000]).unwrap();
    setup.host();
    let mut packets = setup.received();
    packets.extend(setup.received());
    let total: usize = packets.iter().map(|packet| packet.data.len()).sum();
    assert_eq!(total, 8192);
    assert_eq!(packets.last().unwrap().operation, Operation::CreditRequest as u16);
    let credit = Credit {
        allocated: 8192,
        forwarded: 8192,
    };
    setup.header(PORTS, Operation::CreditUpdate as u16, 0, 0, credit);
    setup.queues[1].send(&setup.memory, 0, &[Descriptor::readable(HEADER, 44)]);
    setup.device.handle(Event::Queue(TRANSMIT)).unwrap();
    let total: usize = setup.received().iter().map(|packet| packet.data.len()).sum();
    assert_eq!(total, 10_000 - 8192);
    // A guest that claims to have taken more than it was sent has no credit at all.
    let credit = Credit {
        allocated: 8192,
        forwarded: 20_000,
    };
    setup.header(PORTS, Operation::CreditUpdate as u16, 0, 0, credit);
    setup.queues[1].send(&setup.memory, 0, &[Descriptor::readable(HEADER, 44)]);
    host.write_all(b"more").unwrap();
    setup.device.handle(Event::Queue(TRANSMIT)).unwrap();
    assert!(setup.received().iter().all(|packet| packet.data.is_empty()));
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_cut_off_and_a_slow_reader_gets_everything_else() {
    let mut setup = setup();
    let mut host = setup.guest_connects();
    let block = vec![9; 32 * 1024];
    let mut sent = 0;
    let operations = loop {
        setup.send(PORTS, Operation::Data, 0, &block);
        let operations = setup.operations();
        if operations.contains(&RESET) {
            break operations;
        }
        sent += block.len();
        assert!(sent < 16 << 20, "the socket's own buffer is not that large");
    };
    assert_eq!(operations, [RESET]);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert!(bytes.len() + 64 * 1024 >= sent, "only what was buffered here is lost");
}

#[test]
fn what_waits_is_written_when_the_reader_reads_and_the_guest_hears_of_the_room() {
    let mut setup = setup();
    let mut host = setup.guest_connects();
    host.set_nonblocking(true).unwrap();
    let block = vec![9; 32 * 1024];
    let mut sent = 0_usize;
    // Up to the point where the socket is full and 32 KiB wait.
    let mut forwarded = 0;
    while sent < forwarded + block.len() || sent == 0 {
        setup.send(PORTS, Operation::Data, 0, &block);
        sent += block.len();
        setup.send(PORTS, Operation::CreditRequest, 0, &[]);
        forwarded = setup.received().last().unwrap().forwarded as usize;
        if forwarded < sent {
            break;
        }
    }
    let mut got = 0;
    let mut buffer = vec![0; 256 * 1024];
    while got < sent {
        match host.read(&mut buffer) {
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => setup.host(),
            Err(error) => panic!("{error}"),
        }
    }
    setup.send(PORTS, Operation::CreditRequest, 0, &[]);
    assert_eq!(setup.received().last().unwrap().forwarded as usize, sent);
}

#[test]
fn hostile_buffers_stop_the_device() {
    let header_and_more = |length| {
        move |setup: &Setup| {
            setup.header(PORTS, RW, length, 0, CREDIT);
        }
    };
    for (length, chain) in [
        (0, vec![Descriptor::readable(HEADER, 43)]),
        (1, vec![Descriptor::readable(HEADER, 44)]),
        (
            u32::MAX,
            vec![Descriptor::readable(HEADER, 44), Descriptor::readable(DATA, 16)],
        ),
        (0, vec![Descriptor::writable(HEADER, 44)]),
        (0, vec![Descriptor::readable(u64::MAX - 3, 44)]),
    ] {
        let mut setup = setup();
        header_and_more(length)(&setup);
        setup.queues[1].send(&setup.memory, 0, &chain);
        assert!(setup.device.handle(Event::Queue(TRANSMIT)).is_err(), "{chain:x?}");
    }
    let mut setup = setup();
    setup.queues[0] = DriverQueue::new(0x1000, 16);
    put(&setup.memory, setup.queues[0].available_ring, &[0; 4]);
    activate(&mut setup.device, &setup.memory, 0, &setup.queues).unwrap();
    setup.queues[0].send(&setup.memory, 0, &[Descriptor::writable(RECEIVE_AT, 44)]);
    let client = UnixStream::connect(setup.directory.path().join("vsock")).unwrap();
    (&client).write_all(b"CONNECT 1\n").unwrap();
    assert!(setup.device.handle(Event::Host(0)).is_err());
}

#[test]
fn header_and_data_may_share_a_descriptor_or_be_in_pieces() {
    for cuts in [vec![49], vec![20, 26, 3], vec![44, 1, 4]] {
        let mut setup = setup();
        let mut host = setup.guest_connects();
        setup.header(PORTS, RW, 5, 0, CREDIT);
        put(&setup.memory, HEADER + 44, b"piece");
        let mut at = HEADER;
        let mut chain = Vec::new();
        for cut in &cuts {
            chain.push(Descriptor::readable(at, *cut));
            at += u64::from(*cut);
        }
        setup.queues[1].send(&setup.memory, 0, &chain);
        setup.device.handle(Event::Queue(TRANSMIT)).unwrap();
        let mut piece = [0; 5];
        host.read_exact(&mut piece).unwrap();
        assert_eq!(&piece, b"piece", "{cuts:?}");
    }
}

#[test]
fn packets_of_others_are_dropped_and_unknown_kinds_are_refused() {
    let mut setup = setup();
    for (at, value, expected) in [
        (0, 9, vec![]),
        (8, 9, vec![]),
        (28, 2, vec![RESET]),
        (30, 99, vec![RESET]),
    ] {
        setup.header(PORTS, RW, 0, 0, CREDIT);
        put(&setup.memory, HEADER + at, &[value]);
        setup.queues[1].send(&setup.memory, 0, &[Descriptor::readable(HEADER, 44)]);
        setup.device.handle(Event::Queue(TRANSMIT)).unwrap();
        assert_eq!(setup.operations(), expected, "{at}");
    }
}

#[test]
fn a_guest_that_takes_nothing_cannot_send_without_end() {
    let mut setup = setup();
    // Nothing is offered to receive into any more once these eight are used.
    let (mut offered, mut taken) = (0, 0);
    setup.header(PORTS, RW, 0, 0, CREDIT);
    for _ in 0..40 {
        while offered < taken + 16 {
            setup.queues[1].send(&setup.memory, 0, &[Descriptor::readable(HEADER, 44)]);
            offered += 1;
        }
        setup.device.handle(Event::Queue(TRANSMIT)).unwrap();
        taken += std::iter::from_fn(|| setup.queues[1].used(&setup.memory)).count();
    }
    assert!((256..=264).contains(&taken), "{taken}");
}

#[test]
fn connections_are_bounded() {
    let mut setup = setup();
    let path = setup.directory.path().join("vsock");
    let mut clients = Vec::new();
    for _ in 0..muxer::CONNECTIONS_MAX {
        clients.push(UnixStream::connect(&path).unwrap());
        setup.host();
    }
    let mut one_more = UnixStream::connect(&path).unwrap();
    setup.host();
    assert_eq!(one_more.read(&mut [0]).unwrap(), 0);
    clients.pop();
    setup.host();
    let another = UnixStream::connect(&path).unwrap();
    setup.host();
    another.set_nonblocking(true).unwrap();
    assert_eq!((&another).read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut setup = setup();
    let _host = setup.guest_connects();
    let saved = setup.device.save();
    assert_eq!(saved.queues.iter().flatten().count(), 3);
    let directory = tempfile::tempdir().unwrap();
    let mut restored = device(directory.path());
    restored.restore(&saved.device).unwrap();
    activate(&mut restored, &setup.memory, 0, &setup.queues).unwrap();
    put(&setup.memory, DATA, &[0xee; 8]);
    setup.queues[2].send(&setup.memory, 0, &[Descriptor::writable(DATA, 8)]);
    restored.handle(Event::Queue(EVENTS)).unwrap();
    assert_eq!(setup.queues[2].used(&setup.memory), Some((0, 4)));
    assert_eq!(peek(&setup.memory, DATA, 5), [0, 0, 0, 0, 0xee]);
    setup.queues[2].send(&setup.memory, 1, &[Descriptor::writable(DATA, 8)]);
    restored.handle(Event::Queue(EVENTS)).unwrap();
    assert_eq!(setup.queues[2].used(&setup.memory), None, "once");
    let other = DeviceState::Vsock(VsockState { guest_cid: 4 });
    assert!(restored.restore(&other).is_err());
    assert!(restored.restore(&DeviceState::Rng(crate::rng::RngState {})).is_err());
}
