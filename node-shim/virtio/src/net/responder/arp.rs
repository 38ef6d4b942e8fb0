//! ARP for the gateway of a private network, and for nobody else (RFC 826, RFC 5227).

use super::{GuestIdentity, GuestIpv4, Network, Protocol};
use crate::net::address::MacAddress;
use crate::net::frame::{ARP_REPLY, ARP_REQUEST, Arp, Ethernet, TYPE_ARP};
use crate::net::guard::{DropReason, Layout, Verdict};

/// What happens to an ARP packet of the guest.
pub fn judge(guest: &GuestIdentity, payload: &[u8]) -> Verdict {
    let Some(packet) = Arp::parse(payload) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let Some(ours) = &guest.ipv4 else {
        return Verdict::Absorb;
    };
    // A probe for an address that the guest wants to take has the sender 0.0.0.0 (RFC 5227, 2.1.1).
    let honest =
        packet.sender == guest.mac && (packet.sender_address == ours.address || packet.sender_address.is_unspecified());
    if !honest {
        return Verdict::Drop(DropReason::SpoofedArp);
    }
    let for_us = guest.network == Network::Private && ours.gateway == Some(packet.target_address);
    if packet.operation == ARP_REQUEST && for_us {
        return Verdict::Inspect(Protocol::Arp);
    }
    Verdict::Forward(Layout::Opaque)
}

/// The gateway's reply.
pub fn answer(guest: &GuestIdentity, request: &Arp) -> Option<Vec<u8>> {
    let gateway = guest
        .ipv4
        .as_ref()?
        .gateway
        .filter(|_| guest.network == Network::Private)?;
    let reply = Arp {
        operation: ARP_REPLY,
        sender: guest.gateway_mac,
        sender_address: gateway,
        target: request.sender,
        target_address: request.sender_address,
    };
    let frame = Ethernet {
        destination: guest.mac,
        source: guest.gateway_mac,
        kind: TYPE_ARP,
        payload: &reply.write(),
    };
    Some(frame.write())
}

/// What a guest that cannot say it itself would say after it moved: its address is here (RFC 5227, 3).
pub fn announcement(guest: &GuestIdentity, ours: &GuestIpv4) -> Vec<u8> {
    let packet = Arp {
        operation: ARP_REQUEST,
        sender: guest.mac,
        sender_address: ours.address,
        target: MacAddress([0; 6]),
        target_address: ours.address,
    };
    let frame = Ethernet {
        destination: MacAddress::BROADCAST,
        source: guest.mac,
        kind: TYPE_ARP,
        payload: &packet.write(),
    };
    frame.write()
}
