//! The kind `VirtualMachine`: one object is one VM.

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{
    RunPolicy, VirtualMachineStatus, boot::Boot, cloud_init::CloudInit, cpu::Cpu, disk::Disk, memory::Memory,
    network_interface::NetworkInterface, pod_metadata::PodMetadata, probe::Probe, scheduling,
};

/// Seconds that a guest has to power off, unless its spec says otherwise.
pub const DEFAULT_TERMINATION_GRACE_PERIOD_SECONDS: i64 = 60;

/// What a VM is and when it runs. Only its owner writes it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "tandem.dev",
    version = "v1alpha1",
    kind = "VirtualMachine",
    namespaced,
    status = "VirtualMachineStatus",
    derive = "PartialEq",
    doc = "A virtual machine that runs as one ordinary pod.",
    shortname = "vm",
    category = "all",
    category = "tandem",
    selectable = ".status.nodeName",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.status", description = "What the VM does, in one word"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the VM does what its spec says"
    ),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.nodeName", description = "Node that the VM runs on"),
    printcolumn(name = "IP", type_ = "string", json_path = ".status.podIP", description = "Address at which the VM is reached"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since the VM was created"),
    printcolumn(name = "CPU", type_ = "integer", json_path = ".spec.cpu.cores", description = "CPUs of the guest", priority = 1),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory.size", description = "Memory of the guest", priority = 1),
    printcolumn(
        name = "Kernel",
        type_ = "string",
        json_path = ".status.guest.kernel",
        description = "What was found to boot on the VM's disk",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why the VM is ready or not",
        priority = 1
    ),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')").message(
        "metadata.name is also the name of the pod and the guest's host name: write at most 63 characters of a-z, 0-9 and -, \
         with a letter or digit at both ends"
    ),
)]
#[cfg_attr(test, kube(cel))]
#[x_kube(validation = Rule::new("!has(self.livenessProbe) || !has(self.livenessProbe.successThreshold) || self.livenessProbe.successThreshold == 1")
    .message("livenessProbe.successThreshold can only be 1: leave it out"))]
#[x_kube(validation = Rule::new("(has(self.disks) && size(self.disks) > 0) || (has(self.boot) && has(self.boot.kernel))")
    .message("there is nothing to boot: write at least one disk that has a boot loader, or boot.kernel"))]
#[x_kube(validation = Rule::new("!has(self.boot) || !has(self.boot.disk) || (has(self.disks) && self.disks.exists(disk, disk.name == self.boot.disk))")
    .message("boot.disk is not the name of a disk: write the name of one of spec.disks"))]
pub struct VirtualMachineSpec {
    /// When the VM runs: Always if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_policy: Option<RunPolicy>,
    /// A VM that was started before this time (RFC 3339) is shut down and started again: write the present time to restart a VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 35), extend("format" = "date-time"))]
    pub restarted_at: Option<String>,
    /// The VM's CPUs.
    pub cpu: Cpu,
    /// The VM's memory.
    pub memory: Memory,
    /// What the VM starts from: what is on its first disk, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// The VM's disks, in the order in which the guest finds them: the first is `/dev/vda`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub disks: Vec<Disk>,
    /// The VM's network interfaces, in the order in which the guest finds them. Without any it has no network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[x_kube(validation = Rule::new("self.filter(interface, has(interface.masquerade)).size() <= 1")
        .message("at most one interface can be bound to the pod's network: leave masquerade on one of them and remove the others"))]
    pub interfaces: Vec<NetworkInterface>,
    /// What cloud-init finds in the guest. Without it there is no NoCloud disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// Labels and annotations that the VM's pod carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<PodMetadata>,
    /// Labels that a node must have, as in a pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::pod_metadata::labels")]
    pub node_selector: BTreeMap<String, String>,
    /// Affinity, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "scheduling::affinity")]
    pub affinity: Option<Affinity>,
    /// Tolerations, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "scheduling::tolerations")]
    pub tolerations: Vec<Toleration>,
    /// Topology spread constraints, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "scheduling::topology_spread_constraints")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority class, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Scheduler, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub scheduler_name: Option<String>,
    /// The VM is ready while this probe succeeds; without it, as soon as its VMM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<Probe>,
    /// The VM is killed, and started again as runPolicy says, when this probe fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<Probe>,
    /// Seconds that the guest has to power off after its power button was pressed; 60 if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub termination_grace_period_seconds: Option<i64>,
}

impl VirtualMachineSpec {
    /// The run policy, or its default.
    pub fn run_policy(&self) -> RunPolicy {
        self.run_policy.unwrap_or_default()
    }

    /// The grace period in seconds, or its default.
    pub fn termination_grace_period_seconds(&self) -> i64 {
        self.termination_grace_period_seconds
            .unwrap_or(DEFAULT_TERMINATION_GRACE_PERIOD_SECONDS)
    }
}

#[cfg(test)]
mod tests;
