//! What the device does itself with frames of the guest: it answers DHCP and ARP for the gateway, and drops what the guest may not say.
//! Pure: frames in, verdicts and replies out.

pub mod arp;
pub mod dhcp;

use std::net::Ipv4Addr;

use node_shim_protocol::config::GuestNetwork;

use super::address::{InvalidMac, MacAddress};
use super::frame::{Arp, Ethernet, TYPE_ARP, TYPE_IPV4, Udp};

/// Bytes of a frame that [`Responder::judge`] wants to see: Ethernet, the longest IPv4 header, UDP.
pub const HEAD_BYTES: usize = 14 + 60 + 8;
/// Longest frame that is inspected; a longer one of such a protocol is dropped. An Ethernet frame of the usual size.
pub const MAX_INSPECTED_BYTES: usize = 1514;

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
    /// Name servers.
    pub name_servers: Vec<Ipv4Addr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Its host name, or nothing.
    pub host_name: String,
}

impl GuestIdentity {
    /// From what the agent or the configuration says about a network.
    ///
    /// # Errors
    /// When the gateway's MAC address is none.
    pub fn new(
        mac: MacAddress,
        network: &GuestNetwork,
        name_servers: Vec<Ipv4Addr>,
        search: Vec<String>,
        host_name: String,
    ) -> Result<Self, InvalidMac> {
        let GuestNetwork {
            address,
            prefix_length,
            gateway,
            gateway_mac,
            mtu,
        } = network;
        Ok(Self {
            mac,
            address: *address,
            prefix_length: *prefix_length,
            gateway: *gateway,
            gateway_mac: gateway_mac.parse()?,
            mtu: *mtu,
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
}

/// A protocol that the responder speaks. IPv6 router solicitations join here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// ARP requests for the gateway.
    Arp,
    /// DHCP for IPv4.
    Dhcp4,
}

/// Why a frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// It is shorter than an Ethernet header, or than its protocol's.
    Malformed,
    /// Its source is not the guest's MAC address.
    SpoofedMac,
    /// An ARP packet says that the guest has an address that is another's.
    SpoofedArp,
}

/// What happens to a frame of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the host.
    Forward,
    /// It goes nowhere.
    Drop(DropReason),
    /// It is for the responder, which wants all of it.
    Inspect(Protocol),
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
        let Some(ethernet) = Ethernet::parse(head) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        if ethernet.source != self.guest.mac {
            return Verdict::Drop(DropReason::SpoofedMac);
        }
        match ethernet.kind {
            TYPE_ARP => Arp::parse(ethernet.payload).map_or(Verdict::Drop(DropReason::Malformed), |packet| {
                arp::judge(&self.guest, &packet)
            }),
            TYPE_IPV4 if Udp::parse(ethernet.payload).is_some_and(|udp| dhcp::is_for_server(&self.guest, &udp)) => {
                Verdict::Inspect(Protocol::Dhcp4)
            }
            _ => Verdict::Forward,
        }
    }

    /// The frame that answers a whole frame of the guest, if there is anything to say.
    pub fn answer(&self, protocol: Protocol, frame: &[u8]) -> Option<Vec<u8>> {
        let ethernet = Ethernet::parse(frame)?;
        match protocol {
            Protocol::Arp => arp::answer(&self.guest, &Arp::parse(ethernet.payload)?),
            Protocol::Dhcp4 => dhcp::answer(&self.guest, &Udp::parse(ethernet.payload)?),
        }
    }
}

#[cfg(test)]
mod tests;
