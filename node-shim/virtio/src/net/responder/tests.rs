use std::net::Ipv4Addr;

use super::*;
use crate::net::address::MacAddress;
use crate::net::frame::{ARP_REPLY, ARP_REQUEST, TYPE_ARP, TYPE_IPV4};
use crate::net::guard::Version;

const GUEST: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const GATEWAY: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);

fn responder() -> Responder {
    Responder::new(GuestIdentity {
        mac: GUEST,
        network: Network::Private,
        ipv4: Some(GuestIpv4 {
            address: ADDRESS,
            prefix_length: 24,
            gateway: Some(ROUTER),
            routes: Vec::new(),
            server: ROUTER,
        }),
        ipv6: None,
        gateway_mac: GATEWAY,
        mtu: 1450,
        name_servers: vec![Ipv4Addr::new(10, 96, 0, 10).into(), "fd00:96::a".parse().unwrap()],
        search: vec![
            "default.svc.cluster.local".into(),
            "svc.cluster.local".into(),
            "cluster.local".into(),
        ],
        host_name: "web".into(),
    })
}

/// What a DHCP client says. `options` come after the magic cookie.
fn query(flags: u16, client: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    message[10..12].copy_from_slice(&flags.to_be_bytes());
    message[12..16].copy_from_slice(&client.octets());
    message[28..34].copy_from_slice(&GUEST.0);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend_from_slice(options);
    message
}

fn datagram(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let packet = Udp {
        source,
        destination,
        source_port: 68,
        destination_port: 67,
        payload,
    }
    .write()
    .unwrap();
    Ethernet {
        destination: MacAddress::BROADCAST,
        source: GUEST,
        kind: TYPE_IPV4,
        payload: &packet,
    }
    .write()
}

fn ask(flags: u16, client: Ipv4Addr, options: &[u8]) -> Option<Vec<u8>> {
    let frame = datagram(client, Ipv4Addr::BROADCAST, &query(flags, client, options));
    let responder = responder();
    assert_eq!(
        responder.judge(&frame[..frame.len().min(HEAD_BYTES)]),
        Verdict::Inspect(Protocol::Dhcp4)
    );
    responder.answer(Protocol::Dhcp4, &frame)
}

struct Reply {
    destination: MacAddress,
    to: Ipv4Addr,
    message: Vec<u8>,
}

fn reply(frame: Option<Vec<u8>>) -> Reply {
    let frame = frame.expect("a reply");
    let ethernet = Ethernet::parse(&frame).unwrap();
    assert_eq!((ethernet.source, ethernet.kind), (GATEWAY, TYPE_IPV4));
    let udp = Udp::parse(ethernet.payload).unwrap();
    assert_eq!((udp.source, udp.source_port, udp.destination_port), (ROUTER, 67, 68));
    Reply {
        destination: ethernet.destination,
        to: udp.destination,
        message: udp.payload.to_vec(),
    }
}

/// The options that every offer and acknowledgement of an address has, after type and server.
const NETWORK: &[u8] = b"\x01\x04\xff\xff\xff\x00\x1c\x04\x0a\x00\x02\xff\x03\x04\x0a\x00\x02\x01\x1a\x02\x05\xaa\
    \x06\x04\x0a\x60\x00\x0a\x0c\x03web\
    \x0f\x19default.svc.cluster.local\
    \x77\x3d\x07default\x03svc\x07cluster\x05local\x00\x03svc\x07cluster\x05local\x00\x07cluster\x05local\x00";
const LEASE: &[u8] = b"\x33\x04\xff\xff\xff\xff";
const SERVER: &[u8] = b"\x36\x04\x0a\x00\x02\x01";

#[test]
fn discover_is_offered_the_address() {
    let offer = reply(ask(
        0,
        Ipv4Addr::UNSPECIFIED,
        b"\x35\x01\x01\x37\x03\x01\x03\x06\x39\x02\x05\xc0\xff",
    ));
    assert_eq!((offer.destination, offer.to), (GUEST, ADDRESS));
    let mut expected = query(0, Ipv4Addr::UNSPECIFIED, &[]);
    expected[0] = 2;
    expected[16..20].copy_from_slice(&ADDRESS.octets());
    expected.extend_from_slice(&[b"\x35\x01\x02", SERVER, LEASE, NETWORK, b"\xff"].concat());
    expected.resize(expected.len().max(300), 0);
    assert_eq!(offer.message, expected);
}

#[test]
fn request_is_acknowledged_and_the_client_identifier_comes_back() {
    let options = b"\x35\x01\x03\x3d\x02\xaa\xbb\x32\x04\x0a\x00\x02\x02\x36\x04\x0a\x00\x02\x01\xff";
    let ack = reply(ask(0x8000, Ipv4Addr::UNSPECIFIED, options));
    assert_eq!((ack.destination, ack.to), (MacAddress::BROADCAST, Ipv4Addr::BROADCAST));
    assert_eq!(
        ack.message[240..],
        [b"\x35\x01\x05", SERVER, b"\x3d\x02\xaa\xbb", LEASE, NETWORK, b"\xff"].concat()
    );
    assert_eq!(ack.message[16..20], ADDRESS.octets());
}

#[test]
fn renewal_is_answered_to_the_client_alone() {
    let ack = reply(ask(0, ADDRESS, b"\x35\x01\x03\xff"));
    assert_eq!((ack.destination, ack.to), (GUEST, ADDRESS));
    assert_eq!(ack.message[242], 5);
}

#[test]
fn another_address_is_refused_aloud() {
    let nak = reply(ask(
        0,
        Ipv4Addr::UNSPECIFIED,
        b"\x35\x01\x03\x32\x04\x0a\x00\x02\x03\xff",
    ));
    assert_eq!((nak.destination, nak.to), (MacAddress::BROADCAST, Ipv4Addr::BROADCAST));
    assert_eq!(nak.message[240..250], [b"\x35\x01\x06", SERVER, b"\xff"].concat());
    assert_eq!(nak.message[16..20], [0; 4]);
    assert_eq!(nak.message.len(), 300);
}

#[test]
fn inform_gets_the_network_without_an_address() {
    let ack = reply(ask(0, ADDRESS, b"\x35\x01\x08\xff"));
    assert_eq!(ack.message[16..20], [0; 4]);
    assert_eq!(ack.message[240..], [b"\x35\x01\x05", SERVER, NETWORK, b"\xff"].concat());
}

#[test]
fn search_domains_are_left_out_where_the_client_has_no_room() {
    let mut guest = responder().guest;
    guest.search = (0..40)
        .map(|number| format!("a-name-of-some-length-{number}.example"))
        .collect();
    guest.search.push("not a..name".into());
    let responder = Responder::new(guest);
    for (max, shortest) in [(576_u16, 400), (1000, 800), (u16::MAX, 1300)] {
        let [high, low] = max.to_be_bytes();
        let options = [&b"\x35\x01\x01\x39\x02"[..], &[high, low, 255]].concat();
        let frame = datagram(
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            &query(0, Ipv4Addr::UNSPECIFIED, &options),
        );
        let length = responder.answer(Protocol::Dhcp4, &frame).unwrap().len() - 14;
        assert!(
            (shortest..=usize::from(max.min(1450))).contains(&length),
            "{length} bytes for at most {max}"
        );
    }
}

#[test]
fn what_is_not_for_us_or_broken_is_not_answered() {
    for options in [
        &b"\x35\x01\x03\x32\x04\x0a\x00\x02\x02\x36\x04\x0a\x00\x02\x09\xff"[..],
        b"\x35\x01\x04\xff",
        b"\x35\x01\x07\xff",
        b"\x35\x01\x02\xff",
        b"\x35\x01\x09\xff",
        b"\xff",
        b"",
        b"\x35\x01\x01",
        b"\x35\x01",
        b"\x35",
        b"\x35\x01\x01\x0c\xff\x00\xff",
        b"\x35\x02\x01\x01\xff",
    ] {
        assert_eq!(ask(0, Ipv4Addr::UNSPECIFIED, options), None, "{options:x?}");
    }
    let good = query(0, Ipv4Addr::UNSPECIFIED, b"\x35\x01\x01\xff");
    for (at, value) in [(0, 2), (1, 6), (2, 8), (24, 10), (28, 6), (236, 0)] {
        let mut broken = good.clone();
        broken[at] = value;
        let frame = datagram(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &broken);
        assert_eq!(responder().answer(Protocol::Dhcp4, &frame), None, "byte {at}");
    }
    let frame = datagram(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &good);
    for length in 0..frame.len() {
        assert_eq!(
            responder().answer(Protocol::Dhcp4, &frame[..length]),
            None,
            "{length} bytes"
        );
    }
}

fn arp(operation: u16, sender: MacAddress, sender_address: Ipv4Addr, target_address: Ipv4Addr) -> Vec<u8> {
    let packet = Arp {
        operation,
        sender,
        sender_address,
        target: MacAddress([0; 6]),
        target_address,
    }
    .write();
    Ethernet {
        destination: MacAddress::BROADCAST,
        source: GUEST,
        kind: TYPE_ARP,
        payload: &packet,
    }
    .write()
}

#[test]
fn the_gateway_is_resolved() {
    let request = arp(ARP_REQUEST, GUEST, ADDRESS, ROUTER);
    assert_eq!(responder().judge(&request), Verdict::Inspect(Protocol::Arp));
    let reply = responder().answer(Protocol::Arp, &request).unwrap();
    let expected = Arp {
        operation: ARP_REPLY,
        sender: GATEWAY,
        sender_address: ROUTER,
        target: GUEST,
        target_address: ADDRESS,
    };
    let ethernet = Ethernet::parse(&reply).unwrap();
    assert_eq!((ethernet.destination, ethernet.source), (GUEST, GATEWAY));
    assert_eq!(Arp::parse(ethernet.payload), Some(expected));
}

const FORWARD_UDP: Verdict = Verdict::Forward(Layout::Transport {
    version: Version::V4,
    protocol: 17,
    offset: 34,
});

#[test]
fn only_the_guests_own_ipv4_leaves() {
    let packet = Udp {
        source: ADDRESS,
        destination: Ipv4Addr::new(192, 0, 2, 1),
        source_port: 9,
        destination_port: 9,
        payload: b"data",
    };
    let honest = |kind| {
        let payload = packet.write().unwrap();
        Ethernet {
            destination: GATEWAY,
            source: GUEST,
            kind,
            payload: &payload,
        }
        .write()
    };
    assert_eq!(responder().judge(&honest(TYPE_IPV4)), FORWARD_UDP);
    let dropped = Verdict::Drop;
    // Byte of the packet, value, and what comes of it.
    for (what, changes, expected) in [
        ("another source", &[(15, 3)][..], dropped(DropReason::SpoofedIp)),
        ("loopback", &[(12, 127)], dropped(DropReason::SpoofedIp)),
        ("no source", &[(12, 0), (13, 0), (14, 0), (15, 0)], Verdict::Absorb),
        ("first fragment", &[(6, 0x20)], Verdict::Forward(Layout::Opaque)),
        ("later fragment", &[(6, 0), (7, 9)], Verdict::Forward(Layout::Opaque)),
        (
            "fragment of another",
            &[(7, 9), (15, 3)],
            dropped(DropReason::SpoofedIp),
        ),
        ("another version", &[(0, 0x65)], dropped(DropReason::Malformed)),
        ("short header", &[(0, 0x44)], dropped(DropReason::Malformed)),
        ("header beyond the end", &[(0, 0x4f)], dropped(DropReason::Malformed)),
    ] {
        let mut frame = honest(TYPE_IPV4);
        for (at, value) in changes {
            frame[14 + at] = *value;
        }
        assert_eq!(responder().judge(&frame), expected, "{what}");
    }
    // VLAN tags, one inside another, MPLS, PPPoE, what has a length, LLDP.
    for kind in [0x8100, 0x88a8, 0x9100, 0x8847, 0x8864, 46, 0x88cc] {
        assert_eq!(
            responder().judge(&honest(kind)),
            dropped(DropReason::Foreign),
            "{kind:#x}"
        );
    }
}

#[test]
fn verdicts() {
    let other = Ipv4Addr::new(10, 0, 2, 9);
    let spoofed = Verdict::Drop(DropReason::SpoofedArp);
    let mut from_elsewhere = arp(ARP_REQUEST, GUEST, ADDRESS, ROUTER);
    from_elsewhere[11] ^= 1;
    let mut ipv6 = vec![0; 60];
    ipv6[6..12].copy_from_slice(&GUEST.0);
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    let not_dhcp = {
        let packet = Udp {
            source: ADDRESS,
            destination: other,
            source_port: 9,
            destination_port: 67,
            payload: b"",
        };
        Ethernet {
            destination: GATEWAY,
            source: GUEST,
            kind: TYPE_IPV4,
            payload: &packet.write().unwrap(),
        }
        .write()
    };
    for (what, frame, expected) in [
        (
            "ARP for another",
            arp(ARP_REQUEST, GUEST, ADDRESS, other),
            Verdict::Forward(Layout::Opaque),
        ),
        (
            "ARP probe",
            arp(ARP_REQUEST, GUEST, Ipv4Addr::UNSPECIFIED, ADDRESS),
            Verdict::Forward(Layout::Opaque),
        ),
        (
            "ARP reply",
            arp(ARP_REPLY, GUEST, ADDRESS, ROUTER),
            Verdict::Forward(Layout::Opaque),
        ),
        (
            "ARP reply as the gateway",
            arp(ARP_REPLY, GUEST, ROUTER, other),
            spoofed,
        ),
        ("ARP as another", arp(ARP_REQUEST, GUEST, other, ROUTER), spoofed),
        (
            "ARP with another MAC",
            arp(ARP_REQUEST, GATEWAY, ADDRESS, ROUTER),
            spoofed,
        ),
        (
            "cut ARP",
            arp(ARP_REQUEST, GUEST, ADDRESS, ROUTER)[..41].to_vec(),
            Verdict::Drop(DropReason::Malformed),
        ),
        ("another MAC", from_elsewhere, Verdict::Drop(DropReason::SpoofedMac)),
        ("nothing", Vec::new(), Verdict::Drop(DropReason::Malformed)),
        ("13 bytes", vec![0; 13], Verdict::Drop(DropReason::Malformed)),
        ("IPv6 without an address of it", ipv6, Verdict::Absorb),
        ("UDP to port 67 of another", not_dhcp, FORWARD_UDP),
    ] {
        assert_eq!(
            responder().judge(&frame[..frame.len().min(HEAD_BYTES)]),
            expected,
            "{what}"
        );
    }
}

mod bridged;
mod ipv6;
