//! The kind `VirtualMachineInstanceType`: a size that many VMs share, made by whoever runs the cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{cpu::Cpu, memory::Memory, scheduling};

/// A size of VMs, and the nodes that are for it.
///
/// It never changes, so that a VM is what its spec says for as long as its spec says it: another size is another name.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "tandem.dev",
    version = "v1alpha1",
    kind = "VirtualMachineInstanceType",
    derive = "PartialEq",
    doc = "A size of virtual machines, for the whole cluster: CPUs, memory, and the nodes that are for it.",
    shortname = "vmtype",
    category = "tandem",
    printcolumn(name = "CPU", type_ = "integer", json_path = ".spec.cpu.cores", description = "CPUs of the guest"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory.size", description = "Memory of the guest"),
    printcolumn(name = "Max CPU", type_ = "integer", json_path = ".spec.cpu.maxCores", description = "Most CPUs without a restart", priority = 1),
    printcolumn(name = "Max Memory", type_ = "string", json_path = ".spec.memory.maxSize", description = "Most memory without a restart", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since it was created"),
    validation = Rule::new("self.spec == oldSelf.spec").message(
        "an instance type does not change: make another one, and write its name into the VMs that shall have it"
    ),
)]
#[cfg_attr(test, kube(cel))]
pub struct VirtualMachineInstanceTypeSpec {
    /// The CPUs of each VM.
    pub cpu: Cpu,
    /// The memory of each VM.
    pub memory: Memory,
    /// Labels that a node must have, besides those that the VM itself asks for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::pod_metadata::labels")]
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations, besides the VM's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "scheduling::tolerations")]
    pub tolerations: Vec<Toleration>,
}

/// Which instance type a VM has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceTypeReference {
    /// Name of a `VirtualMachineInstanceType`.
    #[schemars(
        length(min = 1, max = 253),
        pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}
