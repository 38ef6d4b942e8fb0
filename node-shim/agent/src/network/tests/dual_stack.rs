//! IPv6 beside IPv4, and taps of several queues.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use node_shim_protocol::agent::{InterfaceBinding, InterfaceRequest};

use super::super::GuestInterface;
use super::frame::{Datagram6, ICMPV6, UDP};
use super::lab::{self, GATEWAY6, GUEST6, Lab, NODE6, PATIENCE, POD6};
use super::receive_from;

macro_rules! lab {
    () => {
        match Lab::dual_stack() {
            Some(lab) => lab,
            None => return eprintln!("SKIPPED: network namespaces and taps need root"),
        }
    };
}

fn udp_socket(address: Ipv6Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn udp_goes_both_ways() {
    let lab = lab!();
    let socket = lab.node.inside(|| udp_socket(NODE6, 5300));
    socket.send_to(b"ping", (POD6, 9999)).unwrap();
    let seen = lab.guest.receive6(UDP);
    assert_eq!(
        (seen.source, seen.port(2), &seen.payload[8..]),
        (NODE6, 9999, b"ping".as_slice())
    );
    lab.guest.send6(&Datagram6::udp((GUEST6, 9999), (NODE6, 5300), b"pong"));
    assert_eq!(
        receive_from(&socket),
        (b"pong".to_vec(), SocketAddr::from((POD6, 9999)))
    );

    lab.guest
        .send6(&Datagram6::udp((GUEST6, 4000), (NODE6, 5300), b"query"));
    let (payload, from) = receive_from(&socket);
    assert_eq!(
        (payload.as_slice(), from),
        (b"query".as_slice(), SocketAddr::from((POD6, 4000)))
    );
}

#[test]
fn the_gateway_can_be_pinged() {
    let lab = lab!();
    lab.guest.send6(&Datagram6::echo(GUEST6, GATEWAY6, 128, b"up?"));
    assert_eq!(
        lab.guest.receive6(ICMPV6),
        Datagram6::echo(GATEWAY6, GUEST6, 129, b"up?")
    );
}

#[test]
fn no_other_address_leaves_the_tap() {
    let lab = lab!();
    let socket = lab.node.inside(|| udp_socket(NODE6, 5300));
    let spoofed = ["fd10:0:2::3", "fe80::2", "::", "::1", "fd00:244:1::9"].map(|text| text.parse().unwrap());
    for source in spoofed.into_iter().chain([POD6, NODE6, GATEWAY6]) {
        lab.guest
            .send6(&Datagram6::udp((source, 4000), (NODE6, 5300), b"spoofed"));
    }
    lab.guest
        .send6(&Datagram6::udp((GUEST6, 4000), (NODE6, 5300), b"honest"));
    assert_eq!(receive_from(&socket).0, b"honest");
}

#[test]
fn the_guest_reaches_no_socket_in_the_pods_namespace() {
    let lab = lab!();
    let socket = lab.pod.inside(|| udp_socket(Ipv6Addr::UNSPECIFIED, 7777));
    for address in [Ipv6Addr::LOCALHOST, GATEWAY6, POD6] {
        lab.guest
            .send6(&Datagram6::udp((GUEST6, 4000), (address, 7777), b"intruder"));
    }
    let own = lab.pod.inside(|| udp_socket(POD6, 0));
    own.send_to(b"own", (POD6, 7777)).unwrap();
    assert_eq!(receive_from(&socket).0, b"own");
}

#[test]
fn the_grant_says_so_and_the_rules_are_the_documented_ones() {
    let lab = lab!();
    let ipv6 = lab::private(&lab.grant).ipv6.as_ref().unwrap();
    assert_eq!((ipv6.address, ipv6.gateway, ipv6.prefix_length), (GUEST6, GATEWAY6, 64));
    assert_eq!(lab.rules(), include_str!("dual_stack.nft"));
}

#[test]
fn a_tap_has_the_queues_that_were_asked_for() {
    let Some(lab) = Lab::new() else {
        return eprintln!("SKIPPED: network namespaces and taps need root");
    };
    let request = InterfaceRequest {
        name: "net0".into(),
        mac: "02:00:00:00:01:00".into(),
        queues: 4,
        binding: InterfaceBinding::Masquerade,
        pod_interface: None,
    };
    let interfaces = GuestInterface::check_all(&[request]).unwrap();
    let attached = lab::attach_interfaces(&lab.pod, interfaces).unwrap().swap_remove(0);
    assert_eq!((attached.queues.len(), attached.grant.queues), (4, 4));
    let link = lab.pod.run("ip", &["-d", "link", "show", "tap0"]);
    assert!(link.contains("multi_queue numqueues 4"), "{link}");
}
