//! Connects a guest to its pod's network: a tap in the pod's network namespace, masquerade between it and the pod's own interface.
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
mod forwarding;
mod link;
mod namespace;
mod nftables;
mod plan;
mod ruleset;
mod tap;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

use node_shim_protocol::agent::InterfaceGrant;
use node_shim_protocol::config::{GuestNetwork, GuestNetwork6};

pub(crate) use namespace::PodNamespace;
pub(crate) use plan::{GuestInterface, Plan};

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
}

impl NetworkError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Namespace(error) => error.is_retryable(),
            Self::Plan(_) => false,
            Self::Link(_) | Self::Tap(_) | Self::Nftables(_) => true,
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
    let mut uplink = links.uplink().map_err(NetworkError::Link)?;
    if uplink.has_ipv6()
        && let Err(error) = forwarding::enable_ipv6(&uplink.name)
    {
        tracing::warn!("a VM gets no IPv6, although its pod has it: {error}");
        uplink.addresses6.clear();
    }
    let plan = Plan::new(interfaces, uplink).map_err(NetworkError::Plan)?;
    let attached = plan
        .taps
        .iter()
        .map(|tap| connect(&mut links, &plan, tap))
        .collect::<Result<_, _>>()?;
    nftables::replace_table(&ruleset::table(&plan)).map_err(NetworkError::Nftables)?;
    links
        .forward_ipv4(plan.uplink.index, &plan.uplink.name)
        .map_err(NetworkError::Link)?;
    Ok(attached)
}

fn connect(links: &mut link::Links, plan: &Plan, planned: &plan::Tap) -> Result<Attached, NetworkError> {
    links.remove(&planned.device).map_err(NetworkError::Link)?;
    let queues = tap::open(&planned.device, planned.queues).map_err(NetworkError::Tap)?;
    links.set_up_tap(planned, plan.uplink.mtu).map_err(NetworkError::Link)?;
    let network = GuestNetwork {
        address: planned.guest,
        prefix_length: plan::PREFIX_LENGTH,
        gateway: planned.gateway,
        gateway_mac: planned.gateway_mac.to_string(),
        mtu: plan.uplink.mtu,
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
            network,
        },
        queues,
    })
}
