//! What the device answers itself: DHCP, DHCPv6, router solicitations, and ARP and neighbour discovery for the gateway. Pure: frames in,
//! replies out. What of the guest's frames comes here, and what may not be said at all, [`super::guard`] decides.

pub mod arp;
pub mod dhcp;
pub mod dhcp6;
mod dns_name;
pub mod neighbour;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use node_shim_protocol::config::{GuestNetwork, GuestNetwork6};

use super::address::{InvalidMac, MacAddress};
use super::frame::{Arp, Ethernet, Udp};
pub use super::guard::{DropReason, HEAD_BYTES, Layout, Verdict};
use super::ipv6::{Packet, Udp6, Upper};

/// Longest frame that is inspected; a longer one of such a protocol is dropped. An Ethernet frame of the usual size.
pub const MAX_INSPECTED_BYTES: usize = 1514;
/// How often the router advertises itself unasked: often enough that its lifetime (18 hours) does not run out when some are lost.
pub const ADVERTISEMENT_INTERVAL: Duration = Duration::from_hours(1);

/// What the guest is told about its network and itself.
#[derive(Clone, Debug)]
pub struct GuestIdentity {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Length of the network prefix.
    pub prefix_length: u8,
    /// Its gateway, for which the responder speaks.
    pub gateway: Ipv4Addr,
    /// The gateway's MAC address.
    pub gateway_mac: MacAddress,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// IPv6, if it has it.
    pub ipv6: Option<GuestIpv6>,
    /// Name servers, of both kinds.
    pub name_servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Its host name, or nothing.
    pub host_name: String,
}

/// A guest's IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestIpv6 {
    /// Its address.
    pub address: Ipv6Addr,
    /// Length of the network prefix.
    pub prefix_length: u8,
    /// The gateway's address in it.
    pub gateway: Ipv6Addr,
}

impl GuestIpv6 {
    /// The gateway's link-local address, from which it advertises itself. Only the responder answers to it.
    pub const fn router(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)
    }

    /// Whether an address is one of the gateway's.
    pub fn is_router(&self, address: Ipv6Addr) -> bool {
        address == self.router() || address == self.gateway
    }

    /// Whether an address is one that the guest may give itself: of `fe80::/64`, and not the gateway's.
    pub fn is_guest_link_local(&self, address: Ipv6Addr) -> bool {
        address.segments()[..4] == [0xfe80, 0, 0, 0] && address != self.router()
    }

    /// First address of the network.
    pub fn prefix(&self) -> Ipv6Addr {
        let host_bits = 128 - u32::from(self.prefix_length.min(128));
        Ipv6Addr::from_bits(self.address.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0))
    }
}

impl GuestIdentity {
    /// From what the agent or the configuration says about a network.
    ///
    /// # Errors
    /// When the gateway's MAC address is none.
    pub fn new(
        mac: MacAddress,
        network: &GuestNetwork,
        name_servers: Vec<IpAddr>,
        search: Vec<String>,
        host_name: String,
    ) -> Result<Self, InvalidMac> {
        let GuestNetwork {
            address,
            prefix_length,
            gateway,
            gateway_mac,
            mtu,
            ipv6,
        } = network;
        let ipv6 = ipv6.as_ref().map(|network| {
            let GuestNetwork6 {
                address,
                prefix_length,
                gateway,
            } = *network;
            GuestIpv6 {
                address,
                prefix_length,
                gateway,
            }
        });
        Ok(Self {
            mac,
            address: *address,
            prefix_length: *prefix_length,
            gateway: *gateway,
            gateway_mac: gateway_mac.parse()?,
            mtu: *mtu,
            ipv6,
            name_servers,
            search,
            host_name,
        })
    }

    /// The network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        let host_bits = 32 - u32::from(self.prefix_length.min(32));
        Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    /// Name servers with IPv4 addresses.
    pub fn name_servers4(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.name_servers.iter().filter_map(|server| match server {
            IpAddr::V4(server) => Some(*server),
            IpAddr::V6(_) => None,
        })
    }

    /// Name servers with IPv6 addresses.
    pub fn name_servers6(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.name_servers.iter().filter_map(|server| match server {
            IpAddr::V4(_) => None,
            IpAddr::V6(server) => Some(*server),
        })
    }
}

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
            Protocol::Dhcp4 => dhcp::answer(&self.guest, &Udp::parse(payload)?),
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
        let ipv6 = self.guest.ipv6.as_ref();
        let mut frames = vec![arp::announcement(&self.guest)];
        frames.extend(ipv6.and_then(|ours| neighbour::announcement(&self.guest, ours)));
        frames
    }
}

#[cfg(test)]
mod tests;
