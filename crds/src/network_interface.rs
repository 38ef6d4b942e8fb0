//! The network interfaces of a VM.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::rate_limit::RateLimit;

/// A network interface: a name and exactly one binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.masquerade)")
    .message("an interface has exactly one binding: write masquerade: {}"))]
pub struct NetworkInterface {
    /// Name of the interface, unique in the VM. The guest's MAC address follows from it and from the VM's UID.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The guest has a private address behind the pod's own: what it sends leaves with the pod's address, and what comes for the pod,
    /// on every port, reaches the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<Masquerade>,
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
