//! What is to be made in a pod's network namespace. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use node_shim_protocol::agent::{InterfaceRequest, MAX_INTERFACES, MAX_QUEUES};

use super::address::{Mac, ParseMacError};

/// Prefix length of each guest network.
pub(crate) const PREFIX_LENGTH: u8 = 24;
/// Prefix length of each guest IPv6 network.
pub(crate) const PREFIX_LENGTH_6: u8 = 64;
/// The least MTU with which IPv6 works (RFC 8200, section 5).
const MIN_MTU_6: u16 = 1280;
/// Longest interface name in the VM's spec in bytes (a DNS label).
const MAX_NAME_BYTES: usize = 63;

/// Why a guest cannot be connected here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// More interfaces than one packet can carry taps for.
    #[error("a VM can have at most {MAX_INTERFACES} masquerade interfaces, not {0}")]
    TooManyInterfaces(usize),
    /// A name that is none.
    #[error("the name of an interface must have 1 to {MAX_NAME_BYTES} bytes")]
    Name,
    /// Two interfaces with one name.
    #[error("two interfaces are called {0}")]
    DuplicateName(String),
    /// A MAC address that is none.
    #[error("the MAC address of interface {interface} cannot be used: {source}")]
    Mac {
        /// The interface.
        interface: String,
        /// Why.
        source: ParseMacError,
    },
    /// A tap of no queues, or of more than vCPUs gain from.
    #[error("a tap can have 1 to {MAX_QUEUES} queues, not {0}")]
    Queues(u16),
    /// The guest could not tell its own network from the pod's.
    #[error("the pod's address {0} is in the guest network {1}/{2}: give the cluster another pod network")]
    Overlap(IpAddr, IpAddr, u8),
}

/// An interface that a guest has, as it was asked for and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestInterface {
    name: String,
    mac: Mac,
    queues: u16,
}

impl GuestInterface {
    /// Checks the interfaces that a shim asks for.
    pub(crate) fn check_all(requests: &[InterfaceRequest]) -> Result<Vec<Self>, PlanError> {
        if requests.len() > MAX_INTERFACES {
            return Err(PlanError::TooManyInterfaces(requests.len()));
        }
        let mut interfaces: Vec<Self> = Vec::with_capacity(requests.len());
        for InterfaceRequest { name, mac, queues } in requests {
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(PlanError::Name);
            }
            if interfaces.iter().any(|other| other.name == *name) {
                return Err(PlanError::DuplicateName(name.clone()));
            }
            if !(1..=MAX_QUEUES).contains(queues) {
                return Err(PlanError::Queues(*queues));
            }
            let mac = mac.parse().map_err(|source| PlanError::Mac {
                interface: name.clone(),
                source,
            })?;
            interfaces.push(Self {
                name: name.clone(),
                mac,
                queues: *queues,
            });
        }
        Ok(interfaces)
    }
}

/// The pod's own interface: the one of its default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    /// Interface index.
    pub(crate) index: u32,
    /// Interface name.
    pub(crate) name: String,
    /// Largest IP packet in bytes.
    pub(crate) mtu: u16,
    /// The pod's addresses on it.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// The pod's IPv6 addresses on it, if it has any.
    pub(crate) addresses6: Vec<Ipv6Addr>,
}

impl Uplink {
    /// Whether guests can be connected by IPv6.
    pub(crate) fn has_ipv6(&self) -> bool {
        !self.addresses6.is_empty() && self.mtu >= MIN_MTU_6
    }
}

/// A tap and the network behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tap {
    /// Name of the network device.
    pub(crate) device: String,
    /// Name of the interface in the VM's spec.
    pub(crate) interface: String,
    /// First address of the network.
    pub(crate) network: Ipv4Addr,
    /// The tap's own address.
    pub(crate) gateway: Ipv4Addr,
    /// The tap's own MAC address.
    pub(crate) gateway_mac: Mac,
    /// The guest's address.
    pub(crate) guest: Ipv4Addr,
    /// The guest's MAC address.
    pub(crate) guest_mac: Mac,
    /// How many queues it has.
    pub(crate) queues: u16,
    /// IPv6, where the pod has it.
    pub(crate) ipv6: Option<Tap6>,
}

/// The IPv6 network behind a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tap6 {
    /// First address of the network.
    pub(crate) network: Ipv6Addr,
    /// The tap's own address.
    pub(crate) gateway: Ipv6Addr,
    /// The guest's address.
    pub(crate) guest: Ipv6Addr,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The pod's own interface.
    pub(crate) uplink: Uplink,
    /// One tap for each interface. What comes to the pod goes to the first.
    pub(crate) taps: Vec<Tap>,
}

impl Plan {
    /// The plan for `interfaces` in a pod with `uplink`. Interface i has the networks 10.0.(2+i).0/24 and `fd10:0:(2+i)::/64`.
    pub(crate) fn new(interfaces: &[GuestInterface], uplink: Uplink) -> Result<Self, PlanError> {
        let numbers = 0..u8::try_from(MAX_INTERFACES).unwrap_or(u8::MAX);
        let taps: Vec<Tap> = numbers
            .zip(interfaces)
            .map(|(number, interface)| Tap::new(number, interface, uplink.has_ipv6()))
            .collect();
        for tap in &taps {
            if let Some(inside) = uplink
                .addresses
                .iter()
                .find(|address| address.octets()[..3] == tap.network.octets()[..3])
            {
                return Err(PlanError::Overlap((*inside).into(), tap.network.into(), PREFIX_LENGTH));
            }
            let network = tap.ipv6.map(|ipv6| ipv6.network);
            if let Some(network) = network
                && let Some(inside) = uplink
                    .addresses6
                    .iter()
                    .find(|address| address.segments()[..4] == network.segments()[..4])
            {
                return Err(PlanError::Overlap((*inside).into(), network.into(), PREFIX_LENGTH_6));
            }
        }
        Ok(Self { uplink, taps })
    }
}

impl Tap {
    fn new(number: u8, interface: &GuestInterface, ipv6: bool) -> Self {
        let address = |host| Ipv4Addr::new(10, 0, 2 + number, host);
        let address6 = |host| Ipv6Addr::new(0xfd10, 0, 2 + u16::from(number), 0, 0, 0, 0, host);
        Self {
            device: format!("tap{number}"),
            interface: interface.name.clone(),
            network: address(0),
            gateway: address(1),
            gateway_mac: Mac::local(number),
            guest: address(2),
            guest_mac: interface.mac,
            queues: interface.queues,
            ipv6: ipv6.then(|| Tap6 {
                network: address6(0),
                gateway: address6(1),
                guest: address6(2),
            }),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::network) fn uplink() -> Uplink {
        Uplink {
            index: 2,
            name: "eth0".into(),
            mtu: 1450,
            addresses: vec![Ipv4Addr::new(10, 244, 1, 7)],
            addresses6: Vec::new(),
        }
    }

    pub(in crate::network) fn interfaces(count: u8) -> Vec<GuestInterface> {
        let requests: Vec<_> = (0..count)
            .map(|number| InterfaceRequest {
                name: format!("net{number}"),
                mac: format!("02:00:00:00:01:{number:02x}"),
                queues: 1,
            })
            .collect();
        GuestInterface::check_all(&requests).unwrap()
    }

    #[test]
    fn the_first_interface_has_the_documented_addresses() {
        let plan = Plan::new(&interfaces(1), uplink()).unwrap();
        let [tap] = plan.taps.as_slice() else { panic!() };
        assert_eq!((tap.device.as_str(), tap.interface.as_str()), ("tap0", "net0"));
        assert_eq!(
            (tap.gateway, tap.guest),
            (Ipv4Addr::new(10, 0, 2, 1), Ipv4Addr::new(10, 0, 2, 2))
        );
    }

    #[test]
    fn every_interface_has_a_network_of_its_own() {
        let plan = Plan::new(&interfaces(8), uplink()).unwrap();
        assert_eq!(plan.taps[7].guest, Ipv4Addr::new(10, 0, 9, 2));
        assert_eq!(plan.taps[7].device, "tap7");
    }

    #[test]
    fn requests_that_cannot_be_met_are_refused() {
        let request = |name: &str, mac: &str| InterfaceRequest {
            name: name.into(),
            mac: mac.into(),
            queues: 1,
        };
        let good = request("a", "02:00:00:00:00:01");
        let check = |requests: &[InterfaceRequest]| GuestInterface::check_all(requests).unwrap_err().to_string();
        assert_eq!(
            check(&vec![good.clone(); 9]),
            "a VM can have at most 8 masquerade interfaces, not 9"
        );
        assert_eq!(check(&[good.clone(), good]), "two interfaces are called a");
        for queues in [0, 5, u16::MAX] {
            let request = InterfaceRequest {
                queues,
                ..request("a", "02:00:00:00:00:01")
            };
            assert_eq!(check(&[request]), format!("a tap can have 1 to 4 queues, not {queues}"));
        }
        assert!(check(&[request("", "02:00:00:00:00:01")]).contains("1 to 63 bytes"));
        assert!(check(&[request(&"x".repeat(64), "02:00:00:00:00:01")]).contains("1 to 63 bytes"));
        assert!(
            check(&[request("a", "ff:ff:ff:ff:ff:ff")]).starts_with("the MAC address of interface a cannot be used: ")
        );
    }

    #[test]
    fn a_pod_network_that_overlaps_is_refused() {
        let mut uplink = uplink();
        uplink.addresses.push(Ipv4Addr::new(10, 0, 2, 77));
        let error = Plan::new(&interfaces(1), uplink).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the pod's address 10.0.2.77 is in the guest network 10.0.2.0/24")
        );
    }

    #[test]
    fn a_guest_has_ipv6_where_its_pod_has() {
        let with = |address: &str, mtu| {
            let addresses6 = vec![address.parse().unwrap()];
            Plan::new(
                &interfaces(2),
                Uplink {
                    mtu,
                    addresses6,
                    ..uplink()
                },
            )
        };
        let plan = with("fd00:244:1::7", 1450).unwrap();
        assert_eq!(
            plan.taps[1].ipv6.unwrap().guest,
            "fd10:0:3::2".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(
            with("fd00:244:1::7", 1279).unwrap().taps[0].ipv6,
            None,
            "the MTU is too small"
        );
        assert_eq!(Plan::new(&interfaces(1), uplink()).unwrap().taps[0].ipv6, None);
        let error = with("fd10:0:3::9", 1450).unwrap_err().to_string();
        assert!(
            error.starts_with("the pod's address fd10:0:3::9 is in the guest network fd10:0:3::/64"),
            "{error}"
        );
    }
}
