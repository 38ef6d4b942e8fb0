use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use node_shim_protocol::config::{BridgedIpv4, BridgedIpv6, BridgedNetwork, GuestNetwork, Route};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::*;

fn address(socket: &Path) -> Address {
    Address {
        socket: socket.to_owned(),
        pod_uid: "pod-1".to_owned(),
    }
}

fn interface(name: &str) -> InterfaceRequest {
    InterfaceRequest {
        name: name.to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        queues: 2,
        binding: InterfaceBinding::Masquerade,
        pod_interface: None,
    }
}

fn grant(name: &str) -> InterfaceGrant {
    InterfaceGrant {
        name: name.to_owned(),
        queues: 2,
        network: GrantedNetwork::Masquerade(GuestNetwork {
            address: Ipv4Addr::new(10, 0, 2, 2),
            prefix_length: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 1),
            gateway_mac: "02:00:00:00:00:02".to_owned(),
            mtu: 1500,
            ipv6: None,
        }),
    }
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count)
        .map(|_| std::fs::File::open("/dev/null").unwrap().into())
        .collect()
}

fn match_up(asked: &[&str], response: &[&str], count: usize) -> Result<Grant, AgentError> {
    let asked: Vec<_> = asked.iter().map(|name| interface(name)).collect();
    let response = response.iter().map(|name| grant(name)).collect();
    let connection = descriptors(1).remove(0);
    granted(
        &address(Path::new("agent.sock")),
        connection,
        &asked,
        response,
        descriptors(count),
    )
}

#[test]
fn a_grant_has_what_was_asked_for_in_that_order() {
    assert!(match_up(&[], &[], 1).is_ok());
    let granted = match_up(&["a", "b"], &["a", "b"], 5).unwrap().interfaces;
    assert_eq!((granted[1].0.name.as_str(), granted[1].1.len()), ("b", 2));
    for (response, count) in [
        (vec!["b", "a"], 5),
        (vec!["a"], 3),
        (vec!["a", "b"], 4),
        (vec!["a", "b"], 6),
    ] {
        let result = match_up(&["a", "b"], &response, count);
        assert!(
            matches!(result, Err(AgentError::Unusable(_))),
            "{response:?} with {count}"
        );
    }
}

#[test]
fn more_queues_than_asked_for_or_none_are_refused() {
    for (queues, good) in [(0, false), (1, true), (2, true), (3, false)] {
        let response = vec![InterfaceGrant { queues, ..grant("a") }];
        let connection = descriptors(1).remove(0);
        let given = descriptors(1 + usize::from(queues));
        let result = granted(
            &address(Path::new("agent.sock")),
            connection,
            &[interface("a")],
            response,
            given,
        );
        assert_eq!(result.is_ok(), good, "{queues}");
    }
}

/// A change of what is granted.
type Change = fn(&mut BridgedNetwork);

#[test]
fn what_is_granted_for_a_bridge_is_checked() {
    let sound = || BridgedNetwork {
        mac: "0a:58:0a:f4:01:07".to_owned(),
        mtu: 1450,
        ipv4: Some(BridgedIpv4 {
            address: Ipv4Addr::new(10, 244, 1, 7),
            prefix_length: 32,
            routes: vec![Route {
                destination: Ipv4Addr::UNSPECIFIED,
                prefix_length: 0,
                gateway: Some(Ipv4Addr::new(169, 254, 1, 1)),
            }],
        }),
        ipv6: Some(BridgedIpv6 {
            address: "fd00:244:1::7".parse().unwrap(),
            prefix_length: 128,
            gateway_mac: Some("ee:ee:ee:ee:ee:ee".to_owned()),
        }),
    };
    let bridge = InterfaceRequest {
        binding: InterfaceBinding::Bridge,
        ..interface("a")
    };
    let refused = |asked: &InterfaceRequest, network| {
        let response = vec![InterfaceGrant { network, ..grant("a") }];
        let (socket, given) = (address(Path::new("agent.sock")), descriptors(3));
        let result = granted(
            &socket,
            descriptors(1).remove(0),
            std::slice::from_ref(asked),
            response,
            given,
        );
        result.err().map(|error| error.to_string())
    };
    assert_eq!(refused(&bridge, GrantedNetwork::Bridge(sound())), None);
    let open = BridgedNetwork {
        ipv4: None,
        ipv6: None,
        ..sound()
    };
    assert_eq!(refused(&bridge, GrantedNetwork::Bridge(open)), None);
    let another = refused(&interface("a"), GrantedNetwork::Bridge(sound())).unwrap();
    assert!(another.contains("another binding than asked for"), "{another}");
    let changes: [(&str, Change); 8] = [
        ("mac", |network| network.mac = "01:00:00:00:00:01".to_owned()),
        ("mtu", |network| network.mtu = 500),
        ("ipv4.prefixLength", |network| {
            network.ipv4.as_mut().unwrap().prefix_length = 33;
        }),
        ("ipv4.address", |network| {
            network.ipv4.as_mut().unwrap().address = Ipv4Addr::new(224, 0, 0, 1);
        }),
        ("ipv4.routes", |network| {
            let routes = &mut network.ipv4.as_mut().unwrap().routes;
            *routes = vec![routes[0]; 17];
        }),
        ("ipv4.routes[0].prefixLength", |network| {
            network.ipv4.as_mut().unwrap().routes[0].prefix_length = 33;
        }),
        ("ipv6.address", |network| {
            network.ipv6.as_mut().unwrap().address = "fe80::1".parse().unwrap();
        }),
        ("ipv6.gatewayMac", |network| {
            network.ipv6.as_mut().unwrap().gateway_mac = Some("x".to_owned());
        }),
    ];
    for (field, change) in changes {
        let mut network = sound();
        change(&mut network);
        let error = refused(&bridge, GrantedNetwork::Bridge(network)).unwrap();
        assert!(error.contains(&format!("interface a.{field}")), "{field}: {error}");
    }
}

#[test]
fn waits_grow_to_a_limit() {
    let mut backoff = Backoff::new();
    let waits: Vec<_> = (0..8).map(|_| backoff.next()).collect();
    assert_eq!(waits[0], RETRY_FIRST);
    assert!(waits.is_sorted());
    assert_eq!(waits[7], RETRY_MAX);
}

/// An agent on a socket of its own.
fn listen(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    socket
}

fn answer(socket: &OwnedFd, text: &[u8], descriptors: &[OwnedFd]) {
    let connection = rustix::net::accept(socket).unwrap();
    let mut request = vec![0; 65536];
    rustix::net::recv(&connection, request.as_mut_slice(), rustix::net::RecvFlags::empty()).unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() {
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(&connection, &[std::io::IoSlice::new(text)], &mut control, flags).unwrap();
}

#[test]
fn the_agent_may_ask_for_patience_and_then_grant() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let socket = listen(&path);
    let agent = std::thread::spawn(move || {
        answer(&socket, br#"{"refused":{"reason":"not yet","retryable":true}}"#, &[]);
        let response = serde_json::to_vec(&Response::Granted {
            interfaces: vec![grant("default")],
        });
        answer(&socket, &response.unwrap(), &descriptors(3));
    });
    let signals = Signals::block().unwrap();
    let granted = negotiate(&address(&path), &[interface("default")], &signals).unwrap();
    agent.join().unwrap();
    assert!(granted.kvm.as_raw_fd() >= 0);
    assert_eq!(granted.interfaces.len(), 1);
}

#[test]
fn a_refusal_for_good_and_nonsense_end_the_negotiation() {
    for (text, expected) in [
        (
            &br#"{"refused":{"reason":"no such pod","retryable":false}}"#[..],
            "refused: no such pod",
        ),
        (br#"{"granted":{"interfaces":[]}}"#, "unusable"),
        (b"nonsense", "unusable"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let socket = listen(&path);
        let agent = std::thread::spawn(move || answer(&socket, text, &[]));
        let signals = Signals::block().unwrap();
        let error = negotiate(&address(&path), &[], &signals).err().unwrap().to_string();
        agent.join().unwrap();
        assert!(error.contains(expected), "{error}");
    }
}

/// A link, and the agent's end of it.
fn linked() -> (Link, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let socket = address(Path::new("/nowhere/agent.sock"));
    let grant = granted(&socket, ours, &[], Vec::new(), descriptors(1)).unwrap();
    (grant.link, theirs)
}

fn status() -> GuestStatus {
    GuestStatus {
        state: node_shim_protocol::agent::GuestState::Running,
        boot_time_ms: 1,
        vcpus: 2,
        memory_bytes: 1 << 30,
        resets: 0,
        kernel: None,
        hindrance: None,
        disks: Vec::new(),
    }
}

fn size(order: Option<Order>) -> Option<Resize> {
    match order {
        Some(Order::Resize(resize)) => Some(resize),
        None => None,
        Some(other) => panic!("{other:?}"),
    }
}

#[test]
fn disks_come_with_their_descriptors() {
    let (mut link, agent) = linked();
    let poll = Poll::new().unwrap();
    let disk = AttachDisk {
        name: "data".to_owned(),
        lender: "v1".to_owned(),
        options: node_shim_protocol::agent::DiskOptions::default(),
    };
    let file = std::fs::File::open("/dev/null").unwrap();
    packet::send(&agent, &Response::AttachDisk(disk.clone()), &[file.as_fd()]).unwrap();
    let Some(Order::Attach(heard, descriptors)) = link.on_readable(&poll) else {
        panic!("no disk")
    };
    assert_eq!((heard, descriptors.len()), (disk, 1));
    let name = "data".to_owned();
    packet::send(&agent, &Response::DetachDisk { name }, &[]).unwrap();
    assert!(matches!(link.on_readable(&poll), Some(Order::Detach(name)) if name == "data"));
    let plugged = Plugged {
        name: "data".to_owned(),
        failure: None,
        status: status(),
    };
    link.answer_disk(&poll, plugged.clone());
    let (answer, _) = packet::receive::<Request>(&agent).unwrap().unwrap();
    assert_eq!(answer, Request::Plugged(plugged));
}

#[test]
fn a_size_is_carried_out_again_but_never_after_a_newer_one() {
    let (mut link, agent) = linked();
    let poll = Poll::new().unwrap();
    for (sequence, heard) in [(3, true), (3, true), (2, false), (4, true), (3, false)] {
        let resize = Resize {
            sequence,
            vcpus: 2,
            memory_bytes: 1 << 30,
        };
        packet::send(&agent, &Response::Resize(resize), &[]).unwrap();
        assert_eq!(size(link.on_readable(&poll)), heard.then_some(resize), "{sequence}");
    }
    let resized = Resized {
        sequence: 4,
        failure: None,
        status: status(),
    };
    link.answer(&poll, resized.clone());
    let (answer, _) = packet::receive::<Request>(&agent).unwrap().unwrap();
    assert_eq!(answer, Request::Resized(resized));
}

#[test]
fn another_agent_does_not_bring_an_older_size_back() {
    let (mut link, agent) = linked();
    let poll = Poll::new().unwrap();
    let resize = |sequence| {
        Response::Resize(Resize {
            sequence,
            vcpus: 1,
            memory_bytes: 1 << 30,
        })
    };
    packet::send(&agent, &resize(7), &[]).unwrap();
    assert!(link.on_readable(&poll).is_some());
    drop(agent);
    assert!(link.on_readable(&poll).is_none());
    assert!(link.wake_at().is_some(), "it is to connect again");

    let directory = tempfile::tempdir().unwrap();
    link.address.socket = directory.path().join("agent.sock");
    let listener = listen(&link.address.socket);
    link.on_time(Instant::now(), &poll, &status());
    let agent = rustix::net::accept(&listener).unwrap();
    let (first, _) = packet::receive::<Request>(&agent).unwrap().unwrap();
    assert!(matches!(first, Request::Resume { pod_uid, .. } if pod_uid == "pod-1"));
    packet::send(&agent, &resize(6), &[]).unwrap();
    assert!(link.on_readable(&poll).is_none());
    packet::send(&agent, &resize(8), &[]).unwrap();
    assert!(link.on_readable(&poll).is_some());
}
