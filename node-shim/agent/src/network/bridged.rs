//! What a guest on a bridged interface takes over from the pod's interface. Pure.
//!
//! The pod's interface keeps everything: its name, its MAC address, its addresses and its routes. Whatever comes in by it goes to the guest's
//! tap before the pod's namespace sees it, and the other way round; so the guest is the interface, to everybody on the network. Nothing has
//! to be undone, and what the guest is told can be read from the interface at any time:
//!
//! | so far | who has the interface | the next `Hello` |
//! |---|---|---|
//! | nothing | the pod's namespace | does everything |
//! | a tap, without rules | the pod's namespace | removes the tap, does everything |
//! | rules whose tap is gone | nobody: what comes is dropped | replaces them, does everything |
//! | rules and a tap | the guest | the same: the earlier guest is cut off |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use node_shim_protocol::config::{BRIDGED_ROUTES_MAX, BridgedIpv4, BridgedIpv6, BridgedNetwork, Route};

use super::address::Mac;
use super::plan::PlanError;

/// An interface of the pod, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodInterface {
    /// Interface index.
    pub(crate) index: u32,
    /// Interface name.
    pub(crate) name: String,
    /// Its MAC address; none where it is no Ethernet.
    pub(crate) mac: Option<Mac>,
    /// Largest IP packet in bytes.
    pub(crate) mtu: u16,
    /// Its addresses that somebody gave it, in order; none that it made up or learnt itself.
    pub(crate) addresses: Vec<Address>,
    /// The routes that leave by it, in order.
    pub(crate) routes: Vec<PodRoute>,
}

/// An address and its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The address.
    pub(crate) address: IpAddr,
    /// Length of its prefix.
    pub(crate) prefix_length: u8,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodRoute {
    /// First address of where it leads to.
    pub(crate) destination: IpAddr,
    /// Length of that prefix.
    pub(crate) prefix_length: u8,
    /// The next router; none where the destination is on the link.
    pub(crate) gateway: Option<IpAddr>,
    /// The least is the best.
    pub(crate) metric: u32,
}

/// What is to be made of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bridged {
    /// Name of the tap.
    pub(crate) device: String,
    /// Name of the interface in the VM's spec.
    pub(crate) interface: String,
    /// How many queues the tap has.
    pub(crate) queues: u16,
    /// The pod's interface.
    pub(crate) port: PodInterface,
    /// The guest's MAC address: the interface's.
    pub(crate) mac: Mac,
    /// What the guest has, but for the router's MAC address.
    pub(crate) ipv4: Option<BridgedIpv4>,
    /// The same of IPv6.
    pub(crate) ipv6: Option<BridgedIpv6>,
    /// The router of the IPv6 default route, whose MAC address the guest is to be told.
    pub(crate) gateway6: Option<Ipv6Addr>,
}

impl Bridged {
    /// For the tap `device` of the VM's `interface`.
    pub(crate) fn new(device: String, interface: String, queues: u16, port: PodInterface) -> Result<Self, PlanError> {
        let Some(mac) = port.mac else {
            return Err(PlanError::NoEthernet(port.name));
        };
        let ipv6 = port.ipv6();
        Ok(Self {
            device,
            interface,
            queues,
            mac,
            ipv4: port.ipv4()?,
            gateway6: ipv6.as_ref().and_then(|_| port.gateway6()),
            ipv6,
            port,
        })
    }

    /// Whether the network says which addresses the guest has.
    pub(crate) const fn has_addresses(&self) -> bool {
        self.ipv4.is_some() || self.ipv6.is_some()
    }

    /// What the shim is told, with the MAC address of `gateway6`.
    pub(crate) fn network(&self, gateway: Option<Mac>) -> BridgedNetwork {
        BridgedNetwork {
            mac: self.mac.to_string(),
            mtu: self.port.mtu,
            ipv4: self.ipv4.clone(),
            ipv6: self.ipv6.clone().map(|ipv6| BridgedIpv6 {
                gateway_mac: gateway.map(|mac| mac.to_string()),
                ..ipv6
            }),
        }
    }
}

impl PodInterface {
    fn ipv4(&self) -> Result<Option<BridgedIpv4>, PlanError> {
        let first = self.addresses.iter().find_map(|it| match it.address {
            IpAddr::V4(address) => Some((address, it.prefix_length)),
            IpAddr::V6(_) => None,
        });
        let Some((address, length)) = first else {
            return Ok(None);
        };
        let network = Ipv4Addr::from_bits(address.to_bits() & mask(length));
        let connected = |route: &Route| {
            (route.destination, route.prefix_length, route.gateway) == (network, length, None) && length < 32
        };
        let all = self.routes4();
        let prefix_length = if all.iter().any(connected) { length } else { 32 };
        let mut routes: Vec<Route> = all.into_iter().filter(|route| !connected(route)).collect();
        // Who is asked to reach a router that is in none of its networks has to be told that it is on the link.
        let strangers: Vec<Route> = routes
            .iter()
            .filter_map(|route| route.gateway)
            .filter(|gateway| {
                let beside = (gateway.to_bits() ^ address.to_bits()) & mask(prefix_length) == 0;
                let on_link = |route: &Route| {
                    let same = (gateway.to_bits() ^ route.destination.to_bits()) & mask(route.prefix_length) == 0;
                    route.gateway.is_none() && same
                };
                !beside && !routes.iter().any(on_link)
            })
            .map(|gateway| Route {
                destination: gateway,
                prefix_length: 32,
                gateway: None,
            })
            .collect();
        routes.extend(strangers);
        // What is on the link first, so that a client which adds them in order knows how to reach a router; the default route last.
        routes.sort_by_key(|route| {
            (
                route.gateway.is_some(),
                32 - route.prefix_length.min(32),
                route.destination,
            )
        });
        routes.dedup();
        if routes.len() > BRIDGED_ROUTES_MAX {
            return Err(PlanError::TooManyRoutes(self.name.clone(), routes.len()));
        }
        Ok(Some(BridgedIpv4 {
            address,
            prefix_length,
            routes,
        }))
    }

    /// The best route to each destination.
    fn routes4(&self) -> Vec<Route> {
        let mut sorted: Vec<&PodRoute> = self.routes.iter().collect();
        sorted.sort_by_key(|route| route.metric);
        let mut best: Vec<Route> = Vec::new();
        for route in sorted {
            let IpAddr::V4(destination) = route.destination else {
                continue;
            };
            let gateway = match route.gateway {
                None => None,
                Some(IpAddr::V4(gateway)) => Some(gateway),
                // IPv4 by a router that has IPv6 only: DHCP cannot say that.
                Some(IpAddr::V6(_)) => continue,
            };
            let known = |other: &Route| (other.destination, other.prefix_length) == (destination, route.prefix_length);
            if !best.iter().any(known) {
                best.push(Route {
                    destination,
                    prefix_length: route.prefix_length,
                    gateway,
                });
            }
        }
        best
    }

    fn ipv6(&self) -> Option<BridgedIpv6> {
        let (address, length) = self.addresses.iter().find_map(|it| match it.address {
            IpAddr::V6(address) => Some((address, it.prefix_length)),
            IpAddr::V4(_) => None,
        })?;
        let bits = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        let network = Ipv6Addr::from_bits(address.to_bits() & bits);
        let on_link = self.routes.iter().any(|route| {
            (route.destination, route.prefix_length, route.gateway) == (IpAddr::V6(network), length, None)
        });
        Some(BridgedIpv6 {
            address,
            prefix_length: if on_link { length } else { 128 },
            gateway_mac: None,
        })
    }

    fn gateway6(&self) -> Option<Ipv6Addr> {
        let defaults = self.routes.iter().filter_map(|route| match route.gateway {
            Some(IpAddr::V6(gateway)) if route.prefix_length == 0 => Some((route.metric, gateway)),
            _ => None,
        });
        defaults.min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An interface with these addresses and routes: `destination/length`, or `destination/length via gateway`.
    pub(in crate::network) fn port(addresses: &[&str], routes: &[&str]) -> PodInterface {
        let prefix = |text: &str| {
            let (address, length) = text.split_once('/').unwrap();
            (address.parse::<IpAddr>().unwrap(), length.parse::<u8>().unwrap())
        };
        PodInterface {
            index: 2,
            name: "eth0".into(),
            mac: "0a:58:0a:f4:01:07".parse().ok(),
            mtu: 1450,
            addresses: addresses
                .iter()
                .map(|text| {
                    let (address, prefix_length) = prefix(text);
                    Address { address, prefix_length }
                })
                .collect(),
            routes: (1..)
                .zip(routes)
                .map(|(metric, text)| {
                    let (to, gateway) = text
                        .split_once(" via ")
                        .map_or((*text, None), |(to, by)| (to, Some(by)));
                    let (destination, prefix_length) = prefix(to);
                    PodRoute {
                        destination,
                        prefix_length,
                        gateway: gateway.map(|text| text.parse().unwrap()),
                        metric,
                    }
                })
                .collect(),
        }
    }

    /// Prefix length and routes that a guest is told of.
    fn told(addresses: &[&str], routes: &[&str]) -> (u8, Vec<String>) {
        let ipv4 = port(addresses, routes).ipv4().unwrap().unwrap();
        let routes = ipv4.routes.iter().map(|route| {
            let to = format!("{}/{}", route.destination, route.prefix_length);
            route
                .gateway
                .map_or(to.clone(), |gateway| format!("{to} via {gateway}"))
        });
        (ipv4.prefix_length, routes.collect())
    }

    #[test]
    fn the_guest_has_the_interfaces_routes() {
        for (what, address, routes, length, expected) in [
            (
                "bridge",
                "10.244.1.7/24",
                &["0.0.0.0/0 via 10.244.1.1", "10.244.1.0/24"][..],
                24,
                &["0.0.0.0/0 via 10.244.1.1"][..],
            ),
            ("no routes", "10.50.0.7/24", &["10.50.0.0/24"], 24, &[]),
            (
                "calico",
                "10.244.1.7/32",
                &["0.0.0.0/0 via 169.254.1.1", "169.254.1.1/32"],
                32,
                &["169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1"],
            ),
            (
                "ptp",
                "10.244.1.7/24",
                &[
                    "0.0.0.0/0 via 10.244.1.1",
                    "10.244.1.0/24 via 10.244.1.1",
                    "10.244.1.1/32",
                ],
                32,
                &[
                    "10.244.1.1/32",
                    "10.244.1.0/24 via 10.244.1.1",
                    "0.0.0.0/0 via 10.244.1.1",
                ],
            ),
            (
                "a router that is nowhere",
                "10.244.1.7/32",
                &["0.0.0.0/0 via 192.0.2.1"],
                32,
                &["192.0.2.1/32", "0.0.0.0/0 via 192.0.2.1"],
            ),
            (
                "two default routes",
                "10.50.0.7/24",
                &["10.50.0.0/24", "0.0.0.0/0 via 10.50.0.1", "0.0.0.0/0 via 10.50.0.2"],
                24,
                &["0.0.0.0/0 via 10.50.0.1"],
            ),
            (
                "a network besides",
                "10.50.0.7/24",
                &["10.50.0.0/24", "192.168.0.0/16 via 10.50.0.9"],
                24,
                &["192.168.0.0/16 via 10.50.0.9"],
            ),
        ] {
            let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
            assert_eq!(told(&[address], routes), (length, expected), "{what}");
        }
    }

    #[test]
    fn ipv6_has_an_address_a_link_and_a_router() {
        let dual = port(
            &["10.244.1.7/24", "fd00:244:1::7/64", "fd00:244:1::8/64"],
            &["fd00:244:1::/64", "::/0 via fd00:244:1::1"],
        );
        let ipv6 = dual.ipv6().unwrap();
        assert_eq!(
            (ipv6.address, ipv6.prefix_length),
            ("fd00:244:1::7".parse().unwrap(), 64)
        );
        assert_eq!(dual.gateway6(), "fd00:244:1::1".parse().ok());
        let calico = port(&["fd00:244:1::7/128"], &["::/0 via fe80::ecee:eeff:feee:eeee"]);
        assert_eq!(calico.ipv6().unwrap().prefix_length, 128);
        assert_eq!(calico.gateway6(), "fe80::ecee:eeff:feee:eeee".parse().ok());
        let alone = port(&["fd00:50::7/64"], &["fd00:50::/64"]);
        assert_eq!((alone.ipv6().unwrap().prefix_length, alone.gateway6()), (64, None));
        assert_eq!(alone.ipv4().unwrap(), None);
    }

    #[test]
    fn what_cannot_be_taken_over_is_refused() {
        let bridged = |port| Bridged::new("tap0".into(), "default".into(), 1, port);
        let loopback = PodInterface {
            mac: None,
            name: "lo".into(),
            ..port(&[], &[])
        };
        let error = bridged(loopback).unwrap_err().to_string();
        assert_eq!(
            error,
            "the pod's interface lo is no Ethernet, which a bridge needs: use masquerade"
        );
        let many: Vec<String> = (0..17).map(|number| format!("10.{number}.0.0/16")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let error = bridged(port(&["10.244.1.7/24"], &many)).unwrap_err().to_string();
        assert!(
            error.starts_with("the pod's interface eth0 has 17 routes, and a guest can be told of 16"),
            "{error}"
        );
        let open = bridged(port(&[], &[])).unwrap();
        assert!(!open.has_addresses());
        assert_eq!(open.network(None).mac, "0a:58:0a:f4:01:07");
    }
}
