//! What is to be made in a pod's network namespace. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use node_shim_protocol::agent::{InterfaceBinding, InterfaceRequest, MAX_INTERFACES, MAX_QUEUES};

use super::address::{Mac, ParseMacError};
use super::bridged::{Bridged, PodInterface};

/// Prefix length of each guest network.
pub(crate) const PREFIX_LENGTH: u8 = 24;
/// Prefix length of each guest IPv6 network.
pub(crate) const PREFIX_LENGTH_6: u8 = 64;
/// The least MTU with which IPv6 works (RFC 8200, section 5).
const MIN_MTU_6: u16 = 1280;
/// Longest interface name in the VM's spec in bytes (a DNS label).
const MAX_NAME_BYTES: usize = 63;
/// Longest name of a network device (`IFNAMSIZ` less its NUL).
const MAX_DEVICE_BYTES: usize = 15;

/// Why a guest cannot be connected here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// More interfaces than one packet can carry taps for.
    #[error("a VM can have at most {MAX_INTERFACES} interfaces, not {0}")]
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
    /// A name that no network device has.
    #[error("the name of a pod's interface must be that of a network device, 1 to {MAX_DEVICE_BYTES} bytes")]
    Device,
    /// Two that want to be the pod's interface, or one that wants to be behind it.
    #[error("interface {1} is to be the pod's interface {0}, which another interface uses: leave out one of them")]
    Taken(String, String),
    /// No frames.
    #[error("the pod's interface {0} is no Ethernet, which a bridge needs: use masquerade")]
    NoEthernet(String),
    /// More than DHCP is asked to say.
    #[error(
        "the pod's interface {0} has {1} routes, and a guest can be told of {max}: give the network fewer, or use masquerade",
        max = node_shim_protocol::config::BRIDGED_ROUTES_MAX
    )]
    TooManyRoutes(String, usize),
}

/// An interface that a guest has, as it was asked for and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestInterface {
    name: String,
    mac: Mac,
    queues: u16,
    /// How it is connected.
    pub(crate) binding: InterfaceBinding,
    /// The pod's interface on its network; that of the default route where there is none.
    pub(crate) pod_interface: Option<String>,
}

impl GuestInterface {
    /// Checks the interfaces that a shim asks for.
    pub(crate) fn check_all(requests: &[InterfaceRequest]) -> Result<Vec<Self>, PlanError> {
        if requests.len() > MAX_INTERFACES {
            return Err(PlanError::TooManyInterfaces(requests.len()));
        }
        let mut interfaces: Vec<Self> = Vec::with_capacity(requests.len());
        for InterfaceRequest {
            name,
            mac,
            queues,
            binding,
            pod_interface,
        } in requests
        {
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(PlanError::Name);
            }
            if interfaces.iter().any(|other| other.name == *name) {
                return Err(PlanError::DuplicateName(name.clone()));
            }
            if !(1..=MAX_QUEUES).contains(queues) {
                return Err(PlanError::Queues(*queues));
            }
            if pod_interface.as_deref().is_some_and(|device| !is_device_name(device)) {
                return Err(PlanError::Device);
            }
            let mac = mac.parse().map_err(|source| PlanError::Mac {
                interface: name.clone(),
                source,
            })?;
            interfaces.push(Self {
                name: name.clone(),
                mac,
                queues: *queues,
                binding: *binding,
                pod_interface: pod_interface.clone(),
            });
        }
        Ok(interfaces)
    }
}

fn is_device_name(name: &str) -> bool {
    let odd = |letter: char| letter == '/' || letter == ':' || letter.is_whitespace() || letter.is_control();
    (1..=MAX_DEVICE_BYTES).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(odd)
}

/// The pod's interface that a guest is behind.
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
    /// The pod's interface by which its packets leave.
    pub(crate) uplink: Uplink,
    /// That is the one of the pod's own network.
    pub(crate) on_pod_network: bool,
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

/// What is there for an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// For masquerade.
    Uplink(Uplink),
    /// For a bridge.
    Port(PodInterface),
}

/// What is to be made for an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    /// A private network behind an uplink.
    Masquerade(Tap),
    /// The place of the pod's interface.
    Bridge(Bridged),
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// One for each interface, in order. What comes to an uplink goes to the first tap behind it.
    pub(crate) connections: Vec<Connection>,
}

impl Plan {
    /// The plan for `interfaces`, each with what was found for it. Interface i has the tap `tap<i>`, and with masquerade the networks
    /// 10.0.(2+i).0/24 and `fd10:0:(2+i)::/64`.
    pub(crate) fn new(interfaces: &[GuestInterface], found: Vec<Found>) -> Result<Self, PlanError> {
        let numbers = 0..u8::try_from(MAX_INTERFACES).unwrap_or(u8::MAX);
        let connections = numbers
            .zip(interfaces.iter().zip(found))
            .map(|(number, (interface, found))| match found {
                Found::Uplink(uplink) => Ok(Connection::Masquerade(Tap::new(number, interface, uplink))),
                Found::Port(port) => {
                    let (device, name) = (device(number), interface.name.clone());
                    Bridged::new(device, name, interface.queues, port).map(Connection::Bridge)
                }
            })
            .collect::<Result<_, _>>()?;
        let plan = Self { connections };
        plan.check_overlaps()?;
        plan.check_ports()?;
        Ok(plan)
    }

    /// The taps with a private network.
    pub(crate) fn taps(&self) -> impl Iterator<Item = &Tap> {
        self.connections.iter().filter_map(|connection| match connection {
            Connection::Masquerade(tap) => Some(tap),
            Connection::Bridge(_) => None,
        })
    }

    /// The interfaces that take the pod's place.
    pub(crate) fn bridged(&self) -> impl Iterator<Item = &Bridged> {
        self.connections.iter().filter_map(|connection| match connection {
            Connection::Masquerade(_) => None,
            Connection::Bridge(bridged) => Some(bridged),
        })
    }

    /// The first tap behind each uplink.
    pub(crate) fn first_taps(&self) -> impl Iterator<Item = &Tap> {
        self.taps().filter(|tap| {
            let mut same = self.taps().filter(|other| other.uplink.index == tap.uplink.index);
            same.next().is_some_and(|first| first.device == tap.device)
        })
    }

    /// A guest's network has none of the pod's addresses in it.
    fn check_overlaps(&self) -> Result<(), PlanError> {
        for tap in self.taps() {
            for uplink in self.taps().map(|tap| &tap.uplink) {
                let mut addresses = uplink.addresses.iter();
                if let Some(inside) = addresses.find(|it| it.octets()[..3] == tap.network.octets()[..3]) {
                    return Err(PlanError::Overlap((*inside).into(), tap.network.into(), PREFIX_LENGTH));
                }
                let Some(ipv6) = &tap.ipv6 else { continue };
                let mut addresses = uplink.addresses6.iter();
                if let Some(inside) = addresses.find(|it| it.segments()[..4] == ipv6.network.segments()[..4]) {
                    return Err(PlanError::Overlap(
                        (*inside).into(),
                        ipv6.network.into(),
                        PREFIX_LENGTH_6,
                    ));
                }
            }
        }
        Ok(())
    }

    /// A guest that is the pod's interface is alone in it.
    fn check_ports(&self) -> Result<(), PlanError> {
        for bridged in self.bridged() {
            let index = bridged.port.index;
            let users = self.bridged().filter(|other| other.port.index == index).count();
            if users > 1 || self.taps().any(|tap| tap.uplink.index == index) {
                return Err(PlanError::Taken(bridged.port.name.clone(), bridged.interface.clone()));
            }
        }
        Ok(())
    }
}

/// Name of the tap of an interface.
fn device(number: u8) -> String {
    format!("tap{number}")
}

impl Tap {
    fn new(number: u8, interface: &GuestInterface, uplink: Uplink) -> Self {
        let address = |host| Ipv4Addr::new(10, 0, 2 + number, host);
        let address6 = |host| Ipv6Addr::new(0xfd10, 0, 2 + u16::from(number), 0, 0, 0, 0, host);
        Self {
            device: device(number),
            interface: interface.name.clone(),
            network: address(0),
            gateway: address(1),
            gateway_mac: Mac::local(number),
            guest: address(2),
            guest_mac: interface.mac,
            queues: interface.queues,
            ipv6: uplink.has_ipv6().then(|| Tap6 {
                network: address6(0),
                gateway: address6(1),
                guest: address6(2),
            }),
            uplink,
            on_pod_network: interface.pod_interface.is_none(),
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
                binding: InterfaceBinding::Masquerade,
                pod_interface: None,
            })
            .collect();
        GuestInterface::check_all(&requests).unwrap()
    }

    /// So many interfaces behind one uplink.
    pub(in crate::network) fn plan(count: u8, uplink: Uplink) -> Result<Plan, PlanError> {
        let found = vec![Found::Uplink(uplink); usize::from(count)];
        Plan::new(&interfaces(count), found)
    }

    fn taps(plan: &Plan) -> Vec<&Tap> {
        plan.taps().collect()
    }

    #[test]
    fn the_first_interface_has_the_documented_addresses() {
        let plan = plan(1, uplink()).unwrap();
        let [tap] = taps(&plan)[..] else { panic!() };
        assert_eq!((tap.device.as_str(), tap.interface.as_str()), ("tap0", "net0"));
        assert_eq!(
            (tap.gateway, tap.guest),
            (Ipv4Addr::new(10, 0, 2, 1), Ipv4Addr::new(10, 0, 2, 2))
        );
    }

    #[test]
    fn every_interface_has_a_network_of_its_own() {
        let plan = plan(8, uplink()).unwrap();
        assert_eq!(taps(&plan)[7].guest, Ipv4Addr::new(10, 0, 9, 2));
        assert_eq!(taps(&plan)[7].device, "tap7");
    }

    #[test]
    fn requests_that_cannot_be_met_are_refused() {
        let request = |name: &str, mac: &str| InterfaceRequest {
            name: name.into(),
            mac: mac.into(),
            queues: 1,
            binding: InterfaceBinding::Masquerade,
            pod_interface: None,
        };
        let good = request("a", "02:00:00:00:00:01");
        let check = |requests: &[InterfaceRequest]| GuestInterface::check_all(requests).unwrap_err().to_string();
        assert_eq!(
            check(&vec![good.clone(); 9]),
            "a VM can have at most 8 interfaces, not 9"
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
        let error = plan(1, uplink).unwrap_err();
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
            plan(
                2,
                Uplink {
                    mtu,
                    addresses6,
                    ..uplink()
                },
            )
        };
        let dual = with("fd00:244:1::7", 1450).unwrap();
        assert_eq!(
            taps(&dual)[1].ipv6.unwrap().guest,
            "fd10:0:3::2".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(
            taps(&with("fd00:244:1::7", 1279).unwrap())[0].ipv6,
            None,
            "the MTU is too small"
        );
        assert_eq!(taps(&plan(1, uplink()).unwrap())[0].ipv6, None);
        let error = with("fd10:0:3::9", 1450).unwrap_err().to_string();
        assert!(
            error.starts_with("the pod's address fd10:0:3::9 is in the guest network fd10:0:3::/64"),
            "{error}"
        );
    }

    #[test]
    fn a_guest_that_is_the_pods_interface_is_alone_in_it() {
        let port = |index| {
            Found::Port(PodInterface {
                index,
                ..super::super::bridged::tests::port(&[], &[])
            })
        };
        let refused = |found: Vec<Found>| Plan::new(&interfaces(2), found).unwrap_err().to_string();
        let expected =
            "interface net0 is to be the pod's interface eth0, which another interface uses: leave out one of them";
        assert_eq!(refused(vec![port(2), port(2)]), expected);
        assert_eq!(refused(vec![port(2), Found::Uplink(uplink())]), expected);
        let plan = Plan::new(&interfaces(2), vec![port(3), Found::Uplink(uplink())]).unwrap();
        let devices = (
            plan.bridged().next().unwrap().device.as_str(),
            taps(&plan)[0].device.as_str(),
        );
        assert_eq!(devices, ("tap0", "tap1"));
        assert_eq!(
            taps(&plan)[0].guest,
            Ipv4Addr::new(10, 0, 3, 2),
            "by its number among all"
        );
    }

    #[test]
    fn each_uplink_leads_to_its_first_tap() {
        let second = Uplink {
            index: 3,
            name: "net1".into(),
            ..uplink()
        };
        let found = [uplink(), second.clone(), second].map(Found::Uplink).to_vec();
        let plan = Plan::new(&interfaces(3), found).unwrap();
        let first: Vec<&str> = plan.first_taps().map(|tap| tap.device.as_str()).collect();
        assert_eq!(first, ["tap0", "tap1"]);
    }

    #[test]
    fn names_of_devices_are_checked() {
        for (name, good) in [
            ("eth0", true),
            ("net0123456789ab", true),
            ("net0123456789abc", false),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
        ] {
            assert_eq!(is_device_name(name), good, "{name:?}");
        }
    }
}
