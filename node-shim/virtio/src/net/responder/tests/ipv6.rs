//! Router advertisements, DHCPv6, neighbour discovery, and what IPv6 a guest may send.

use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::net::frame::internet_checksum;
use crate::net::guard::Version;
use crate::net::ipv6::{self as wire, TYPE_IPV6};

const OWN: &str = "fd10:0:2::2";
const LINK_LOCAL: &str = "fe80::200:ff:fe00:2";
const ROUTER6: &str = "fe80::1";
const GATEWAY6: &str = "fd10:0:2::1";

fn at(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn responder6() -> Responder {
    let mut guest = responder().guest;
    guest.ipv6 = Some(GuestIpv6 {
        address: at(OWN),
        prefix_length: 64,
        gateway: Some(at(GATEWAY6)),
        router: at(ROUTER6),
        router_mac: Some(GATEWAY),
    });
    Responder::new(guest)
}

/// A frame of the guest with this payload and one checksum at `checksum_at`.
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

fn icmp(source: &str, destination: &str, message: &[u8]) -> Vec<u8> {
    frame6(source, destination, 58, message, 2)
}

fn message_about(kind: u8, target: &str, option: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(at(target).octets());
    message.extend(option);
    message
}

const SOURCE_IS_GUEST: &[u8] = &[1, 1, 2, 0, 0, 0, 0, 2];
const TARGET_IS_GUEST: &[u8] = &[2, 1, 2, 0, 0, 0, 0, 2];
const SOURCE_IS_GATEWAY: &[u8] = &[1, 1, 2, 0, 0, 0, 0, 1];
const TARGET_IS_GATEWAY: &[u8] = &[2, 1, 2, 0, 0, 0, 0, 1];

/// Source, destination and payload of an answer, whose checksum is right.
fn answer6(protocol: Protocol, frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr, Vec<u8>)> {
    assert_eq!(
        responder6().judge(&frame[..frame.len().min(HEAD_BYTES)]),
        Verdict::Inspect(protocol)
    );
    let answer = responder6().answer(protocol, frame)?;
    let ethernet = Ethernet::parse(&answer).unwrap();
    assert_eq!((ethernet.destination, ethernet.source), (GUEST, GATEWAY));
    let packet = ethernet.payload;
    let length = u16::from_be_bytes([packet[4], packet[5]]).to_be_bytes();
    let pseudo = [&packet[8..40], &length, &[0, packet[6]], &packet[40..]].concat();
    assert_eq!(internet_checksum(0, &pseudo), 0, "checksum");
    let read = Packet::parse(packet).unwrap();
    assert_eq!(read.hop_limit, 255);
    Some((read.source, read.destination, packet[40..].to_vec()))
}

#[test]
fn a_router_solicitation_is_answered_with_everything() {
    let solicitation = [&[133, 0, 0, 0, 0, 0, 0, 0][..], SOURCE_IS_GUEST].concat();
    let (source, destination, message) =
        answer6(Protocol::Router, &icmp(LINK_LOCAL, "ff02::2", &solicitation)).unwrap();
    assert_eq!((source, destination), (at(ROUTER6), at(LINK_LOCAL)));
    let mut expected = vec![
        134, 0, message[2], message[3], 64, 0xc0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    expected.extend([1, 1, 2, 0, 0, 0, 0, 1]);
    expected.extend([5, 1, 0, 0, 0, 0, 0x05, 0xaa]);
    expected.extend([
        3, 4, 64, 0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    expected.extend(at("fd10:0:2::").octets());
    expected.extend([25, 3, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    expected.extend(at("fd00:96::a").octets());
    expected.extend([31, 9, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let names = b"\x07default\x03svc\x07cluster\x05local\x00\x03svc\x07cluster\x05local\x00\x07cluster\x05local\x00";
    expected.extend(names);
    expected.resize(expected.len().next_multiple_of(8), 0);
    assert_eq!(message, expected);
    let unasked = icmp("::", "ff02::2", &solicitation[..8]);
    assert_eq!(answer6(Protocol::Router, &unasked).unwrap().1, at("ff02::1"));
}

#[test]
fn the_gateway_is_a_neighbour_and_nobody_else_is() {
    for target in [ROUTER6, GATEWAY6] {
        let question = message_about(135, target, SOURCE_IS_GUEST);
        let (source, destination, message) =
            answer6(Protocol::Neighbour, &icmp(OWN, "ff02::1:ff00:1", &question)).unwrap();
        assert_eq!((source, destination), (at(target), at(OWN)));
        assert_eq!((message[0], message[4]), (136, 0xe0));
        assert_eq!(message[8..], [&at(target).octets()[..], TARGET_IS_GATEWAY].concat());
        // Who tries the gateway's address is told that it is taken.
        let probe = icmp("::", "ff02::1:ff00:1", &message_about(135, target, &[]));
        let (_, destination, message) = answer6(Protocol::Neighbour, &probe).unwrap();
        assert_eq!((destination, message[4]), (at("ff02::1"), 0xa0));
    }
}

const UDP: [u8; 8] = [0, 9, 0, 9, 0, 8, 0, 0];
const FAR: &str = "2001:db8::1";
const OPAQUE: Verdict = Verdict::Forward(Layout::Opaque);
const UDP_FORWARDED: Verdict = Verdict::Forward(Layout::Transport {
    version: Version::V6,
    protocol: 17,
    offset: 54,
});
const SPOOFED_IP: Verdict = Verdict::Drop(DropReason::SpoofedIp);
const SPOOFED: Verdict = Verdict::Drop(DropReason::SpoofedNeighbour);
const MALFORMED: Verdict = Verdict::Drop(DropReason::Malformed);

/// Options before a `next` header.
const fn options(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

fn check_verdicts(cases: impl IntoIterator<Item = (&'static str, Vec<u8>, Verdict)>) {
    for (what, frame, expected) in cases {
        let judged = responder6().judge(&frame[..frame.len().min(HEAD_BYTES)]);
        assert_eq!(judged, expected, "{what}");
    }
}

#[test]
fn whose_ipv6_leaves() {
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    check_verdicts([
        ("UDP", frame6(OWN, FAR, 17, &UDP, 6), UDP_FORWARDED),
        ("UDP of another", frame6("fd10:0:2::3", FAR, 17, &UDP, 6), SPOOFED_IP),
        ("UDP of the gateway", frame6(GATEWAY6, FAR, 17, &UDP, 6), SPOOFED_IP),
        ("of the router", frame6(ROUTER6, FAR, 17, &UDP, 6), SPOOFED_IP),
        (
            "of a mapped address",
            frame6("::ffff:10.0.2.9", FAR, 17, &UDP, 6),
            SPOOFED_IP,
        ),
        ("of a group", frame6("ff02::1", FAR, 17, &UDP, 6), SPOOFED_IP),
        (
            "link-local multicast DNS",
            frame6(LINK_LOCAL, "ff02::fb", 17, &UDP, 6),
            Verdict::Absorb,
        ),
        ("echo", icmp(OWN, FAR, &echo), OPAQUE),
        ("echo of another", icmp("fd10:0:2::3", FAR, &echo), SPOOFED_IP),
        (
            "listener report",
            frame6("::", "ff02::16", 0, &[&options(58)[..], &[143, 0, 0, 0]].concat(), 2),
            Verdict::Absorb,
        ),
    ]);
}

#[test]
fn what_a_guest_may_say_to_its_neighbours() {
    let advertise = |target, option| icmp(OWN, "ff02::1", &message_about(136, target, option));
    let mut routed = icmp(LINK_LOCAL, "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]);
    routed[14 + 7] = 254;
    check_verdicts([
        (
            "its own address is tried",
            icmp("::", "ff02::1:ff00:2", &message_about(135, OWN, &[])),
            Verdict::Absorb,
        ),
        ("itself announced", advertise(OWN, TARGET_IS_GUEST), OPAQUE),
        (
            "the gateway's address announced",
            advertise(GATEWAY6, TARGET_IS_GUEST),
            SPOOFED,
        ),
        (
            "the router's address announced",
            advertise(ROUTER6, TARGET_IS_GUEST),
            SPOOFED,
        ),
        (
            "a third one's address announced",
            advertise("fd10:0:2::7", TARGET_IS_GUEST),
            SPOOFED,
        ),
        ("another MAC announced", advertise(OWN, TARGET_IS_GATEWAY), SPOOFED),
        (
            "asked with another MAC",
            icmp(OWN, "ff02::1", &message_about(135, ROUTER6, SOURCE_IS_GATEWAY)),
            SPOOFED,
        ),
        (
            "hidden behind another option",
            advertise(OWN, &[TARGET_IS_GUEST, TARGET_IS_GATEWAY].concat()),
            SPOOFED,
        ),
        (
            "option of no length",
            advertise(OWN, &[2, 0, 0, 0, 0, 0, 0, 0]),
            MALFORMED,
        ),
        (
            "option beyond the end",
            advertise(OWN, &[2, 9, 0, 0, 0, 0, 0, 0]),
            MALFORMED,
        ),
        (
            "cut",
            icmp(OWN, "ff02::1", &message_about(136, OWN, &[])[..20]),
            MALFORMED,
        ),
        ("router advertisement", icmp(LINK_LOCAL, "ff02::1", &[134; 16]), SPOOFED),
        (
            "redirect",
            icmp(LINK_LOCAL, "ff02::1", &[137, 0, 0, 0, 0, 0, 0, 0]),
            SPOOFED,
        ),
        ("through a router", routed, SPOOFED),
    ]);
}

#[test]
fn nothing_hides_behind_extension_headers() {
    let fragment = |next: u8, offset: u8| [next, 0, 0, offset, 0, 0, 0, 7];
    check_verdicts([
        (
            "advertisement in a fragment",
            frame6(
                OWN,
                "ff02::1",
                44,
                &[&fragment(58, 1)[..], &message_about(136, OWN, &[])].concat(),
                10,
            ),
            SPOOFED,
        ),
        (
            "behind options",
            frame6(
                OWN,
                "ff02::1",
                0,
                &[&options(60)[..], &options(58), &message_about(136, GATEWAY6, &[])].concat(),
                18,
            ),
            SPOOFED,
        ),
        (
            "later fragment",
            frame6(OWN, FAR, 44, &[&fragment(17, 8)[..], &UDP].concat(), 14),
            OPAQUE,
        ),
        (
            "later fragment of another",
            frame6(FAR, FAR, 44, &[&fragment(17, 8)[..], &UDP].concat(), 14),
            SPOOFED_IP,
        ),
        (
            "headers without an end",
            frame6(OWN, FAR, 0, &options(0).repeat(30), 100),
            MALFORMED,
        ),
        (
            "headers beyond the copy",
            frame6(OWN, FAR, 0, &[&[17, 40][..], &[0; 400]].concat(), 100),
            MALFORMED,
        ),
    ]);
}

const CLIENT: &[u8] = &[0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 2];
const SERVER6: &[u8] = &[0, 2, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1];
const RAPID: &[u8] = &[0, 14, 0, 0];

fn identity_association(kind: u8, addresses: &[(&str, u32)], status: Option<u8>) -> Vec<u8> {
    let mut value = vec![0, 0, 0, 9];
    value.extend([0xff; 8]);
    if let Some(status) = status {
        value.extend([0, 13, 0, 2, 0, status]);
    }
    for (address, lifetime) in addresses {
        value.extend([0, 5, 0, 24]);
        value.extend(at(address).octets());
        value.extend(lifetime.to_be_bytes());
        value.extend(lifetime.to_be_bytes());
    }
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[0, kind][..], &length, &value].concat()
}

fn dhcp6(destination: &str, kind: u8, options: &[&[u8]]) -> Vec<u8> {
    let payload = [&[kind, 1, 2, 3][..], &options.concat()].concat();
    let datagram = wire::Udp6 {
        source_port: 546,
        destination_port: 547,
        payload: &payload,
    };
    frame6(LINK_LOCAL, destination, 17, &datagram.write().unwrap(), 6)
}

/// Name server and search domains, as options.
fn network_options() -> Vec<u8> {
    [
        &[0, 23, 0, 16][..],
        &at("fd00:96::a").octets(),
        &[0, 24, 0, 61],
        b"\x07default\x03svc\x07cluster\x05local\x00\x03svc\x07cluster\x05local\x00\x07cluster\x05local\x00",
    ]
    .concat()
}

/// The message that answers one to all servers, from its type on.
fn dhcp6_answer(kind: u8, options: &[&[u8]]) -> Option<Vec<u8>> {
    let (source, destination, payload) = answer6(Protocol::Dhcp6, &dhcp6("ff02::1:2", kind, options))?;
    assert_eq!((source, destination), (at(ROUTER6), at(LINK_LOCAL)), "{kind}");
    assert_eq!(payload[..4], [2, 35, 2, 34], "{kind}: ports");
    Some(payload[8..].to_vec())
}

#[test]
fn dhcp6_gives_the_address_and_no_other() {
    const REPLY6: &[u8] = &[7, 1, 2, 3];
    let network = network_options();
    let empty = identity_association(3, &[], None);
    let ours = identity_association(3, &[(OWN, u32::MAX)], None);
    let other = identity_association(3, &[("fd10:0:2::9", 100)], None);
    let corrected = identity_association(3, &[(OWN, u32::MAX), ("fd10:0:2::9", 0)], None);
    let status = |code: u8| [0, 13, 0, 2, 0, code];
    for (what, kind, options, expected) in [
        (
            "solicit",
            1,
            vec![CLIENT, &empty],
            [&[2, 1, 2, 3][..], CLIENT, SERVER6, &ours, &network].concat(),
        ),
        (
            "rapid commit",
            1,
            vec![CLIENT, RAPID, &empty],
            [REPLY6, CLIENT, SERVER6, RAPID, &ours, &network].concat(),
        ),
        (
            "request",
            3,
            vec![CLIENT, SERVER6, &ours],
            [REPLY6, CLIENT, SERVER6, &ours, &network].concat(),
        ),
        (
            "renew",
            5,
            vec![CLIENT, SERVER6, &other],
            [REPLY6, CLIENT, SERVER6, &corrected, &network].concat(),
        ),
        (
            "rebind",
            6,
            vec![CLIENT, &ours],
            [REPLY6, CLIENT, SERVER6, &ours, &network].concat(),
        ),
        (
            "confirm",
            4,
            vec![CLIENT, &ours],
            [REPLY6, CLIENT, SERVER6, &status(0)].concat(),
        ),
        (
            "confirm another",
            4,
            vec![CLIENT, &other],
            [REPLY6, CLIENT, SERVER6, &status(4)].concat(),
        ),
        (
            "release",
            8,
            vec![CLIENT, SERVER6, &ours],
            [REPLY6, CLIENT, SERVER6, &status(0)].concat(),
        ),
        (
            "decline",
            9,
            vec![CLIENT, SERVER6, &ours],
            [REPLY6, CLIENT, SERVER6, &status(0)].concat(),
        ),
        ("information", 11, vec![], [REPLY6, SERVER6, &network].concat()),
    ] {
        assert_eq!(dhcp6_answer(kind, &options), Some(expected), "{what}");
    }
    // Two associations, and a prefix: one address is all that there is.
    let second = identity_association(3, &[], Some(2));
    let prefixes = identity_association(25, &[], Some(6));
    let asked = [CLIENT, &empty, &empty, &identity_association(25, &[], None)];
    assert_eq!(
        dhcp6_answer(1, &asked).unwrap()[4..],
        [CLIENT, SERVER6, &ours, &second, &prefixes, &network].concat()
    );
}

#[test]
fn what_dhcp6_says_nothing_to() {
    let empty = identity_association(3, &[], None);
    for (what, kind, options) in [
        ("confirm nothing", 4, vec![CLIENT, &empty]),
        ("solicit of nobody", 1, vec![&empty[..]]),
        ("solicit of a server", 1, vec![CLIENT, SERVER6, &empty]),
        ("request of no server", 3, vec![CLIENT, &empty]),
        (
            "request of another server",
            3,
            vec![CLIENT, &[0, 2, 0, 2, 9, 9], &empty],
        ),
        ("a server's message", 2, vec![CLIENT, &empty]),
        ("a relay's", 12, vec![CLIENT]),
        ("cut option", 1, vec![CLIENT, &empty[..10]]),
    ] {
        assert_eq!(dhcp6_answer(kind, &options), None, "{what}");
    }
}

proptest! {
    /// Whatever bytes are changed and wherever it is cut: no panic, and an answer only to the guest.
    #[test]
    fn damaged_frames_are_harmless(
        which in 0_usize..4,
        changes in prop::collection::vec((0_usize..200, any::<u8>()), 0..6),
        length in 0_usize..200,
    ) {
        let frames = [
            dhcp6("ff02::1:2", 1, &[CLIENT, &identity_association(3, &[(OWN, 5)], None)]),
            icmp(LINK_LOCAL, "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]),
            icmp(OWN, "ff02::1", &message_about(135, ROUTER6, SOURCE_IS_GUEST)),
            frame6(OWN, "2001:db8::1", 0, &[17, 0, 1, 4, 0, 0, 0, 0, 0, 9, 0, 9, 0, 8, 0, 0], 14),
        ];
        let mut frame = frames[which].clone();
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(length);
        let responder = responder6();
        if let Verdict::Inspect(protocol) = responder.judge(&frame[..frame.len().min(HEAD_BYTES)])
            && let Some(answer) = responder.answer(protocol, &frame)
        {
            prop_assert_eq!(Ethernet::parse(&answer).unwrap().source, GATEWAY);
            prop_assert!(answer.len() <= 1514);
        }
    }
}
