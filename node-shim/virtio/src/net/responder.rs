//! What the device answers itself: DHCP, DHCPv6, router solicitations, and on a private network ARP and neighbour discovery for the gateway.
//! Pure: frames in, replies out. What of the guest's frames comes here, and what may not be said at all, [`super::guard`] decides.

pub mod arp;
pub mod dhcp;
pub mod dhcp6;
mod dns_name;
mod guest;
pub mod neighbour;

use std::time::Duration;

pub use self::guest::{GuestIdentity, GuestIpv4, GuestIpv6, Network};
use super::frame::{Arp, Ethernet, Udp};
pub use super::guard::{DropReason, HEAD_BYTES, Layout, Verdict};
use super::ipv6::{Packet, Udp6, Upper};

/// Longest frame that is inspected; a longer one of such a protocol is dropped. An Ethernet frame of the usual size.
pub const MAX_INSPECTED_BYTES: usize = 1514;
/// How often the router advertises itself unasked: often enough that its lifetime (18 hours) does not run out when some are lost.
pub const ADVERTISEMENT_INTERVAL: Duration = Duration::from_hours(1);

/// A protocol that the responder speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// ARP requests for the gateway.
    Arp,
    /// DHCP for IPv4.
    Dhcp4,
    /// DHCPv6.
    Dhcp6,
    /// Router solicitations.
    Router,
    /// Neighbour solicitations for the gateway.
    Neighbour,
}

/// Speaks for the network.
#[derive(Debug)]
pub struct Responder {
    guest: GuestIdentity,
}

impl Responder {
    /// For one guest interface.
    pub fn new(guest: GuestIdentity) -> Self {
        Self { guest }
    }

    /// The guest that it speaks to.
    pub fn guest(&self) -> &GuestIdentity {
        &self.guest
    }

    /// Looks at the first [`HEAD_BYTES`] of a frame, or all of a shorter one.
    pub fn judge(&self, head: &[u8]) -> Verdict {
        super::guard::judge(&self.guest, head)
    }

    /// The frame that answers a whole frame of the guest, if there is anything to say.
    pub fn answer(&self, protocol: Protocol, frame: &[u8]) -> Option<Vec<u8>> {
        let payload = Ethernet::parse(frame)?.payload;
        match protocol {
            Protocol::Arp => arp::answer(&self.guest, &Arp::parse(payload)?),
            Protocol::Dhcp4 => dhcp::answer(&self.guest, self.guest.ipv4.as_ref()?, &Udp::parse(payload)?),
            Protocol::Dhcp6 | Protocol::Router | Protocol::Neighbour => self.answer6(protocol, payload),
        }
    }

    fn answer6(&self, protocol: Protocol, payload: &[u8]) -> Option<Vec<u8>> {
        let ours = self.guest.ipv6.as_ref()?;
        let packet = Packet::parse(payload)?;
        let Upper::Header { payload, .. } = packet.upper else {
            return None;
        };
        match protocol {
            Protocol::Dhcp6 => dhcp6::answer(&self.guest, ours, &packet, &Udp6::parse(payload)?),
            Protocol::Router => neighbour::advertisement(&self.guest, ours, Some(packet.source)),
            Protocol::Neighbour => neighbour::answer(&self.guest, ours, &packet, payload),
            Protocol::Arp | Protocol::Dhcp4 => None,
        }
    }

    /// The router's advertisement to everybody, where there is a router.
    pub fn advertisement(&self) -> Option<Vec<u8>> {
        neighbour::advertisement(&self.guest, self.guest.ipv6.as_ref()?, None)
    }

    /// What the network is told of a guest that came here and cannot say so itself.
    pub fn announcements(&self) -> Vec<Vec<u8>> {
        let (ipv4, ipv6) = (self.guest.ipv4.as_ref(), self.guest.ipv6.as_ref());
        let ipv4 = ipv4.map(|ours| arp::announcement(&self.guest, ours));
        let ipv6 = ipv6.and_then(|ours| neighbour::announcement(&self.guest, ours));
        ipv4.into_iter().chain(ipv6).collect()
    }
}

#[cfg(test)]
mod tests;
