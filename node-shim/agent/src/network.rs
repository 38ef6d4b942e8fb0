//! Connects a guest to its pod's networks: for each interface a tap in the pod's network namespace, and masquerade between it and an interface of
//! the pod, or nothing between them (a bridge: see [`bridged`] and [`wire`]).
//!
//! ```text
//!            pod's network namespace                                     in the shim
//! node ── eth0 (uplink) ── forwarding, nftables table `tandem` ── tap0 ══ descriptor ══ virtio-net ── guest
//!         pod's address    DNAT in, masquerade out                10.0.2.1                            10.0.2.2
//! ```
//!
//! A pod with an IPv6 address has the same for IPv6: the guest is `fd10:0:2::2` behind `fd10:0:2::1`. The gateway's link-local address, its
//! router advertisements and DHCPv6 are the shim's.
//!
//! Nothing of it is remembered: the tap lives as long as the shim's descriptor, the rest as long as the namespace.

mod address;
mod bridged;
mod forwarding;
mod link;
mod namespace;
mod neighbour;
mod nftables;
mod plan;
mod pod_interface;
mod ruleset;
mod tap;
#[cfg(test)]
mod tests;
mod wire;

use std::os::fd::OwnedFd;

use node_shim_protocol::agent::{GrantedNetwork, InterfaceBinding, InterfaceGrant};
use node_shim_protocol::config::{GuestNetwork, GuestNetwork6};

use bridged::Bridged;
pub(crate) use namespace::PodNamespace;
pub(crate) use plan::GuestInterface;
use plan::{Connection, Found, Plan};

/// Why a guest could not be connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The caller's namespace is unusable.
    #[error(transparent)]
    Namespace(namespace::NamespaceError),
    /// The pod's network or the request does not allow it.
    #[error(transparent)]
    Plan(plan::PlanError),
    /// Interfaces, addresses or routes.
    #[error(transparent)]
    Link(link::LinkError),
    /// The tap.
    #[error(transparent)]
    Tap(tap::TapError),
    /// The nftables table.
    #[error(
        "failed to write the nftables table `tandem` in the pod's network namespace: does the node's kernel have nf_tables and nft_nat?"
    )]
    Nftables(#[source] nftables::NftablesError),
    /// The table of what is bridged.
    #[error(
        "failed to connect the pod's interface and the guest by nftables: does the node's kernel have nf_tables with CONFIG_NF_TABLES_NETDEV, and \
         nft_fwd_netdev?"
    )]
    Wire(#[source] nftables::NftablesError),
}

impl NetworkError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Namespace(error) => error.is_retryable(),
            Self::Plan(_) => false,
            Self::Link(error) => error.is_retryable(),
            Self::Tap(_) | Self::Nftables(_) | Self::Wire(_) => true,
        }
    }
}

/// A guest interface that is connected.
#[derive(Debug)]
pub(crate) struct Attached {
    /// What the shim is told.
    pub(crate) grant: InterfaceGrant,
    /// The tap's queues: nonblocking, with a virtio-net header before each frame. It vanishes with its last descriptor.
    pub(crate) queues: Vec<OwnedFd>,
}

/// Connects `interfaces` inside `namespace`, in place of whatever an earlier shim of the pod left there.
pub(crate) async fn attach(
    namespace: PodNamespace,
    interfaces: Vec<GuestInterface>,
) -> Result<Vec<Attached>, NetworkError> {
    if interfaces.is_empty() {
        return Ok(Vec::new());
    }
    let work = move || attach_here(&interfaces);
    namespace.run(work).await.map_err(NetworkError::Namespace)?
}

/// Does the work of [`attach`] in the calling thread's network namespace.
fn attach_here(interfaces: &[GuestInterface]) -> Result<Vec<Attached>, NetworkError> {
    let mut links = link::Links::new();
    let found = interfaces
        .iter()
        .map(|interface| find(&mut links, interface))
        .collect::<Result<_, _>>()?;
    let plan = Plan::new(interfaces, found).map_err(NetworkError::Plan)?;
    if plan.bridged().next().is_some() {
        // What an earlier guest has is ours again: also what a router is asked below, and answers.
        nftables::replace_table(&wire::table([])).map_err(NetworkError::Wire)?;
    }
    let mut wires = Vec::new();
    let mut attached = Vec::with_capacity(interfaces.len());
    for connection in &plan.connections {
        attached.push(match connection {
            Connection::Masquerade(tap) => connect(&mut links, tap)?,
            Connection::Bridge(bridged) => {
                let (index, connected) = take_over(&mut links, bridged)?;
                wires.push((bridged, index));
                connected
            }
        });
    }
    if plan.taps().next().is_some() {
        nftables::replace_table(&ruleset::table(&plan)).map_err(NetworkError::Nftables)?;
    }
    for tap in plan.first_taps() {
        links
            .forward_ipv4(tap.uplink.index, &tap.uplink.name)
            .map_err(NetworkError::Link)?;
    }
    if !wires.is_empty() {
        nftables::replace_table(&wire::table(wires)).map_err(NetworkError::Wire)?;
    }
    Ok(attached)
}

/// What there is for an interface.
fn find(links: &mut link::Links, interface: &GuestInterface) -> Result<Found, NetworkError> {
    let name = interface.pod_interface.as_deref();
    match interface.binding {
        InterfaceBinding::Masquerade => {
            let mut uplink = links.uplink(name).map_err(NetworkError::Link)?;
            if uplink.has_ipv6()
                && let Err(error) = forwarding::enable_ipv6(&uplink.name)
            {
                tracing::warn!("a VM gets no IPv6, although its pod has it: {error}");
                uplink.addresses6.clear();
            }
            Ok(Found::Uplink(uplink))
        }
        InterfaceBinding::Bridge => links.port(name).map(Found::Port).map_err(NetworkError::Link),
    }
}

fn connect(links: &mut link::Links, planned: &plan::Tap) -> Result<Attached, NetworkError> {
    links.remove(&planned.device).map_err(NetworkError::Link)?;
    let queues = tap::open(&planned.device, planned.queues).map_err(NetworkError::Tap)?;
    links
        .set_up_tap(planned, planned.uplink.mtu)
        .map_err(NetworkError::Link)?;
    let network = GuestNetwork {
        address: planned.guest,
        prefix_length: plan::PREFIX_LENGTH,
        gateway: planned.gateway,
        gateway_mac: planned.gateway_mac.to_string(),
        mtu: planned.uplink.mtu,
        ipv6: planned.ipv6.map(|ipv6| GuestNetwork6 {
            address: ipv6.guest,
            prefix_length: plan::PREFIX_LENGTH_6,
            gateway: ipv6.gateway,
        }),
    };
    Ok(Attached {
        grant: InterfaceGrant {
            name: planned.interface.clone(),
            queues: planned.queues,
            network: GrantedNetwork::Masquerade(network),
        },
        queues,
    })
}

/// Makes the tap of a guest that is to be the pod's interface, and finds out what it is told; returns the tap's index, too.
fn take_over(links: &mut link::Links, bridged: &Bridged) -> Result<(u32, Attached), NetworkError> {
    links.open_port(bridged).map_err(NetworkError::Link)?;
    let router = bridged.gateway6.and_then(|router| {
        let found = neighbour::resolve(links, bridged.port.index, router);
        found
            .inspect_err(|error| {
                let interface = &bridged.port.name;
                tracing::warn!(
                    "a VM gets no IPv6 default route: the router {router} of {interface} was not found: {error}"
                );
            })
            .ok()
    });
    links.remove(&bridged.device).map_err(NetworkError::Link)?;
    let queues = tap::open(&bridged.device, bridged.queues).map_err(NetworkError::Tap)?;
    let index = links.set_up_bridged_tap(bridged).map_err(NetworkError::Link)?;
    let grant = InterfaceGrant {
        name: bridged.interface.clone(),
        queues: bridged.queues,
        network: GrantedNetwork::Bridge(bridged.network(router)),
    };
    Ok((index, Attached { grant, queues }))
}
