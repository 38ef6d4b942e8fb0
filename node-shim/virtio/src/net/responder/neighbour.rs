//! Neighbour discovery (RFC 4861): router advertisements, and the router's answers. On a private network no other router and no other neighbour
//! exists; on one with others, the guest finds them itself.

use std::net::Ipv6Addr;

use super::{GuestIdentity, GuestIpv6, Network, Protocol, dns_name};
use crate::net::address::MacAddress;
use crate::net::frame::Ethernet;
use crate::net::guard::{DropReason, Layout, Verdict};
use crate::net::ipv6::{self, ALL_NODES, PROTOCOL_ICMPV6, Packet, TYPE_IPV6};

const LISTENER_QUERY: u8 = 130;
const LISTENER_REPORT: u8 = 131;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_2: u8 = 143;

const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
/// RFC 8106.
const OPTION_NAME_SERVERS: u8 = 25;
const OPTION_SEARCH: u8 = 31;

const HOP_LIMIT: u8 = 64;
/// Addresses and everything else come by DHCPv6: M and O (RFC 4861, 4.2).
const FLAGS_MANAGED_OTHER: u8 = 0xc0;
/// Longest lifetime of a default router in seconds (RFC 8319, 4). [`super::ADVERTISEMENT_INTERVAL`] renews it.
const ROUTER_LIFETIME: u16 = 65535;
const FOREVER: u32 = u32::MAX;
/// The prefix is on the link; addresses are not made from it, because the guest has only one.
const PREFIX_ON_LINK: u8 = 0x80;
/// Router, solicited, override (4.4).
const NEIGHBOUR_FLAGS: u8 = 0xe0;
const NEIGHBOUR_FLAGS_UNSOLICITED: u8 = 0xa0;
/// Most name servers in an advertisement.
const MAX_NAME_SERVERS: usize = 3;
/// Bytes of search domains in an advertisement: it stays within the smallest MTU of IPv6 with them.
const MAX_SEARCH_BYTES: usize = 1024;
/// Fixed part of a neighbour solicitation or advertisement.
const NEIGHBOUR_BYTES: usize = 24;
/// Where an `ICMPv6` message has its checksum.
const CHECKSUM: usize = 2;

/// What happens to an `ICMPv6` message of the guest; `None` when it is not about the link.
pub fn judge(guest: &GuestIdentity, ours: &GuestIpv6, packet: &Packet<'_>, message: &[u8]) -> Option<Verdict> {
    let Some(kind) = message.first() else {
        return Some(Verdict::Drop(DropReason::Malformed));
    };
    match *kind {
        LISTENER_REPORT | LISTENER_DONE | LISTENER_REPORT_2 => return Some(for_others(guest)),
        LISTENER_QUERY => return Some(Verdict::Absorb),
        ROUTER_SOLICITATION..=REDIRECT => {}
        _ => return None,
    }
    // It came from this link, and whole (RFC 6980).
    if packet.hop_limit != 255 || message.get(1) != Some(&0) || packet.fragment {
        return Some(Verdict::Drop(DropReason::SpoofedNeighbour));
    }
    let verdict = match *kind {
        ROUTER_SOLICITATION => options_of(guest, message, 8).map(|()| Verdict::Inspect(Protocol::Router)),
        NEIGHBOUR_SOLICITATION => judge_solicitation(guest, ours, message),
        NEIGHBOUR_ADVERTISEMENT => judge_advertisement(guest, ours, packet, message),
        // A router's to say.
        _ => Err(DropReason::SpoofedNeighbour),
    };
    Some(verdict.unwrap_or_else(Verdict::Drop))
}

fn judge_solicitation(guest: &GuestIdentity, ours: &GuestIpv6, message: &[u8]) -> Result<Verdict, DropReason> {
    let target = target_of(message)?;
    options_of(guest, message, NEIGHBOUR_BYTES)?;
    // On a private network everything else is duplicate address detection, or nobody.
    Ok(if ours.is_router(target) {
        Verdict::Inspect(Protocol::Neighbour)
    } else {
        for_others(guest)
    })
}

/// What becomes of a message that is not for the responder.
fn for_others(guest: &GuestIdentity) -> Verdict {
    match guest.network {
        Network::Private => Verdict::Absorb,
        Network::Shared | Network::Open => Verdict::Forward(Layout::Opaque),
    }
}

fn judge_advertisement(
    guest: &GuestIdentity,
    ours: &GuestIpv6,
    packet: &Packet<'_>,
    message: &[u8],
) -> Result<Verdict, DropReason> {
    let target = target_of(message)?;
    options_of(guest, message, NEIGHBOUR_BYTES)?;
    if target == ours.address && packet.source == ours.address {
        Ok(Verdict::Forward(Layout::Opaque))
    } else if target == ours.address || ours.is_guest_link_local(target) {
        Ok(for_others(guest))
    } else {
        Err(DropReason::SpoofedNeighbour)
    }
}

fn target_of(message: &[u8]) -> Result<Ipv6Addr, DropReason> {
    let target = message.get(8..NEIGHBOUR_BYTES).and_then(ipv6::address);
    target.ok_or(DropReason::Malformed)
}

/// Checks the options from `at` on: a link-layer address is the guest's own.
fn options_of(guest: &GuestIdentity, message: &[u8], at: usize) -> Result<(), DropReason> {
    let mut rest = message.get(at..).ok_or(DropReason::Malformed)?;
    while let [kind, words, ..] = *rest {
        let bytes = usize::from(words) * 8;
        if bytes == 0 {
            return Err(DropReason::Malformed);
        }
        let (option, after) = rest.split_at_checked(bytes).ok_or(DropReason::Malformed)?;
        if matches!(kind, OPTION_SOURCE | OPTION_TARGET) && option.get(2..8) != Some(&guest.mac.0) {
            return Err(DropReason::SpoofedNeighbour);
        }
        rest = after;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(DropReason::Malformed)
    }
}

/// The router's answer to a neighbour solicitation.
pub fn answer(guest: &GuestIdentity, ours: &GuestIpv6, packet: &Packet<'_>, message: &[u8]) -> Option<Vec<u8>> {
    let target = target_of(message).ok().filter(|target| ours.is_router(*target))?;
    // Nobody to answer: somebody who tries the address (7.2.4).
    let (destination, flags) = if packet.source.is_unspecified() {
        (ALL_NODES, NEIGHBOUR_FLAGS_UNSOLICITED)
    } else {
        (packet.source, NEIGHBOUR_FLAGS)
    };
    let mut reply = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    reply.extend_from_slice(&target.octets());
    put_mac(&mut reply, OPTION_TARGET, ours.router_mac.unwrap_or(guest.gateway_mac));
    frame(guest, target, destination, reply)
}

/// A router advertisement to one node, or to all.
pub fn advertisement(guest: &GuestIdentity, ours: &GuestIpv6, to: Option<Ipv6Addr>) -> Option<Vec<u8>> {
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, FLAGS_MANAGED_OTHER];
    // Zero: it is a router of this link only, by no default route.
    let lifetime = ours.router_mac.map_or(0, |_| ROUTER_LIFETIME);
    message.extend_from_slice(&lifetime.to_be_bytes());
    // Reachable time and retransmission timer: the node's own.
    message.extend_from_slice(&[0; 8]);
    put_mac(
        &mut message,
        OPTION_SOURCE,
        ours.router_mac.unwrap_or(guest.gateway_mac),
    );
    message.extend_from_slice(&[OPTION_MTU, 1, 0, 0]);
    message.extend_from_slice(&u32::from(guest.mtu).to_be_bytes());
    if ours.prefix_length < 128 {
        message.extend_from_slice(&[OPTION_PREFIX, 4, ours.prefix_length, PREFIX_ON_LINK]);
        message.extend_from_slice(&FOREVER.to_be_bytes());
        message.extend_from_slice(&FOREVER.to_be_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&ours.prefix().octets());
    }
    put_name_servers(&mut message, guest);
    put_search(&mut message, guest);
    let destination = to.filter(|to| !to.is_unspecified()).unwrap_or(ALL_NODES);
    frame(guest, ours.router, destination, message)
}

/// What a guest that cannot say it itself would say after it moved: its address is here (7.2.6).
pub fn announcement(guest: &GuestIdentity, ours: &GuestIpv6) -> Option<Vec<u8>> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend_from_slice(&ours.address.octets());
    put_mac(&mut message, OPTION_TARGET, guest.mac);
    let packet = ipv6::write_packet(ours.address, ALL_NODES, PROTOCOL_ICMPV6, message, CHECKSUM)?;
    let frame = Ethernet {
        destination: MacAddress([0x33, 0x33, 0, 0, 0, 1]),
        source: guest.mac,
        kind: TYPE_IPV6,
        payload: &packet,
    };
    Some(frame.write())
}

fn frame(guest: &GuestIdentity, source: Ipv6Addr, destination: Ipv6Addr, message: Vec<u8>) -> Option<Vec<u8>> {
    let packet = ipv6::write_packet(source, destination, PROTOCOL_ICMPV6, message, CHECKSUM)?;
    let frame = Ethernet {
        destination: guest.mac,
        source: guest.gateway_mac,
        kind: TYPE_IPV6,
        payload: &packet,
    };
    Some(frame.write())
}

fn put_mac(message: &mut Vec<u8>, option: u8, mac: MacAddress) {
    message.extend_from_slice(&[option, 1]);
    message.extend_from_slice(&mac.0);
}

fn put_name_servers(message: &mut Vec<u8>, guest: &GuestIdentity) {
    let servers: Vec<Ipv6Addr> = guest.name_servers6().take(MAX_NAME_SERVERS).collect();
    let Ok(words @ 3..) = u8::try_from(1 + 2 * servers.len()) else {
        return;
    };
    message.extend_from_slice(&[OPTION_NAME_SERVERS, words, 0, 0]);
    message.extend_from_slice(&FOREVER.to_be_bytes());
    for server in servers {
        message.extend_from_slice(&server.octets());
    }
}

fn put_search(message: &mut Vec<u8>, guest: &GuestIdentity) {
    let mut names = dns_name::encode_all(&guest.search, MAX_SEARCH_BYTES);
    names.resize(names.len().next_multiple_of(8), 0);
    let Ok(words @ 2..) = u8::try_from(1 + names.len() / 8) else {
        return;
    };
    message.extend_from_slice(&[OPTION_SEARCH, words, 0, 0]);
    message.extend_from_slice(&FOREVER.to_be_bytes());
    message.extend_from_slice(&names);
}
