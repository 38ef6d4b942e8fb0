//! The kind `VirtualMachine`: one object is one VM.

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, Toleration, TopologySpreadConstraint};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{
    EvictionPolicy, RunPolicy, VirtualMachineStatus, boot::Boot, cloud_init::CloudInit, cpu::Cpu, disk::Disk,
    ignition::Ignition, instance_type::InstanceTypeReference, memory::Memory, network_interface::NetworkInterface,
    pod_metadata::PodMetadata, probe::Probe, scheduling,
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
    printcolumn(
        name = "Restart",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="RestartRequired")].status"#,
        description = "Whether changes of the spec wait for a restart"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since the VM was created"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.instanceType.name", description = "Instance type", priority = 1),
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
#[x_kube(validation = Rule::new("!has(self.startupProbe) || !has(self.startupProbe.successThreshold) || self.startupProbe.successThreshold == 1")
    .message("startupProbe.successThreshold can only be 1: leave it out"))]
#[x_kube(validation = Rule::new("has(self.instanceType) || (has(self.cpu) && has(self.memory))")
    .message("the VM has no size: write cpu.cores and memory.size, or instanceType.name"))]
#[x_kube(validation = Rule::new("!has(self.instanceType) || !(has(self.cpu) || has(self.memory))")
    .message("the instance type says cpu and memory: leave both out, or leave instanceType out"))]
#[x_kube(validation = Rule::new("!(has(self.cloudInit) && has(self.ignition))")
    .message("a guest is configured by cloud-init or by Ignition: write either cloudInit or ignition"))]
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
    /// A size from the cluster's list (`kubectl get vmtype`), instead of `cpu` and `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<InstanceTypeReference>,
    /// The VM's CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// The VM's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What the VM starts from: what is on its first disk, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// The VM's disks, in the order in which the guest finds them: the first is `/dev/vda`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[x_kube(validation = Rule::new("self.all(disk, !has(disk.persistentVolumeClaim) || self.exists_one(other, has(other.persistentVolumeClaim) && other.persistentVolumeClaim.claimName == disk.persistentVolumeClaim.claimName \
        && (has(disk.persistentVolumeClaim.volumeMode) && disk.persistentVolumeClaim.volumeMode == 'Block' || has(other.persistentVolumeClaim.volumeMode) && other.persistentVolumeClaim.volumeMode == 'Block' \
        || (has(disk.persistentVolumeClaim.path) ? disk.persistentVolumeClaim.path : '/disk.img') == (has(other.persistentVolumeClaim.path) ? other.persistentVolumeClaim.path : '/disk.img'))))")
        .message("two disks are the same part of one claim: write another path for one of them, or leave it out"))]
    pub disks: Vec<Disk>,
    /// The VM's network interfaces, in the order in which the guest finds them. Without any it has no network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[x_kube(validation = Rule::new("self.filter(interface, !has(interface.multus)).size() <= 1")
        .message("at most one interface can be on the pod's own network: write multus.networkName for the others, or remove them"))]
    pub interfaces: Vec<NetworkInterface>,
    /// What cloud-init finds in the guest. Without it there is no NoCloud disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// What Ignition finds in the guest, instead of cloud-init. Take the guest's image for Proxmox VE: its kernel's command line says
    /// `ignition.platform.id=proxmoxve`, and so Ignition reads the disk that this makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignition: Option<Ignition>,
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
    /// Secrets in the VM's namespace with which the kubelet fetches the VM's images, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "scheduling::image_pull_secrets")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The VM is ready while this probe succeeds; without it, as soon as its VMM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<Probe>,
    /// The VM is killed, and started again as runPolicy says, when this probe fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<Probe>,
    /// The other probes begin once this one has succeeded, and the VM is killed when it fails: for guests that take long to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup_probe: Option<Probe>,
    /// Seconds that the guest has to power off after its power button was pressed; 60 if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub termination_grace_period_seconds: Option<i64>,
    /// What happens when the VM's pod is evicted, as by `kubectl drain`: Shutdown if it is left out. With Block the VM has a `PodDisruptionBudget` of its
    /// name, and the condition `EvictionBlocked` says when somebody waits for its node. Kubernetes evicts no pod that two budgets select: leave it out where
    /// a budget of your own selects the VM's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction_policy: Option<EvictionPolicy>,
}

impl VirtualMachineSpec {
    /// The run policy, or its default.
    pub fn run_policy(&self) -> RunPolicy {
        self.run_policy.unwrap_or_default()
    }

    /// The eviction policy, or its default.
    pub fn eviction_policy(&self) -> EvictionPolicy {
        self.eviction_policy.unwrap_or_default()
    }

    /// The grace period in seconds, or its default.
    pub fn termination_grace_period_seconds(&self) -> i64 {
        self.termination_grace_period_seconds
            .unwrap_or(DEFAULT_TERMINATION_GRACE_PERIOD_SECONDS)
    }
}

#[cfg(test)]
mod tests;
