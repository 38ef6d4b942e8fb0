//! What happens to a VM when its pod is evicted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to a VM when its pod is evicted through the API, as `kubectl drain` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EvictionPolicy {
    /// The guest is powered off, and started again on another node as far as runPolicy says so.
    #[default]
    Shutdown,
    /// Evictions are refused for as long as the policy says so: a `PodDisruptionBudget` of the VM's name keeps the VM where it is.
    Block,
}

impl EvictionPolicy {
    /// Every policy.
    pub const ALL: [Self; 2] = [Self::Shutdown, Self::Block];
}
