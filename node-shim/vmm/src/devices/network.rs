//! Network interfaces: a tap for each, and what its guest is told.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use node_shim_protocol::agent::{GrantedNetwork, InterfaceBinding, InterfaceGrant, InterfaceRequest};
use node_shim_protocol::config::{Binding, GuestNetwork};
use node_shim_virtio::net::{GuestIdentity, Link, MacAddress, Net, Options, PAIRS_MAX, Tap};
use node_shim_virtio::rate_limit::Limits;

use crate::config::{CheckedConfig, Interface};
use crate::{jail, log};

/// Longest resolv.conf that is read.
const RESOLV_CONF_MAX_BYTES: u64 = 16 * 1024;
/// What resolvers use (`MAXNS` of resolv.h).
const NAME_SERVERS_MAX: usize = 3;
/// As many as Kubernetes writes at most.
const SEARCH_MAX: usize = 32;

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The named tap cannot be opened.
    #[error(
        "interface `{interface}`: failed to attach to the tap `{device}`: {source}; make it beforehand, for this user"
    )]
    Attach {
        /// The interface.
        interface: String,
        /// The tap.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// The tap is not one that works.
    #[error("interface `{interface}`: {source}")]
    Tap {
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The agent granted less than it was asked for.
    #[error("interface `{interface}`: the node agent gave no tap for it")]
    NotGranted {
        /// The interface.
        interface: String,
    },
}

/// Queue pairs of each interface: one for each vCPU, up to what helps.
pub(crate) fn pairs(config: &CheckedConfig) -> u16 {
    u16::from(config.vcpus).clamp(1, PAIRS_MAX)
}

const _: () = assert!(PAIRS_MAX == node_shim_protocol::agent::MAX_QUEUES);

/// What the node agent is asked for: every interface whose tap is not there already.
pub(crate) fn requests(config: &CheckedConfig) -> Vec<InterfaceRequest> {
    let request = |interface: &Interface| {
        let binding = match interface.binding {
            Binding::Masquerade => InterfaceBinding::Masquerade,
            Binding::Bridge => InterfaceBinding::Bridge,
            Binding::Tap { .. } => return None,
        };
        Some(InterfaceRequest {
            name: interface.name.clone(),
            mac: interface.mac.to_string(),
            queues: pairs(config),
            binding,
            pod_interface: interface.pod_link.clone(),
        })
    };
    config.interfaces.iter().filter_map(request).collect()
}

/// Makes every interface, in the guest's order. `granted` are the agent's, in the order of [`requests`].
pub(crate) fn open_all(
    config: &CheckedConfig,
    granted: Vec<(InterfaceGrant, Vec<OwnedFd>)>,
) -> Result<Vec<Net>, NetworkError> {
    let resolver = Some(resolver());
    let mut granted = granted.into_iter();
    let mut nets = Vec::with_capacity(config.interfaces.len());
    for (index, interface) in config.interfaces.iter().enumerate() {
        let (network, queues) = match &interface.binding {
            Binding::Masquerade | Binding::Bridge => {
                let (grant, queues) = granted.next().ok_or_else(|| NetworkError::NotGranted {
                    interface: interface.name.clone(),
                })?;
                (grant.network, queues)
            }
            Binding::Tap { device, network } => {
                let queues = open_tap(device, pairs(config)).map_err(|source| NetworkError::Attach {
                    interface: interface.name.clone(),
                    device: device.clone(),
                    source,
                })?;
                (GrantedNetwork::Masquerade(network.clone()), queues)
            }
        };
        let card = Card {
            device: format!("net{index}"),
            interface: &interface.name,
            mac: interface.mac,
            host_name: config.guest_host_name(),
            receive_limits: interface.receive_limits,
            transmit_limits: interface.transmit_limits,
        };
        // A pod's other networks do not know the cluster's names.
        let resolver = resolver.filter(|_| interface.pod_link.is_none());
        nets.push(start(card, &network, queues, resolver)?);
    }
    Ok(nets)
}

/// An interface that is plugged into a running VM, with one queue: the tap that its user opened.
pub(crate) fn attach(
    name: &str,
    mac: MacAddress,
    host_name: &str,
    network: &GuestNetwork,
    tap: OwnedFd,
) -> Result<Net, NetworkError> {
    let card = Card {
        device: format!("net-{name}"),
        interface: name,
        mac,
        host_name,
        receive_limits: Limits::default(),
        transmit_limits: Limits::default(),
    };
    let network = GrantedNetwork::Masquerade(network.clone());
    start(card, &network, vec![tap], Some(resolver()))
}

/// What an interface is, beside its taps and its network.
struct Card<'a> {
    /// For logs.
    device: String,
    /// For errors.
    interface: &'a str,
    mac: MacAddress,
    host_name: &'a str,
    receive_limits: Limits,
    transmit_limits: Limits,
}

fn start(
    card: Card<'_>,
    network: &GrantedNetwork,
    queues: Vec<OwnedFd>,
    resolver: Option<&Resolver>,
) -> Result<Net, NetworkError> {
    let tap_error = |source| NetworkError::Tap {
        interface: card.interface.to_owned(),
        source,
    };
    let identity = match network {
        GrantedNetwork::Masquerade(network) => GuestIdentity::private(card.mac, network, card.host_name.to_owned()),
        GrantedNetwork::Bridge(network) => GuestIdentity::bridged(network, card.host_name.to_owned()),
    };
    let mut identity = identity.map_err(|error| tap_error(io::Error::other(error)))?;
    if let Some(resolver) = resolver {
        identity = identity.with_resolver(resolver.name_servers.clone(), resolver.search.clone());
    }
    let links: io::Result<Vec<Box<dyn Link>>> = queues
        .into_iter()
        .map(|queue| Ok(Box::new(Tap::new(queue)?) as Box<dyn Link>))
        .collect();
    let options = Options {
        name: card.device,
        guest: identity,
        receive_limits: card.receive_limits,
        transmit_limits: card.transmit_limits,
        log: log::guest,
        on_thread: jail::device_thread,
    };
    links.and_then(|links| Net::start(options, links)).map_err(tap_error)
}

/// Attaches to as many queues of a tap as it may have: to one, if it was made for one.
fn open_tap(device: &str, queues: u16) -> io::Result<Vec<OwnedFd>> {
    if queues > 1 {
        let all: io::Result<Vec<OwnedFd>> = (0..queues).map(|_| attach_queue(device, true)).collect();
        match all {
            // The kernel's answer to the wrong kind.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return result,
        }
    }
    Ok(vec![attach_queue(device, false)?])
}

/// Attaches to a tap with one queue by its name.
pub(crate) fn open_tap_queue(device: &str) -> io::Result<OwnedFd> {
    attach_queue(device, false)
}

/// Attaches to a tap by its name.
fn attach_queue(device: &str, multi: bool) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

/// The name servers and search domains that the guest is given: this machine's, which in a pod are the pod's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    name_servers: Vec<IpAddr>,
    search: Vec<String>,
}

/// This machine's, read once: when an interface is plugged later the file can no longer be opened.
fn resolver() -> &'static Resolver {
    static RESOLVER: OnceLock<Resolver> = OnceLock::new();
    RESOLVER.get_or_init(Resolver::of_this_machine)
}

impl Resolver {
    fn of_this_machine() -> Self {
        let mut text = String::new();
        let file = File::open("/etc/resolv.conf");
        match file.and_then(|file| file.take(RESOLV_CONF_MAX_BYTES).read_to_string(&mut text)) {
            Ok(_) => Self::parse(&text),
            Err(_) => Self::default(),
        }
    }

    /// resolv.conf(5): the last `search` or `domain` line counts. A loopback server is not the guest's to reach.
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    resolver
                        .name_servers
                        .extend(server.filter(|server| !server.is_loopback()));
                }
                Some("search" | "domain") => {
                    resolver.search = words
                        .take(SEARCH_MAX)
                        .map(|word| word.trim_end_matches('.').to_owned())
                        .collect();
                    resolver.search.retain(|domain| (1..=253).contains(&domain.len()));
                }
                _ => {}
            }
        }
        resolver.name_servers.truncate(NAME_SERVERS_MAX);
        resolver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_resolvers_read_it() {
        let text = "# comment\ndomain old.test\nsearch a.svc.cluster.local svc.cluster.local. \nnameserver 10.96.0.10\n\
                    nameserver ::1\nnameserver fd00:96::a\nnameserver fe80::1%eth0\nnameserver 127.0.0.53\noptions ndots:5\nnameserver\n";
        let resolver = Resolver::parse(text);
        let servers = ["10.96.0.10", "fd00:96::a"].map(|server| server.parse::<IpAddr>().unwrap());
        assert_eq!(resolver.name_servers, servers);
        assert_eq!(resolver.search, ["a.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!(Resolver::parse(""), Resolver::default());
    }

    #[test]
    fn lists_are_bounded() {
        let servers = "nameserver 10.0.0.1\n".repeat(100);
        let search = format!("search {}\n", "a ".repeat(100));
        let resolver = Resolver::parse(&(servers + &search));
        assert_eq!(
            (resolver.name_servers.len(), resolver.search.len()),
            (NAME_SERVERS_MAX, SEARCH_MAX)
        );
    }
}
