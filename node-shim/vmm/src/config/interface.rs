//! A VM's network interfaces, checked.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use node_shim_protocol::config::{
    self as protocol, BRIDGED_ROUTES_MAX, Binding, BridgedIpv4, BridgedIpv6, BridgedNetwork, GuestNetwork,
    GuestNetwork6,
};
use node_shim_virtio::net::MacAddress;
use node_shim_virtio::rate_limit::Limits;

use super::{ConfigError, check_name, check_rate_limit, refuse};

/// Most interfaces: those that the agent gives taps for.
const INTERFACES_MAX: usize = node_shim_protocol::agent::MAX_INTERFACES;
/// Longest name of a network device (`IFNAMSIZ` less its NUL).
const DEVICE_NAME_MAX_BYTES: usize = 15;

/// A network interface.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    /// Unique among the interfaces.
    pub(crate) name: String,
    /// Unicast, locally administered.
    pub(crate) mac: MacAddress,
    /// How much the guest may receive.
    pub(crate) receive_limits: Limits,
    /// How much the guest may send.
    pub(crate) transmit_limits: Limits,
    /// How it is connected.
    pub(crate) binding: Binding,
    /// The pod's interface on its network, where it is not that of the default route.
    pub(crate) pod_link: Option<String>,
}

/// A unicast address; `None` for what is no address or a group's (bit 0 of the first byte).
fn unicast(text: &str) -> Option<MacAddress> {
    text.parse::<MacAddress>().ok().filter(|mac| mac.0[0] & 1 == 0)
}

/// Bit 1 of the first byte: not from a manufacturer's range.
const fn is_local(mac: MacAddress) -> bool {
    mac.0[0] & 2 != 0
}

/// Checks the interfaces, in the guest's order.
pub(super) fn check_all(interfaces: Vec<protocol::Interface>) -> Result<Vec<Interface>, ConfigError> {
    if interfaces.len() > INTERFACES_MAX {
        return refuse(
            "interfaces",
            format!("there are {}; write at most {INTERFACES_MAX}", interfaces.len()),
        );
    }
    let mut names = BTreeSet::new();
    let mut macs = BTreeSet::new();
    let mut checked = Vec::with_capacity(interfaces.len());
    for (index, interface) in interfaces.into_iter().enumerate() {
        let protocol::Interface {
            name,
            mac,
            receive_limit,
            transmit_limit,
            binding,
            pod_interface,
        } = interface;
        check_name(&format!("interfaces[{index}].name"), &name, &mut names)?;
        let field = format!("interfaces[{index}].mac");
        let mac = check_mac(&field, &mac)?;
        if !macs.insert(mac.0) {
            return refuse(field, "another interface has the same; write one address for each");
        }
        let field = format!("interfaces[{index}].podInterface");
        match (&binding, &pod_interface) {
            (Binding::Tap { device, network }, None) => {
                check_tap(&format!("interfaces[{index}].binding.tap"), device, network)?;
            }
            (Binding::Tap { .. }, Some(_)) => return refuse(field, "leave it out: the tap is there already"),
            (Binding::Masquerade | Binding::Bridge, Some(device)) if !is_device_name(device) => {
                return refuse(
                    field,
                    format!("write the name of an interface of the pod, 1 to {DEVICE_NAME_MAX_BYTES} bytes"),
                );
            }
            (Binding::Masquerade | Binding::Bridge, _) => {}
        }
        let limits = |name: &str, limit| check_rate_limit(&format!("interfaces[{index}].{name}"), limit);
        checked.push(Interface {
            name,
            mac,
            receive_limits: limits("receiveLimit", receive_limit)?,
            transmit_limits: limits("transmitLimit", transmit_limit)?,
            binding,
            pod_link: pod_interface,
        });
    }
    Ok(checked)
}

fn is_device_name(name: &str) -> bool {
    (1..=DEVICE_NAME_MAX_BYTES).contains(&name.len())
        && !name
            .chars()
            .any(|c| c == '/' || c == '%' || c.is_whitespace() || c.is_control())
}

fn check_tap(field: &str, device: &str, network: &GuestNetwork) -> Result<(), ConfigError> {
    if !is_device_name(device) {
        return refuse(
            format!("{field}.device"),
            format!("write the name of a tap device, 1 to {DEVICE_NAME_MAX_BYTES} bytes"),
        );
    }
    check_network(&format!("{field}.network"), network)
}

/// Checks what a guest is told about its network; the agent's answer passes here as well.
pub(crate) fn check_network(field: &str, network: &GuestNetwork) -> Result<(), ConfigError> {
    if !(1..=30).contains(&network.prefix_length) {
        return refuse(format!("{field}.prefixLength"), "write 1 to 30");
    }
    let mask = u32::MAX << (32 - u32::from(network.prefix_length));
    let (guest, gateway) = (u32::from(network.address), u32::from(network.gateway));
    if guest & mask != gateway & mask || guest == gateway {
        return refuse(
            format!("{field}.gateway"),
            "write another address of the guest's own subnet",
        );
    }
    if unicast(&network.gateway_mac).is_none() {
        return refuse(
            format!("{field}.gatewayMac"),
            "write a unicast address such as 02:00:00:00:00:02",
        );
    }
    check_mtu(field, network.mtu)?;
    network
        .ipv6
        .as_ref()
        .map_or(Ok(()), |ipv6| check_network6(field, ipv6, network.mtu))
}

fn check_mtu(field: &str, mtu: u16) -> Result<(), ConfigError> {
    if mtu < 576 {
        return refuse(format!("{field}.mtu"), "write 576 to 65535");
    }
    Ok(())
}

/// Checks what a guest gets that takes the place of its pod's interface: the agent's answer.
pub(crate) fn check_bridged(field: &str, network: &BridgedNetwork) -> Result<(), ConfigError> {
    if unicast(&network.mac).is_none() {
        return refuse(format!("{field}.mac"), "write a unicast address");
    }
    check_mtu(field, network.mtu)?;
    if let Some(ipv4) = &network.ipv4 {
        check_bridged4(&format!("{field}.ipv4"), ipv4)?;
    }
    if let Some(ipv6) = &network.ipv6 {
        check_bridged6(&format!("{field}.ipv6"), ipv6)?;
    }
    Ok(())
}

fn check_bridged4(field: &str, network: &BridgedIpv4) -> Result<(), ConfigError> {
    let address = network.address;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast() {
        return refuse(format!("{field}.address"), "write a unicast address");
    }
    if !(1..=32).contains(&network.prefix_length) {
        return refuse(format!("{field}.prefixLength"), "write 1 to 32");
    }
    if network.routes.len() > BRIDGED_ROUTES_MAX {
        return refuse(format!("{field}.routes"), format!("write at most {BRIDGED_ROUTES_MAX}"));
    }
    match network.routes.iter().position(|route| route.prefix_length > 32) {
        Some(index) => refuse(format!("{field}.routes[{index}].prefixLength"), "write 0 to 32"),
        None => Ok(()),
    }
}

fn check_bridged6(field: &str, network: &BridgedIpv6) -> Result<(), ConfigError> {
    if !is_usable6(network.address) {
        return refuse(format!("{field}.address"), "write a unicast address");
    }
    if !(1..=128).contains(&network.prefix_length) {
        return refuse(format!("{field}.prefixLength"), "write 1 to 128");
    }
    match &network.gateway_mac {
        Some(mac) if unicast(mac).is_none() => refuse(format!("{field}.gatewayMac"), "write a unicast address"),
        _ => Ok(()),
    }
}

/// Whether a guest can have an address for what is beyond its link.
fn is_usable6(address: Ipv6Addr) -> bool {
    !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && !address.is_unicast_link_local()
        && address.to_ipv4_mapped().is_none()
}

fn check_network6(field: &str, network: &GuestNetwork6, mtu: u16) -> Result<(), ConfigError> {
    let field = format!("{field}.ipv6");
    if !(1..=126).contains(&network.prefix_length) {
        return refuse(format!("{field}.prefixLength"), "write 1 to 126");
    }
    if !is_usable6(network.address) {
        return refuse(
            format!("{field}.address"),
            "write a unicast address such as fd10:0:2::2",
        );
    }
    let host_bits = 128 - u32::from(network.prefix_length);
    let same_network = (network.address.to_bits() ^ network.gateway.to_bits()) >> host_bits == 0;
    if !is_usable6(network.gateway) || !same_network || network.address == network.gateway {
        return refuse(
            format!("{field}.gateway"),
            "write another address of the guest's own subnet",
        );
    }
    if mtu < 1280 {
        return refuse(
            field,
            format!("IPv6 needs an mtu of 1280 and it is {mtu}; leave it out"),
        );
    }
    Ok(())
}

/// The guest's address on a network that it may be on.
pub(crate) fn check_mac(field: &str, mac: &str) -> Result<MacAddress, ConfigError> {
    match unicast(mac).filter(|mac| is_local(*mac)) {
        Some(mac) => Ok(mac),
        None => refuse(
            field,
            "write a locally administered unicast address such as 02:00:00:00:00:01",
        ),
    }
}
