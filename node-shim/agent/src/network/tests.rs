//! The pod's network as it is: real namespaces, a real tap, the kernel's own forwarding and NAT. The test is the guest.
//!
//! ```text
//! namespace `node`             namespace `pod`
//! node0 10.244.1.1/24 ─veth─ eth0 10.244.1.7/24 ── tap0 10.0.2.1/24 ══ Guest (10.0.2.2)
//! ```

mod bridged;
mod dual_stack;
mod frame;
mod lab;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};

use frame::{Datagram, ICMP, TCP, UDP};
use lab::{GATEWAY, GUEST, GUEST_MAC, Lab, NODE, PATIENCE, POD};

/// Makes a lab, or ends the test where it cannot be made.
macro_rules! lab {
    () => {
        match Lab::new() {
            Some(lab) => lab,
            None => return eprintln!("SKIPPED: network namespaces and taps need root"),
        }
    };
}

fn udp_socket(address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive_from(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = [0; 1500];
    let (length, from) = socket.recv_from(&mut bytes).unwrap();
    (bytes[..length].to_vec(), from)
}

#[test]
fn udp_to_the_pod_reaches_the_guest_and_its_answer_comes_back() {
    let lab = lab!();
    let socket = lab.node.inside(|| udp_socket(NODE, 0));
    socket.send_to(b"ping", (POD, 9999)).unwrap();
    let seen = lab.guest.receive(UDP);
    assert_eq!(
        (seen.destination_mac, seen.source_mac),
        (GUEST_MAC, [0x02, 0, 0x54, 0x4d, 0, 0])
    );
    assert_eq!((seen.datagram.source, seen.datagram.destination), (NODE, GUEST));
    assert_eq!(
        (seen.datagram.destination_port(), seen.datagram.udp_payload()),
        (9999, b"ping".as_slice())
    );
    lab.guest.send(&seen.datagram.udp_answer(b"pong"));
    assert_eq!(receive_from(&socket), (b"pong".to_vec(), SocketAddr::from((POD, 9999))));
}

#[test]
fn tcp_to_any_port_of_the_pod_reaches_the_guest() {
    let lab = lab!();
    for port in [1, 22, 80, 65535] {
        let client = lab
            .node
            .start(move || TcpStream::connect_timeout(&(POD, port).into(), PATIENCE));
        let seen = lab.guest.receive(TCP);
        assert_eq!(
            (
                seen.datagram.source,
                seen.datagram.destination,
                seen.datagram.destination_port()
            ),
            (NODE, GUEST, port)
        );
        lab.guest.send(&seen.datagram.tcp_refusal());
        // The refusal is only believed when its addresses, ports and checksum are right.
        assert_eq!(client.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn icmp_to_the_pod_reaches_the_guest() {
    let lab = lab!();
    let mut ping = lab.node.inside(lab::icmp_socket);
    let echo = frame::icmp_echo(8, 0x1234, b"hello");
    lab::connect(&ping, POD);
    ping.write_all(&echo).unwrap();
    let seen = lab.guest.receive(ICMP);
    assert_eq!((seen.datagram.source, seen.datagram.destination), (NODE, GUEST));
    assert_eq!(seen.datagram.payload, echo);
    let answer = frame::icmp_echo(0, 0x1234, b"hello");
    lab.guest.send(&Datagram {
        source: GUEST,
        destination: NODE,
        protocol: ICMP,
        payload: answer.clone(),
    });
    let mut packet = [0; 1500];
    let length = ping.read(&mut packet).unwrap();
    let received = Datagram::parse(&packet[..length]).unwrap();
    assert_eq!((received.source, received.payload), (POD, answer));
}

#[test]
fn what_the_guest_sends_leaves_with_the_pods_address() {
    let lab = lab!();
    let socket = lab.node.inside(|| udp_socket(NODE, 5300));
    lab.guest.send(&Datagram::udp((GUEST, 4000), (NODE, 5300), b"query"));
    let (payload, from) = receive_from(&socket);
    assert_eq!(
        (payload.as_slice(), from),
        (b"query".as_slice(), SocketAddr::from((POD, 4000)))
    );
    socket.send_to(b"answer", from).unwrap();
    let seen = lab.guest.receive(UDP).datagram;
    assert_eq!(
        (seen.source, seen.destination, seen.destination_port()),
        (NODE, GUEST, 4000)
    );
    assert_eq!(seen.udp_payload(), b"answer");
}

#[test]
fn local_connections_of_the_pod_reach_the_guest_as_port_forward_needs_it() {
    let lab = lab!();
    let socket = lab.pod.inside(|| udp_socket(Ipv4Addr::LOCALHOST, 0));
    socket.send_to(b"ping", (Ipv4Addr::LOCALHOST, 2222)).unwrap();
    let seen = lab.guest.receive(UDP).datagram;
    assert_eq!(
        (seen.source, seen.destination, seen.destination_port()),
        (GATEWAY, GUEST, 2222)
    );
    lab.guest.send(&seen.udp_answer(b"pong"));
    assert_eq!(
        receive_from(&socket),
        (b"pong".to_vec(), SocketAddr::from((Ipv4Addr::LOCALHOST, 2222)))
    );

    let client = lab
        .pod
        .start(|| TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, 22).into(), PATIENCE));
    let seen = lab.guest.receive(TCP).datagram;
    assert_eq!(
        (seen.source, seen.destination, seen.destination_port()),
        (GATEWAY, GUEST, 22)
    );
    lab.guest.send(&seen.tcp_refusal());
    assert_eq!(client.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn the_guest_can_ping_its_gateway() {
    let lab = lab!();
    let echo = frame::icmp_echo(8, 7, b"up?");
    lab.guest.send(&Datagram {
        source: GUEST,
        destination: GATEWAY,
        protocol: ICMP,
        payload: echo,
    });
    let seen = lab.guest.receive(ICMP).datagram;
    assert_eq!((seen.source, seen.payload), (GATEWAY, frame::icmp_echo(0, 7, b"up?")));
}

#[test]
fn the_guest_cannot_send_from_an_address_that_is_not_its_own() {
    let lab = lab!();
    let socket = lab.node.inside(|| udp_socket(NODE, 5300));
    for spoofed in [
        Ipv4Addr::new(10, 0, 2, 3),
        POD,
        Ipv4Addr::new(10, 244, 1, 99),
        NODE,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::UNSPECIFIED,
    ] {
        lab.guest
            .send(&Datagram::udp((spoofed, 4000), (NODE, 5300), b"spoofed"));
    }
    lab.guest.send(&Datagram::udp((GUEST, 4000), (NODE, 5300), b"honest"));
    assert_eq!(receive_from(&socket).0, b"honest");
}

#[test]
fn the_guest_reaches_no_socket_in_the_pods_namespace() {
    let lab = lab!();
    let socket = lab.pod.inside(|| udp_socket(Ipv4Addr::UNSPECIFIED, 7777));
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 1, 2, 3), GATEWAY, POD] {
        lab.guest
            .send(&Datagram::udp((GUEST, 4000), (address, 7777), b"intruder"));
    }
    // Would arrive after the others, had they been let in.
    lab.pod
        .inside(|| udp_socket(POD, 0))
        .send_to(b"own", (POD, 7777))
        .unwrap();
    assert_eq!(receive_from(&socket).0, b"own");
}

#[test]
fn a_second_hello_of_the_pod_replaces_the_first() {
    let mut lab = lab!();
    let first = lab.rules();
    let old = lab.attach_again();
    assert_eq!(lab.rules(), first);
    let socket = lab.node.inside(|| udp_socket(NODE, 0));
    socket.send_to(b"ping", (POD, 9999)).unwrap();
    assert_eq!(lab.guest.receive(UDP).datagram.udp_payload(), b"ping");
    drop(old);
    socket.send_to(b"again", (POD, 9999)).unwrap();
    assert_eq!(lab.guest.receive(UDP).datagram.udp_payload(), b"again");
}

#[test]
fn the_tap_goes_with_its_shim() {
    let lab = lab!();
    let has_tap = |lab: &Lab| lab.pod.run("ip", &["-br", "link"]).contains("tap0");
    assert!(has_tap(&lab));
    let lab = lab.without_guest();
    assert!(!has_tap(&lab));
}

#[test]
fn the_grant_says_what_the_guest_is_told() {
    let lab = lab!();
    let network = lab::private(&lab.grant);
    assert_eq!(
        (network.address, network.gateway, network.prefix_length, network.mtu),
        (GUEST, GATEWAY, 24, 1450)
    );
    assert_eq!(network.gateway_mac, "02:00:54:4d:00:00");
    let link = lab.pod.run("ip", &["-d", "link", "show", "tap0"]);
    for expected in [
        "mtu 1450",
        "link/ether 02:00:54:4d:00:00",
        "vnet_hdr on",
        "persist off",
        "UP",
    ] {
        assert!(link.contains(expected), "{expected:?} is not in {link}");
    }
    assert!(
        lab.pod
            .run("ip", &["neigh", "show", "dev", "tap0"])
            .contains("10.0.2.2 lladdr 02:00:00:00:01:00 PERMANENT")
    );
}

#[test]
fn the_rules_are_the_documented_ones() {
    let lab = lab!();
    assert_eq!(lab.rules(), include_str!("tests/ruleset.nft"));
}

#[test]
fn a_pod_without_a_network_is_refused_with_the_reason() {
    let Some(pod) = lab::Namespace::new() else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let error = lab::attach(&pod).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the pod has no IPv4 default route: is the node's CNI plugin working?"
    );
    assert!(error.is_retryable());
}

#[test]
fn many_interfaces_are_connected_at_once() {
    // Eight taps make a batch of more than 64 netlink messages.
    let Some(lab) = Lab::with_interfaces(8) else {
        return eprintln!("SKIPPED: network namespaces and taps need root");
    };
    let rules = lab.rules();
    assert!(rules.contains(r#"iifname "tap7" ip saddr != 10.0.9.2 drop"#), "{rules}");
}

#[test]
fn one_more_tap_is_made_beside_one_that_goes_on() {
    let lab = lab!();
    for _again in 0..2 {
        let more = lab::attach_beside(&lab.pod, 1).unwrap();
        let network = lab::private(&more.grant);
        let guest = Ipv4Addr::new(10, 0, 3, 2);
        assert_eq!((network.address, more.queues.len()), (guest, 4));
        // What comes to the pod goes where it went.
        let socket = lab.node.inside(|| udp_socket(NODE, 0));
        socket.send_to(b"ping", (POD, 9999)).unwrap();
        let seen = lab.guest.receive(UDP);
        assert_eq!(seen.datagram.destination, GUEST);
        lab.guest.send(&seen.datagram.udp_answer(b"pong"));
        assert_eq!(receive_from(&socket), (b"pong".to_vec(), SocketAddr::from((POD, 9999))));
        // What the other sends leaves with the pod's address, and what is not from its own does not.
        let socket = lab.node.inside(|| udp_socket(NODE, 5300));
        let tap = lab::Guest(Some(more.queues.into_iter().next().unwrap().into()));
        let send = |source, text: &[u8]| {
            let datagram = Datagram::udp((source, 4000), (NODE, 5300), text);
            let gateway = [0x02, 0, 0x54, 0x4d, 0, 1];
            tap.send_frame(gateway, [0x02, 0, 0, 0, 1, 0], 0x0800, &datagram.encode());
        };
        send(GUEST, b"spoofed");
        send(guest, b"query");
        let (payload, from) = receive_from(&socket);
        assert_eq!((payload.as_slice(), from.ip()), (b"query".as_slice(), POD.into()));
    }
}
