//! ARP for the gateway, and for nobody else (RFC 826, RFC 5227).

use super::{DropReason, GuestIdentity, Protocol, Verdict};
use crate::net::frame::{ARP_REPLY, ARP_REQUEST, Arp, Ethernet, TYPE_ARP};

/// What happens to an ARP packet of the guest.
pub fn judge(guest: &GuestIdentity, packet: &Arp) -> Verdict {
    // A probe for an address that the guest wants to take has the sender 0.0.0.0 (RFC 5227, 2.1.1).
    let honest = packet.sender == guest.mac
        && (packet.sender_address == guest.address || packet.sender_address.is_unspecified());
    if !honest {
        return Verdict::Drop(DropReason::SpoofedArp);
    }
    if packet.operation == ARP_REQUEST && packet.target_address == guest.gateway {
        return Verdict::Inspect(Protocol::Arp);
    }
    Verdict::Forward
}

/// The gateway's reply.
pub fn answer(guest: &GuestIdentity, request: &Arp) -> Option<Vec<u8>> {
    let reply = Arp {
        operation: ARP_REPLY,
        sender: guest.gateway_mac,
        sender_address: guest.gateway,
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
