//! The CPUs of a VM.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The CPUs of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Number of CPUs that the guest sees.
    #[schemars(range(min = 1, max = 32))]
    pub cores: i32,
}
