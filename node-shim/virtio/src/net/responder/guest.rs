//! What a guest is told about itself and its network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use node_shim_protocol::config::{BridgedNetwork, GuestNetwork, Route};

use crate::net::address::{InvalidMac, MacAddress};

/// What the responder calls itself to a guest on a network of others: no frame with it leaves the interface. As the node agent calls the
/// gateway of a guest's private network, and a number that no gateway has.
const RESPONDER_MAC: MacAddress = MacAddress([0x02, 0x00, 0x54, 0x4d, 0x00, 0xff]);
/// The same as a DHCP server: a link-local address, that no DHCP server of a network has.
const RESPONDER_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 84, 77);
/// The same as a router (RFC 4291, appendix A): the interface identifier that follows from [`RESPONDER_MAC`].
const RESPONDER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x54ff, 0xfe4d, 0xff);
/// The gateway's link-local address on a guest's private network.
const PRIVATE_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What is at the other end of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The guest's gateway, and nobody else: the responder speaks for it.
    Private,
    /// Others. The guest has the addresses that it is given here, and no others.
    Shared,
    /// Others, who say what addresses the guest has: the responder has no part in it.
    Open,
}

/// What the guest is told about its network and itself.
#[derive(Clone, Debug)]
pub struct GuestIdentity {
    /// Its MAC address.
    pub mac: MacAddress,
    /// What it is connected to.
    pub network: Network,
    /// IPv4, if it has it.
    pub ipv4: Option<GuestIpv4>,
    /// IPv6, if it has it.
    pub ipv6: Option<GuestIpv6>,
    /// MAC address from which the responder speaks: the gateway's of a private network.
    pub gateway_mac: MacAddress,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Name servers, of both kinds.
    pub name_servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Its host name, or nothing.
    pub host_name: String,
}

/// A guest's IPv4 network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestIpv4 {
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the prefix that is on the link.
    pub prefix_length: u8,
    /// Its gateway, if it has one.
    pub gateway: Option<Ipv4Addr>,
    /// All its routes, for clients that understand more than a gateway; none where the gateway is all.
    pub routes: Vec<Route>,
    /// Its DHCP server: the responder.
    pub server: Ipv4Addr,
}

impl GuestIpv4 {
    /// The network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        let host_bits = 32 - u32::from(self.prefix_length.min(32));
        Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    /// Whether an address is on the link.
    fn is_on_link(&self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.address & self.mask()
    }
}

/// A guest's IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestIpv6 {
    /// Its address.
    pub address: Ipv6Addr,
    /// Length of the prefix that is on the link.
    pub prefix_length: u8,
    /// An address in it that the responder answers for: a private network's gateway.
    pub gateway: Option<Ipv6Addr>,
    /// The link-local address from which a router is advertised. Only the responder answers to it.
    pub router: Ipv6Addr,
    /// Who that router really is; `None` where there is none.
    pub router_mac: Option<MacAddress>,
}

impl GuestIpv6 {
    /// Whether an address is one that the responder answers for.
    pub fn is_router(&self, address: Ipv6Addr) -> bool {
        address == self.router || self.gateway == Some(address)
    }

    /// Whether an address is one that the guest may give itself: of `fe80::/64`, and not the router's.
    pub fn is_guest_link_local(&self, address: Ipv6Addr) -> bool {
        address.segments()[..4] == [0xfe80, 0, 0, 0] && address != self.router
    }

    /// First address of the network.
    pub fn prefix(&self) -> Ipv6Addr {
        let host_bits = 128 - u32::from(self.prefix_length.min(128));
        Ipv6Addr::from_bits(self.address.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0))
    }
}

impl GuestIdentity {
    /// Of a guest on a private network, from what the agent or the configuration says about it.
    ///
    /// # Errors
    /// When the gateway's MAC address is none.
    pub fn private(mac: MacAddress, network: &GuestNetwork, host_name: String) -> Result<Self, InvalidMac> {
        let gateway_mac = network.gateway_mac.parse()?;
        Ok(Self {
            mac,
            network: Network::Private,
            ipv4: Some(GuestIpv4 {
                address: network.address,
                prefix_length: network.prefix_length,
                gateway: Some(network.gateway),
                routes: Vec::new(),
                server: network.gateway,
            }),
            ipv6: network.ipv6.as_ref().map(|ipv6| GuestIpv6 {
                address: ipv6.address,
                prefix_length: ipv6.prefix_length,
                gateway: Some(ipv6.gateway),
                router: PRIVATE_LINK_LOCAL,
                router_mac: Some(gateway_mac),
            }),
            gateway_mac,
            mtu: network.mtu,
            name_servers: Vec::new(),
            search: Vec::new(),
            host_name,
        })
    }

    /// Of a guest that takes the place of its pod's interface.
    ///
    /// # Errors
    /// When a MAC address is none.
    pub fn bridged(network: &BridgedNetwork, host_name: String) -> Result<Self, InvalidMac> {
        let ipv4 = network.ipv4.as_ref().map(|ipv4| {
            let default = ipv4.routes.iter().find(|route| route.prefix_length == 0);
            let mut guest = GuestIpv4 {
                address: ipv4.address,
                prefix_length: ipv4.prefix_length,
                gateway: default.and_then(|route| route.gateway),
                routes: Vec::new(),
                server: RESPONDER_ADDRESS,
            };
            let plain = ipv4.routes.iter().all(|route| {
                route.prefix_length == 0 && route.gateway.is_some_and(|gateway| guest.is_on_link(gateway))
            });
            if !plain {
                guest.routes.clone_from(&ipv4.routes);
            }
            guest
        });
        let ipv6 = network.ipv6.as_ref().map(|ipv6| {
            let router_mac = ipv6.gateway_mac.as_ref().map(|mac| mac.parse()).transpose()?;
            Ok(GuestIpv6 {
                address: ipv6.address,
                prefix_length: ipv6.prefix_length,
                gateway: None,
                router: RESPONDER_LINK_LOCAL,
                router_mac,
            })
        });
        Ok(Self {
            mac: network.mac.parse()?,
            network: if network.ipv4.is_none() && network.ipv6.is_none() {
                Network::Open
            } else {
                Network::Shared
            },
            ipv4,
            ipv6: ipv6.transpose()?,
            gateway_mac: RESPONDER_MAC,
            mtu: network.mtu,
            name_servers: Vec::new(),
            search: Vec::new(),
            host_name,
        })
    }

    /// Tells the guest where names are resolved, too.
    #[must_use]
    pub fn with_resolver(mut self, name_servers: Vec<IpAddr>, search: Vec<String>) -> Self {
        self.name_servers = name_servers;
        self.search = search;
        self
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
