//! The rules between a tap and the pod's interface whose place its guest takes. Pure.
//!
//! ```text
//!                  pod's network namespace                       in the shim
//! network ── eth0 ── table `tandem` of the family netdev ── tap0 ══ descriptor ══ virtio-net ── guest
//!              └── the pod's own stack: what comes in never gets there
//! ```
//!
//! What comes in by one goes out by the other. From the guest comes only what has the interface's MAC address, and where the network gave it
//! addresses, only ARP, IPv4 and IPv6 from those. The shim sees to that as well, and to more: this holds whatever becomes of the shim.

use std::net::Ipv4Addr;

use super::bridged::Bridged;
use super::ruleset::{Action, Bytes, Chain, ChainKind, Family, Hook, Match, PRIORITY_FILTER, Rule, TABLE, Table};

/// Offsets in an Ethernet header.
const DESTINATION: u32 = 0;
const SOURCE: u32 = 6;
const KIND: u32 = 12;
/// How the addresses begin that only bridges speak to (IEEE 802.1Q, 8.6.3).
const BRIDGES: [u8; 5] = [0x01, 0x80, 0xc2, 0x00, 0x00];
/// Kinds of frames (IEEE 802 numbers). A frame of a VLAN has another one first.
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Offsets of the sender in an ARP packet of Ethernet and IPv4 (RFC 826).
const ARP_SENDER_MAC: u32 = 8;
const ARP_SENDER: u32 = 14;
/// Offsets of the source in IP headers: RFC 791 section 3.1, RFC 8200 section 3.
const IPV4_SOURCE: u32 = 12;
const IPV6_SOURCE: u32 = 8;
/// `fe80::/64`: who has which address in it the guest decides.
const LINK_LOCAL: [u8; 8] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];

/// The table for these interfaces, each with the index of its tap.
pub(super) fn table<'a>(wires: impl IntoIterator<Item = (&'a Bridged, u32)>) -> Table {
    let chain = |name: String, device: &str, rules| Chain {
        name,
        kind: ChainKind::Filter,
        hook: Hook::Ingress(device.to_owned()),
        priority: PRIORITY_FILTER,
        rules,
    };
    let chains = wires.into_iter().flat_map(|(bridged, tap)| {
        let (device, port) = (&bridged.device, &bridged.port);
        let to_guest = vec![Rule::new([], Action::PassTo(tap))];
        [
            chain(format!("to-{device}"), &port.name, to_guest),
            chain(format!("from-{device}"), device, from_guest(bridged)),
        ]
    });
    Table {
        name: TABLE.to_owned(),
        family: Family::Netdev,
        chains: chains.collect(),
    }
}

fn from_guest(bridged: &Bridged) -> Vec<Rule> {
    let mac = bridged.mac.bytes().to_vec();
    let pass = || Action::PassTo(bridged.port.index);
    let mut rules = vec![
        Rule::new([Match::NotFrame(bytes(SOURCE, mac.clone()))], Action::Drop),
        Rule::new([Match::Frame(bytes(DESTINATION, BRIDGES))], Action::Drop),
    ];
    if !bridged.has_addresses() {
        rules.push(Rule::new([], pass()));
        return rules;
    }
    let of = |kind: [u8; 2]| Match::Frame(bytes(KIND, kind));
    if let Some(ipv4) = &bridged.ipv4 {
        let own = ipv4.address.octets();
        let probe = Match::NotPacket(bytes(ARP_SENDER, Ipv4Addr::UNSPECIFIED.octets()));
        let not_own = Match::NotPacket(bytes(ARP_SENDER, own));
        rules.extend([
            Rule::new([of(ARP), Match::NotPacket(bytes(ARP_SENDER_MAC, mac))], Action::Drop),
            Rule::new([of(ARP), not_own, probe], Action::Drop),
            Rule::new([of(ARP)], pass()),
            Rule::new([of(IPV4), Match::Packet(bytes(IPV4_SOURCE, own))], pass()),
        ]);
    }
    if let Some(ipv6) = &bridged.ipv6 {
        // Without an address yet: a guest that asks whether anybody has its own, and says what it listens to.
        for source in [&ipv6.address.octets()[..], &LINK_LOCAL, &[0; 16]] {
            let from = Match::Packet(bytes(IPV6_SOURCE, source));
            rules.push(Rule::new([of(IPV6), from], pass()));
        }
    }
    rules.push(Rule::new([], Action::Drop));
    rules
}

fn bytes(offset: u32, value: impl Into<Vec<u8>>) -> Bytes {
    Bytes {
        offset,
        value: value.into(),
    }
}
