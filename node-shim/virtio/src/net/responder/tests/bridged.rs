//! A guest in the place of its pod's interface: what it is told, what it may send, and what goes on to the network.

use std::net::Ipv6Addr;

use node_shim_protocol::config::{BridgedIpv4, BridgedIpv6, BridgedNetwork, Route};

use super::*;
use crate::net::guard::DropReason;
use crate::net::ipv6::{self as wire, TYPE_IPV6};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
const OWN6: &str = "fd00:244:1::7";
const LINK_LOCAL: &str = "fe80::200:ff:fe00:2";
/// The router that the responder advertises, and whose it is.
const ADVERTISED: &str = "fe80::54ff:fe4d:ff";
const REAL_ROUTER: &str = "0a:58:0a:f4:01:01";

fn at(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn route(destination: [u8; 4], prefix_length: u8, gateway: Option<[u8; 4]>) -> Route {
    Route {
        destination: destination.into(),
        prefix_length,
        gateway: gateway.map(Into::into),
    }
}

fn network(ipv4: Option<(u8, Vec<Route>)>, ipv6: Option<BridgedIpv6>) -> BridgedNetwork {
    BridgedNetwork {
        mac: GUEST.to_string(),
        mtu: 1450,
        ipv4: ipv4.map(|(prefix_length, routes)| BridgedIpv4 {
            address: OWN,
            prefix_length,
            routes,
        }),
        ipv6,
    }
}

fn ipv6(gateway_mac: Option<&str>) -> BridgedIpv6 {
    BridgedIpv6 {
        address: at(OWN6),
        prefix_length: 64,
        gateway_mac: gateway_mac.map(str::to_owned),
    }
}

fn of(network: &BridgedNetwork) -> Responder {
    Responder::new(GuestIdentity::bridged(network, "web".into()).unwrap())
}

/// With IPv4 and IPv6 and a default route of both.
fn dual() -> Responder {
    let default = route([0; 4], 0, Some([10, 244, 1, 1]));
    of(&network(Some((24, vec![default])), Some(ipv6(Some(REAL_ROUTER)))))
}

/// An option of the offer to a guest on this network.
fn offered(network: &BridgedNetwork, option: u8) -> Option<Vec<u8>> {
    let discover = query(0, Ipv4Addr::UNSPECIFIED, b"\x35\x01\x01\xff");
    let frame = datagram(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &discover);
    let reply = of(network).answer(Protocol::Dhcp4, &frame)?;
    let ethernet = Ethernet::parse(&reply).unwrap();
    let message = Udp::parse(ethernet.payload).unwrap().payload;
    assert_eq!(message[16..20], OWN.octets());
    let mut rest = &message[240..];
    while let [code, length, after @ ..] = rest {
        let (value, after) = after.split_at(usize::from(*length));
        if *code == option {
            return Some(value.to_vec());
        }
        rest = if *code == 255 { &[] } else { after };
    }
    None
}

#[test]
fn the_offer_has_the_networks_own_routes() {
    let plain = network(Some((24, vec![route([0; 4], 0, Some([10, 244, 1, 1]))])), None);
    assert_eq!(offered(&plain, 3), Some(vec![10, 244, 1, 1]));
    assert_eq!(offered(&plain, 121), None, "every client understands a gateway");
    assert_eq!(offered(&plain, 54), Some(vec![169, 254, 84, 77]));
    assert_eq!(offered(&plain, 28), Some(vec![10, 244, 1, 255]));

    // As Calico has it: nothing on the link but the gateway.
    let routes = vec![
        route([169, 254, 1, 1], 32, None),
        route([0; 4], 0, Some([169, 254, 1, 1])),
    ];
    let calico = network(Some((32, routes)), None);
    assert_eq!(offered(&calico, 1), Some(vec![255; 4]));
    assert_eq!(offered(&calico, 28), None);
    let expected = [&[32, 169, 254, 1, 1, 0, 0, 0, 0][..], &[0, 169, 254, 1, 1]].concat();
    assert_eq!(offered(&calico, 121), Some(expected));

    // A network with a route besides, and no default.
    let more = network(Some((24, vec![route([10, 96, 0, 0], 12, Some([10, 244, 1, 1]))])), None);
    assert_eq!(offered(&more, 3), None);
    assert_eq!(offered(&more, 121), Some(vec![12, 10, 96, 10, 244, 1, 1]));
    assert_eq!(offered(&network(None, Some(ipv6(None))), 1), None);
}

fn verdict(responder: &Responder, frame: &[u8]) -> Verdict {
    responder.judge(&frame[..frame.len().min(HEAD_BYTES)])
}

fn frame6(source: &str, destination: &str, protocol: u8, payload: &[u8], checksum_at: usize) -> Vec<u8> {
    let packet = wire::write_packet(at(source), at(destination), protocol, payload.to_vec(), checksum_at).unwrap();
    Ethernet {
        destination: MacAddress([0x33, 0x33, 0, 0, 0, 1]),
        source: GUEST,
        kind: TYPE_IPV6,
        payload: &packet,
    }
    .write()
}

fn about(kind: u8, target: &str) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(at(target).octets());
    message
}

const OPAQUE: Verdict = Verdict::Forward(Layout::Opaque);

#[test]
fn neighbours_are_found_by_the_guest_itself() {
    let spoofed = Verdict::Drop(DropReason::SpoofedNeighbour);
    let icmp = |source, destination, message: &[u8]| frame6(source, destination, 58, message, 2);
    let other = "fd00:244:1::9";
    for (what, frame, expected) in [
        (
            "ARP for the gateway",
            arp(ARP_REQUEST, GUEST, OWN, Ipv4Addr::new(10, 244, 1, 1)),
            OPAQUE,
        ),
        (
            "ARP as another",
            arp(ARP_REPLY, GUEST, Ipv4Addr::new(10, 244, 1, 1), OWN),
            Verdict::Drop(DropReason::SpoofedArp),
        ),
        (
            "who has another",
            icmp(OWN6, "ff02::1:ff00:9", &about(135, other)),
            OPAQUE,
        ),
        (
            "is my address taken",
            icmp("::", "ff02::1:ff00:7", &about(135, OWN6)),
            OPAQUE,
        ),
        (
            "who is the router",
            icmp(LINK_LOCAL, "ff02::1:ff4d:ff", &about(135, ADVERTISED)),
            Verdict::Inspect(Protocol::Neighbour),
        ),
        ("I have mine", icmp(OWN6, other, &about(136, OWN6)), OPAQUE),
        (
            "I have my own link's",
            icmp(LINK_LOCAL, other, &about(136, LINK_LOCAL)),
            OPAQUE,
        ),
        ("I have another's", icmp(OWN6, other, &about(136, other)), spoofed),
        ("I am a router", icmp(LINK_LOCAL, "ff02::1", &about(134, "::")), spoofed),
        (
            "where is a router",
            icmp(LINK_LOCAL, "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]),
            Verdict::Inspect(Protocol::Router),
        ),
        (
            "what I listen to",
            icmp("::", "ff02::16", &[143, 0, 0, 0, 0, 0, 0, 0]),
            OPAQUE,
        ),
    ] {
        assert_eq!(verdict(&dual(), &frame), expected, "{what}");
    }
}

#[test]
fn only_the_given_addresses_leave() {
    let udp = |source: &str| frame6(source, "fd00:244:1::9", 17, &[0, 9, 0, 9, 0, 8, 0, 0], 6);
    let forwarded = |frame: &[u8]| matches!(verdict(&dual(), frame), Verdict::Forward(_));
    assert!(forwarded(&udp(OWN6)) && forwarded(&udp(LINK_LOCAL)));
    assert_eq!(
        verdict(&dual(), &udp("fd00:244:1::8")),
        Verdict::Drop(DropReason::SpoofedIp)
    );
    // Nothing was given of the other kind.
    let only4 = of(&network(Some((24, Vec::new())), None));
    assert_eq!(verdict(&only4, &udp(OWN6)), Verdict::Absorb);
    let only6 = of(&network(None, Some(ipv6(None))));
    assert_eq!(verdict(&only6, &arp(ARP_REQUEST, GUEST, OWN, OWN)), Verdict::Absorb);
    let discover = datagram(
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        &query(0, Ipv4Addr::UNSPECIFIED, b"\x35\x01\x01\xff"),
    );
    assert_eq!(verdict(&only6, &discover), Verdict::Absorb);
}

#[test]
fn the_advertised_router_is_the_networks_own() {
    let solicitation = frame6(LINK_LOCAL, "ff02::2", 58, &[133, 0, 0, 0, 0, 0, 0, 0], 2);
    let advertised = |responder: &Responder| {
        let frame = responder.answer(Protocol::Router, &solicitation).unwrap();
        let packet = wire::Packet::parse(Ethernet::parse(&frame).unwrap().payload).unwrap();
        assert_eq!(packet.source, at(ADVERTISED));
        frame[54..].to_vec()
    };
    let message = advertised(&dual());
    assert_eq!(message[6..8], [0xff, 0xff], "a default route");
    assert_eq!(message[16..24], [1, 1, 0x0a, 0x58, 0x0a, 0xf4, 1, 1]);
    assert_eq!(message[5] & 0xc0, 0xc0, "the address comes by DHCPv6");
    let message = advertised(&of(&network(None, Some(ipv6(None)))));
    assert_eq!(message[6..8], [0, 0], "no default route");

    let question = frame6(LINK_LOCAL, "ff02::1:ff4d:ff", 58, &about(135, ADVERTISED), 2);
    let answer = dual().answer(Protocol::Neighbour, &question).unwrap();
    assert_eq!(answer[54 + 24..], [2, 1, 0x0a, 0x58, 0x0a, 0xf4, 1, 1]);
}

#[test]
fn an_open_network_gets_everything_of_the_guests_own_mac() {
    let open = of(&network(None, None));
    let forwarded = |frame: &[u8]| matches!(verdict(&open, frame), Verdict::Forward(_));
    let discover = datagram(
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        &query(0, Ipv4Addr::UNSPECIFIED, b"\x35\x01\x01\xff"),
    );
    assert!(forwarded(&discover), "a DHCP server out there answers");
    assert!(forwarded(&arp(ARP_REPLY, GUEST, OWN, OWN)));
    assert!(forwarded(&frame6(
        LINK_LOCAL,
        "ff02::2",
        58,
        &[133, 0, 0, 0, 0, 0, 0, 0],
        2
    )));
    let frame = |destination, source, kind| {
        Ethernet {
            destination,
            source,
            kind,
            payload: &[0; 46],
        }
        .write()
    };
    assert!(forwarded(&frame(MacAddress::BROADCAST, GUEST, 0x8100)), "a VLAN");
    assert_eq!(
        verdict(&open, &frame(MacAddress::BROADCAST, GATEWAY, 0x0800)),
        Verdict::Drop(DropReason::SpoofedMac)
    );
    let bridges = MacAddress([0x01, 0x80, 0xc2, 0, 0, 0]);
    assert_eq!(
        verdict(&open, &frame(bridges, GUEST, 0x0026)),
        Verdict::Drop(DropReason::Foreign)
    );
    assert_eq!(open.advertisement(), None);
    assert_eq!(open.announcements(), Vec::<Vec<u8>>::new());
    // What the host works on is found without being judged.
    let packet = Udp {
        source: OWN,
        destination: ADDRESS,
        source_port: 9,
        destination_port: 9,
        payload: b"data",
    };
    let udp = Ethernet {
        destination: GATEWAY,
        source: GUEST,
        kind: TYPE_IPV4,
        payload: &packet.write().unwrap(),
    };
    assert_eq!(verdict(&open, &udp.write()), FORWARD_UDP);
}
