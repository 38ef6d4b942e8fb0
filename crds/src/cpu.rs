//! The CPUs of a VM.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::Quantity;

/// Most CPUs of a VM, also with those that are plugged while it runs: as many as the VMM has APIC ids and ACPI objects for.
pub const MAX_CORES: i32 = 128;
/// CPU time in thousandths of a CPU that a VM's pod asks for, for each core, unless its spec says otherwise.
pub const DEFAULT_REQUEST_MILLIS_PER_CORE: u64 = 100;

/// The CPUs of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.maxCores) || self.maxCores >= self.cores")
        .message("cpu.maxCores is below cpu.cores: write cpu.cores or more, or leave it out"),
    validation = Rule::new("!has(self.request) || !isQuantity(self.request) || sign(quantity(self.request).sub(self.cores)) <= 0")
        .message("cpu.request is more than cpu.cores can use: write at most cpu.cores"),
    validation = Rule::new("!has(self.dedicated) || !self.dedicated || !(has(self.request) || has(self.maxCores))")
        .message("dedicated CPUs are asked for whole and do not change while the VM runs: leave cpu.request and cpu.maxCores out"),
)]
pub struct Cpu {
    /// Number of CPUs that the guest sees.
    #[schemars(range(min = 1, max = 128))]
    pub cores: i32,
    /// Most CPUs that the guest can have without a restart: `cores` can be changed up to it while the VM runs. `cores` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub max_cores: Option<i32>,
    /// CPU time that the pod asks for, in CPUs, for example `500m`; `100m` for each core if it is left out. The VM has this at least, and
    /// up to `cores` where the node has time to spare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("isQuantity(self)").message("cpu.request is not a quantity: write for example 500m or 2"),
        validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('1m')) >= 0")
            .message("cpu.request is below the least that Kubernetes knows: write 1m or more"),
    )]
    pub request: Option<Quantity>,
    /// Each CPU of the guest has a CPU of the node for itself: the pod asks for whole CPUs and is of the class Guaranteed, and a kubelet with
    /// `cpuManagerPolicy: static` gives it CPUs that nobody else uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedicated: Option<bool>,
}

impl Cpu {
    /// Most CPUs that the guest can have without a restart.
    pub fn max_cores(&self) -> i32 {
        self.max_cores.unwrap_or(self.cores)
    }

    /// Whether the guest's CPUs are nobody else's.
    pub fn is_dedicated(&self) -> bool {
        self.dedicated.unwrap_or(false)
    }
}
