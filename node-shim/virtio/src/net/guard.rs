//! What a guest may send: from its own MAC and its own addresses, ARP, IPv4 and IPv6, and nothing else. Whatever cannot be told for
//! certain is not let through. On an open network nobody knows the guest's addresses here, and it may send anything from its own MAC.
//! Pure: the first bytes of a frame in, a verdict out.
//!
//! The bytes are a copy that the guest cannot change: see [`super::transmit`].

use std::net::{Ipv4Addr, Ipv6Addr};

use super::frame::{ETHERNET_BYTES, Ethernet, TYPE_ARP, TYPE_IPV4, Udp};
use super::ipv6::{self, PROTOCOL_ICMPV6, PROTOCOL_UDP, Packet, TYPE_IPV6, Upper};
use super::responder::{GuestIdentity, GuestIpv6, Network, Protocol, arp, dhcp, dhcp6, neighbour};

/// Bytes of a frame that [`judge`] wants to see: every header up to a transport's, with some extension headers of IPv6, and any neighbour
/// discovery message of a host.
pub const HEAD_BYTES: usize = 256;

/// How the addresses begin that only bridges speak to (IEEE 802.1Q, 8.6.3): no guest is one.
const BRIDGES: [u8; 5] = [0x01, 0x80, 0xc2, 0x00, 0x00];

/// Why a frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// It is shorter than its own headers, or they are impossible.
    Malformed,
    /// Its source is not the guest's MAC address.
    SpoofedMac,
    /// An ARP packet says that the guest has an address that is another's.
    SpoofedArp,
    /// Its source is not the guest's IP address.
    SpoofedIp,
    /// A neighbour discovery message says what is not the guest's to say.
    SpoofedNeighbour,
    /// A protocol that is not carried, such as a VLAN's.
    Foreign,
}

/// What happens to a frame of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the host.
    Forward(Layout),
    /// It goes nowhere.
    Drop(DropReason),
    /// Nothing is wrong with it, and nobody is there whom it is for.
    Absorb,
    /// It is for the responder, which wants all of it.
    Inspect(Protocol),
}

/// Where a frame's payload begins that the guest may have the host work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Nowhere.
    Opaque,
    /// After an IP header.
    Transport {
        /// The IP version.
        version: Version,
        /// IANA's number.
        protocol: u8,
        /// From the start of the frame.
        offset: usize,
    },
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// Looks at the first [`HEAD_BYTES`] of a frame, or all of a shorter one.
pub fn judge(guest: &GuestIdentity, head: &[u8]) -> Verdict {
    let Some(ethernet) = Ethernet::parse(head) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    if ethernet.source != guest.mac {
        return Verdict::Drop(DropReason::SpoofedMac);
    }
    if ethernet.destination.0.starts_with(&BRIDGES) {
        return Verdict::Drop(DropReason::Foreign);
    }
    if guest.network == Network::Open {
        return Verdict::Forward(layout(&ethernet));
    }
    match ethernet.kind {
        TYPE_ARP => arp::judge(guest, ethernet.payload),
        TYPE_IPV4 => judge_ipv4(guest, ethernet.payload),
        TYPE_IPV6 => match &guest.ipv6 {
            Some(ours) => judge_ipv6(guest, ours, ethernet.payload),
            // Every guest tries IPv6.
            None => Verdict::Absorb,
        },
        _ => Verdict::Drop(DropReason::Foreign),
    }
}

/// Where the payload of a frame begins that nobody judges.
fn layout(ethernet: &Ethernet<'_>) -> Layout {
    match ethernet.kind {
        TYPE_IPV4 => layout4(ethernet.payload).unwrap_or(Layout::Opaque),
        TYPE_IPV6 => match Packet::parse(ethernet.payload) {
            Some(Packet {
                upper: Upper::Header { protocol, offset, .. },
                fragment: false,
                ..
            }) => layout6(protocol, offset),
            _ => Layout::Opaque,
        },
        _ => Layout::Opaque,
    }
}

/// The layout of an IPv4 packet; `None` when its header is impossible.
fn layout4(packet: &[u8]) -> Option<Layout> {
    let header = packet.first_chunk::<20>()?;
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_bytes < header.len() || header_bytes > packet.len() {
        return None;
    }
    // More fragments, or an offset.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Some(Layout::Opaque);
    }
    Some(Layout::Transport {
        version: Version::V4,
        protocol: header[9],
        offset: ETHERNET_BYTES + header_bytes,
    })
}

/// The layout of an IPv6 packet whose upper header begins at `offset`.
const fn layout6(protocol: u8, offset: usize) -> Layout {
    Layout::Transport {
        version: Version::V6,
        protocol,
        offset: ETHERNET_BYTES + offset,
    }
}

fn judge_ipv4(guest: &GuestIdentity, packet: &[u8]) -> Verdict {
    let (Some(layout), Some(header)) = (layout4(packet), packet.first_chunk::<20>()) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let Some(ours) = &guest.ipv4 else {
        return Verdict::Absorb;
    };
    if Udp::parse(packet).is_some_and(|udp| dhcp::is_for_server(ours, &udp)) {
        return Verdict::Inspect(Protocol::Dhcp4);
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    if source.is_unspecified() {
        // As a guest without an address yet does for IGMP.
        return Verdict::Absorb;
    }
    if source != ours.address {
        return Verdict::Drop(DropReason::SpoofedIp);
    }
    Verdict::Forward(layout)
}

/// What a guest's source address is to us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The one that it was given.
    Assigned,
    /// One that it made up for the link, which no router lets out.
    LinkLocal,
    /// None yet.
    Unspecified,
}

fn source_of(ours: &GuestIpv6, source: Ipv6Addr) -> Option<Source> {
    if source == ours.address {
        Some(Source::Assigned)
    } else if source.is_unspecified() {
        Some(Source::Unspecified)
    } else if ours.is_guest_link_local(source) {
        Some(Source::LinkLocal)
    } else {
        None
    }
}

fn judge_ipv6(guest: &GuestIdentity, ours: &GuestIpv6, payload: &[u8]) -> Verdict {
    let Some(packet) = Packet::parse(payload) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let Some(source) = source_of(ours, packet.source) else {
        return Verdict::Drop(DropReason::SpoofedIp);
    };
    let Upper::Header {
        protocol,
        offset,
        payload,
    } = packet.upper
    else {
        return forward_from(guest, source, Layout::Opaque);
    };
    if protocol == PROTOCOL_ICMPV6
        && let Some(verdict) = neighbour::judge(guest, ours, &packet, payload)
    {
        return verdict;
    }
    if protocol == PROTOCOL_UDP
        && !packet.fragment
        && ipv6::Udp6::parse(payload).is_some_and(|udp| dhcp6::is_for_server(ours, packet.destination, &udp))
    {
        return Verdict::Inspect(Protocol::Dhcp6);
    }
    // What was judged of ICMPv6 is in its payload, so the host writes no checksum there.
    if packet.fragment || protocol == PROTOCOL_ICMPV6 {
        return forward_from(guest, source, Layout::Opaque);
    }
    forward_from(guest, source, layout6(protocol, offset))
}

/// On a private network only what has the assigned address can be for anybody but the responder.
fn forward_from(guest: &GuestIdentity, source: Source, layout: Layout) -> Verdict {
    match (source, guest.network) {
        (Source::Assigned, _) | (Source::LinkLocal, Network::Shared | Network::Open) => Verdict::Forward(layout),
        (Source::LinkLocal, Network::Private) | (Source::Unspecified, _) => Verdict::Absorb,
    }
}
