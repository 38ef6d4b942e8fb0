//! The network interfaces of a VM.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::rate_limit::RateLimit;

/// A network interface: a name, exactly one binding, and a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.masquerade) != has(self.bridge)")
    .message("an interface has exactly one binding: write either masquerade: {} or bridge: {}"))]
pub struct NetworkInterface {
    /// Name of the interface, unique in the VM. The VM's own MAC address for it follows from it and from the VM's UID.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The guest has a private address behind the pod's own: what it sends leaves with the pod's address, and what comes for the pod,
    /// on every port, reaches the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<Masquerade>,
    /// The guest is on the network itself, with the MAC address and the IP addresses that the network gave the pod. On a network that gives
    /// none it is configured as any machine there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// The network, by a NetworkAttachmentDefinition of Multus; without it the pod's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multus: Option<MultusNetwork>,
    /// How much the guest may receive; without it as much as the node can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_limits: Option<RateLimit>,
    /// How much the guest may send; without it as much as the node can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmit_limits: Option<RateLimit>,
}

/// Settings of the masquerade binding: none so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {}

/// Settings of the bridge binding: none so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {}

/// A network that Multus connects the pod to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MultusNetwork {
    /// Name of the NetworkAttachmentDefinition: `name` in the VM's namespace, or `namespace/name`.
    #[schemars(
        length(min = 1, max = 317),
        pattern(r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$")
    )]
    pub network_name: String,
}

/// The annotation of a pod by which Multus learns what networks it is on.
pub const MULTUS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";
