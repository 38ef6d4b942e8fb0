//! When a VM runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When a VM runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RunPolicy {
    /// The VM runs, and is started again whenever it ends, also when the guest powers itself off.
    #[default]
    Always,
    /// The VM is started again when it fails, and stays off when the guest powers itself off.
    RerunOnFailure,
    /// The VM is started once and never again, however it ends.
    Once,
    /// The VM does not run.
    Halted,
}

impl RunPolicy {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Always, Self::RerunOnFailure, Self::Once, Self::Halted];
}
