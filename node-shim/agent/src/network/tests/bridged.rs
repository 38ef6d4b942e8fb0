//! A guest in the place of its pod's interface.
//!
//! ```text
//! namespace `node`             namespace `pod`
//! node0 10.244.1.1/24 ─veth─ eth0 10.244.1.7/24 ── tap ══ Guest (10.244.1.7)
//! node1 10.50.0.1/24 ──veth─ net1 10.50.0.7/24, where a test makes them
//! ```

use std::net::Ipv6Addr;

use node_shim_protocol::agent::{GrantedNetwork, InterfaceBinding, InterfaceGrant, InterfaceRequest};
use node_shim_protocol::config::BridgedNetwork;

use super::frame::{Datagram6, Seen};
use super::lab::{self, Guest, NODE6, Namespace, POD6};
use super::*;
use crate::network::address::Mac;
use crate::network::{Attached, GuestInterface};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

fn request(name: &str, binding: InterfaceBinding, pod_interface: Option<&str>) -> InterfaceRequest {
    InterfaceRequest {
        name: name.into(),
        mac: "02:00:00:00:01:00".into(),
        queues: 1,
        binding,
        pod_interface: pod_interface.map(str::to_owned),
    }
}

fn attach(pod: &Namespace, requests: &[InterfaceRequest]) -> Vec<(InterfaceGrant, Guest)> {
    let interfaces = GuestInterface::check_all(requests).unwrap();
    let attached = lab::attach_interfaces(pod, interfaces).unwrap();
    let guest = |attached: Attached| {
        let tap = attached.queues.into_iter().next().unwrap();
        (attached.grant, Guest(Some(tap.into())))
    };
    attached.into_iter().map(guest).collect()
}

fn bridge(pod: &Namespace) -> (BridgedNetwork, Guest) {
    let (grant, guest) = attach(pod, &[request("default", InterfaceBinding::Bridge, None)]).remove(0);
    (told(&grant), guest)
}

fn told(grant: &InterfaceGrant) -> BridgedNetwork {
    match &grant.network {
        GrantedNetwork::Bridge(network) => network.clone(),
        GrantedNetwork::Masquerade(network) => panic!("masquerade: {network:?}"),
    }
}

fn mac_of(namespace: &Namespace, device: &str) -> [u8; 6] {
    let link = namespace.run("ip", &["-o", "link", "show", device]);
    let mac = link.split("link/ether ").nth(1).unwrap();
    mac[..17].parse::<Mac>().unwrap().bytes()
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// An ARP packet (RFC 826): 1 asks, 2 answers.
fn arp(operation: u8, sender: [u8; 6], sender_address: Ipv4Addr, target: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender);
    packet.extend(sender_address.octets());
    packet.extend(target);
    packet.extend(address.octets());
    packet
}

/// The payload of a frame of this kind.
fn of_kind(frame: &[u8], kind: u16) -> Option<Vec<u8>> {
    (frame.get(12..14)? == kind.to_be_bytes()).then(|| frame[14..].to_vec())
}

#[test]
fn the_guest_is_the_pods_interface() {
    let Some((node, pod)) = lab::pod(false) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let (own, router) = (mac_of(&pod, "eth0"), mac_of(&node, "node0"));
    let (network, guest) = bridge(&pod);
    assert_eq!((network.mac.as_str(), network.mtu), (text(own).as_str(), 1450));
    let ipv4 = network.ipv4.unwrap();
    assert_eq!((ipv4.address, ipv4.prefix_length), (POD, 24));
    assert_eq!(ipv4.routes.len(), 1);
    assert_eq!((ipv4.routes[0].prefix_length, ipv4.routes[0].gateway), (0, Some(NODE)));
    assert_eq!(network.ipv6, None);

    // Nobody answers for the guest but the guest.
    let socket = node.inside(|| udp_socket(NODE, 5300));
    socket.send_to(b"ping", (POD, 9999)).unwrap();
    let question = guest.next(|frame| of_kind(frame, ARP));
    assert_eq!(question[..28], arp(1, router, NODE, [0; 6], POD));
    guest.send_frame(router, own, ARP, &arp(2, own, POD, router, NODE));
    let seen = guest.receive(UDP);
    assert_eq!((seen.destination_mac, seen.source_mac), (own, router));
    assert_eq!((seen.datagram.source, seen.datagram.destination), (NODE, POD));
    let answer = seen.datagram.udp_answer(b"pong").encode();
    guest.send_frame(router, own, IPV4, &answer);
    assert_eq!(receive_from(&socket), (b"pong".to_vec(), SocketAddr::from((POD, 9999))));
}

#[test]
fn what_is_not_the_guests_own_goes_nowhere() {
    let Some((node, pod)) = lab::pod(true) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let (own, router) = (mac_of(&pod, "eth0"), mac_of(&node, "node0"));
    let (_, guest) = bridge(&pod);
    let socket = node.inside(|| udp_socket(NODE, 5300));
    let udp = |source| Datagram::udp((source, 4000), (NODE, 5300), b"spoofed").encode();
    let mut other = own;
    other[5] ^= 1;
    for source in [
        Ipv4Addr::new(10, 244, 1, 8),
        NODE,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::UNSPECIFIED,
    ] {
        guest.send_frame(router, own, IPV4, &udp(source));
    }
    guest.send_frame(router, other, IPV4, &udp(POD));
    // In a VLAN, of which nobody knows what is in it.
    let tagged = [&[0, 5, 8, 0][..], &udp(POD)].concat();
    guest.send_frame(router, own, 0x8100, &tagged);
    let stolen = Ipv4Addr::new(10, 244, 1, 9);
    guest.send_frame([0xff; 6], own, ARP, &arp(1, own, stolen, [0; 6], NODE));
    guest.send_frame([0xff; 6], own, ARP, &arp(1, other, POD, [0; 6], NODE));
    let stolen6: Ipv6Addr = "fd00:244:1::9".parse().unwrap();
    let udp6 = |source| Datagram6::udp((source, 4000), (NODE6, 5300), b"spoofed").encode();
    guest.send_frame(router, own, IPV6, &udp6(stolen6));
    let honest = Datagram::udp((POD, 4000), (NODE, 5300), b"honest").encode();
    guest.send_frame(router, own, IPV4, &honest);
    assert_eq!(receive_from(&socket).0, b"honest");
    let known = node.run("ip", &["neigh", "show"]);
    assert!(
        !known.contains("10.244.1.9") && !known.contains(&text(other)),
        "{known}"
    );
    let rules = pod.run("nft", &["list", "ruleset"]);
    let rules = rules.replace(&text(own), "MAC").replace(&hex(own), "MAC");
    assert_eq!(rules, include_str!("bridged.nft"));
}

/// As nft prints bytes that it has no name for.
fn hex(mac: [u8; 6]) -> String {
    format!("0x{}", mac.map(|byte| format!("{byte:02x}")).concat())
}

#[test]
fn ipv6_goes_both_ways_and_the_router_is_known() {
    let Some((node, pod)) = lab::pod(true) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let (own, router) = (mac_of(&pod, "eth0"), mac_of(&node, "node0"));
    let (network, guest) = bridge(&pod);
    let ipv6 = network.ipv6.unwrap();
    assert_eq!((ipv6.address, ipv6.prefix_length), (POD6, 64));
    assert_eq!(ipv6.gateway_mac, Some(text(router)));

    let socket = node.inside(|| {
        let socket = UdpSocket::bind((NODE6, 5300)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    node.run(
        "ip",
        &[
            "neigh",
            "replace",
            "fd00:244:1::7",
            "lladdr",
            &text(own),
            "dev",
            "node0",
        ],
    );
    socket.send_to(b"ping", (POD6, 9999)).unwrap();
    let seen = guest.next(|frame| Datagram6::parse(frame).filter(|seen| seen.protocol == UDP));
    assert_eq!((seen.source, seen.destination, seen.port(2)), (NODE6, POD6, 9999));
    let answer = Datagram6::udp((POD6, 9999), (NODE6, 5300), b"pong").encode();
    guest.send_frame(router, own, IPV6, &answer);
    assert_eq!(
        receive_from(&socket),
        (b"pong".to_vec(), SocketAddr::from((POD6, 9999)))
    );
    // The guest asks the network itself who has an address.
    let mut question = vec![135, 0, 0, 0, 0, 0, 0, 0];
    question.extend(NODE6.octets());
    question.extend([1, 1]);
    question.extend(own);
    let group: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
    let asked = Datagram6::icmp(POD6, group, question);
    guest.send_frame([0x33, 0x33, 0xff, 0, 0, 1], own, IPV6, &asked.encode());
    let answer =
        guest.next(|frame| Datagram6::parse(frame).filter(|seen| seen.protocol == 58 && seen.payload[0] == 136));
    assert_eq!((answer.source, answer.destination), (NODE6, POD6));
}

/// Each row of the table in [`crate::network::bridged`].
#[test]
fn whatever_an_earlier_hello_left_is_taken_over() {
    let Some((node, pod)) = lab::pod(true) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let own = mac_of(&pod, "eth0");
    node.run(
        "ip",
        &["neigh", "replace", "10.244.1.7", "lladdr", &text(own), "dev", "node0"],
    );
    let socket = node.inside(|| udp_socket(NODE, 0));
    let reached = |guest: &Guest, text: &'static [u8]| {
        socket.send_to(text, (POD, 9999)).unwrap();
        let ours = |frame: &[u8]| Seen::parse(frame).filter(|seen| seen.datagram.payload.ends_with(text));
        guest.next(ours);
    };
    // A tap, without rules.
    pod.ip("tuntap add dev tap0 mode tap");
    let (first, guest) = bridge(&pod);
    reached(&guest, b"one");
    // Rules whose tap is gone.
    drop(guest);
    let (second, guest) = bridge(&pod);
    assert_eq!(second, first);
    reached(&guest, b"two");
    // Rules and a tap.
    let (third, newer) = bridge(&pod);
    assert_eq!(third, first);
    reached(&newer, b"three");
    let rules = pod.run("nft", &["list", "ruleset"]);
    assert_eq!(rules.matches("chain ").count(), 2, "{rules}");
    let kept = pod.run("ip", &["-br", "addr", "show", "eth0"]);
    assert!(
        kept.contains("10.244.1.7/24") && kept.contains("fd00:244:1::7/64"),
        "{kept}"
    );
    assert_eq!(mac_of(&pod, "eth0"), own);
}

/// A second network of the pod, as Multus makes it.
fn second_network(node: &Namespace, pod: &Namespace, addresses: bool) {
    node.ip(&format!("link add node1 type veth peer name net1 netns {}", pod.path()));
    node.ip("addr add 10.50.0.1/24 dev node1");
    node.ip("link set node1 up");
    if addresses {
        pod.ip("addr add 10.50.0.7/24 dev net1");
    }
    pod.ip("link set net1 up");
}

#[test]
fn masquerade_on_the_pods_network_and_a_bridge_on_another() {
    let Some((node, pod)) = lab::pod(false) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    second_network(&node, &pod, true);
    let own = mac_of(&pod, "net1");
    let requests = [
        request("default", InterfaceBinding::Masquerade, None),
        request("second", InterfaceBinding::Bridge, Some("net1")),
    ];
    let mut attached = attach(&pod, &requests);
    let (second, bridged) = attached.pop().unwrap();
    let (first, masqueraded) = attached.pop().unwrap();
    assert_eq!((first.name.as_str(), lab::private(&first).address), ("default", GUEST));
    let network = told(&second);
    assert_eq!(network.ipv4.unwrap().address, Ipv4Addr::new(10, 50, 0, 7));

    let socket = node.inside(|| udp_socket(NODE, 5300));
    let other = node.inside(|| udp_socket(Ipv4Addr::new(10, 50, 0, 1), 5300));
    // By the first interface the second's network is not reached, with any address.
    masqueraded.send(&Datagram::udp(
        (GUEST, 4000),
        (Ipv4Addr::new(10, 50, 0, 1), 5300),
        b"across",
    ));
    masqueraded.send(&Datagram::udp((GUEST, 4000), (NODE, 5300), b"out"));
    assert_eq!(receive_from(&socket).0, b"out");
    let router = mac_of(&node, "node1");
    let honest = Datagram::udp(
        (Ipv4Addr::new(10, 50, 0, 7), 4000),
        (Ipv4Addr::new(10, 50, 0, 1), 5300),
        b"second",
    );
    bridged.send_frame(router, own, IPV4, &honest.encode());
    assert_eq!(receive_from(&other).0, b"second");
}

#[test]
fn masquerade_works_on_another_network_too() {
    let Some((node, pod)) = lab::pod(false) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    second_network(&node, &pod, true);
    let (grant, guest) = attach(&pod, &[request("second", InterfaceBinding::Masquerade, Some("net1"))]).remove(0);
    assert_eq!(lab::private(&grant).address, GUEST);
    let other = node.inside(|| udp_socket(Ipv4Addr::new(10, 50, 0, 1), 5300));
    guest.send(&Datagram::udp(
        (GUEST, 4000),
        (Ipv4Addr::new(10, 50, 0, 1), 5300),
        b"out",
    ));
    let (payload, from) = receive_from(&other);
    assert_eq!(from, SocketAddr::from((Ipv4Addr::new(10, 50, 0, 7), 4000)));
    assert_eq!(payload, b"out");
    other.send_to(b"in", (Ipv4Addr::new(10, 50, 0, 7), 80)).unwrap();
    assert_eq!(guest.receive(UDP).datagram.udp_payload(), b"in");
    let rules = pod.run("nft", &["list", "ruleset"]);
    assert!(
        !rules.contains("127.0.0.1"),
        "port-forward is for the pod's own network: {rules}"
    );
}

#[test]
fn a_network_without_addresses_carries_whatever_the_guest_says() {
    let Some((node, pod)) = lab::pod(false) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    second_network(&node, &pod, false);
    let own = mac_of(&pod, "net1");
    let (grant, guest) = attach(&pod, &[request("second", InterfaceBinding::Bridge, Some("net1"))]).remove(0);
    let network = told(&grant);
    assert_eq!((network.ipv4, network.ipv6, network.mtu), (None, None, 1500));
    let other = node.inside(|| udp_socket(Ipv4Addr::new(10, 50, 0, 1), 5300));
    let mut spoofed = own;
    spoofed[5] ^= 1;
    let chosen = Ipv4Addr::new(10, 50, 0, 99);
    let said = |text: &[u8]| Datagram::udp((chosen, 4000), (Ipv4Addr::new(10, 50, 0, 1), 5300), text).encode();
    guest.send_frame([0xff; 6], spoofed, IPV4, &said(b"spoofed"));
    guest.send_frame(mac_of(&node, "node1"), own, IPV4, &said(b"chosen"));
    assert_eq!(
        receive_from(&other),
        (b"chosen".to_vec(), SocketAddr::from((chosen, 4000)))
    );
}

#[test]
fn a_network_that_is_not_there_is_named() {
    let Some((_node, pod)) = lab::pod(false) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let refused = |requests: &[InterfaceRequest]| {
        let interfaces = GuestInterface::check_all(requests).unwrap();
        lab::attach_interfaces(&pod, interfaces).unwrap_err()
    };
    let error = refused(&[request("second", InterfaceBinding::Bridge, Some("net1"))]);
    assert!(
        error
            .to_string()
            .starts_with("the pod has no interface net1, which its network should have: does Multus run"),
        "{error}"
    );
    assert!(!error.is_retryable());
    let error = refused(&[request("second", InterfaceBinding::Bridge, Some("lo"))]);
    assert_eq!(
        error.to_string(),
        "the pod's interface lo is no Ethernet, which a bridge needs: use masquerade"
    );
}

#[test]
fn a_macvlan_takes_in_what_is_for_its_guest() {
    let (Some((node, pod)), Some(other)) = (lab::pod(false), Namespace::new()) else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let there = Ipv4Addr::new(10, 50, 0, 1);
    node.ip(&format!("link add p0 type veth peer name q0 netns {}", other.path()));
    node.ip("link set p0 up");
    other.ip("addr add 10.50.0.1/24 dev q0");
    other.ip("link set q0 up");
    node.ip("link add link p0 name net1 type macvlan mode bridge");
    node.ip(&format!("link set net1 netns {}", pod.path()));
    pod.ip("addr add 10.50.0.7/24 dev net1");
    pod.ip("link set net1 up");
    let (own, peer) = (mac_of(&pod, "net1"), mac_of(&other, "q0"));
    let (_, guest) = attach(&pod, &[request("second", InterfaceBinding::Bridge, Some("net1"))]).remove(0);
    let own_address = Ipv4Addr::new(10, 50, 0, 7);
    let socket = other.inside(move || udp_socket(there, 5300));
    // A broadcast, a group that only the guest knows of, and what is for it alone.
    socket.send_to(b"ping", (own_address, 9999)).unwrap();
    let question = guest.next(|frame| of_kind(frame, ARP));
    assert_eq!(question[14..18], there.octets());
    guest.send_frame(peer, own, ARP, &arp(2, own, own_address, peer, there));
    assert_eq!(guest.receive(UDP).datagram.udp_payload(), b"ping");
    other.ip("route add 239.1.2.3 dev q0");
    socket
        .send_to(b"to the group", (Ipv4Addr::new(239, 1, 2, 3), 9999))
        .unwrap();
    let of_group = |frame: &[u8]| Seen::parse(frame).filter(|seen| seen.datagram.payload.ends_with(b"to the group"));
    guest.next(of_group);
    let answer = Datagram::udp((own_address, 9999), (there, 5300), b"pong").encode();
    guest.send_frame(peer, own, IPV4, &answer);
    assert_eq!(receive_from(&socket).0, b"pong");
}
