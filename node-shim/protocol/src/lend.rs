//! What a volume pod is told about the disk that it lends: see [`crate::agent`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Disk;

/// Version of [`LendConfig`].
pub const VERSION: u32 = 1;

/// The disk of a volume pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LendConfig {
    /// [`VERSION`].
    pub version: u32,
    /// The disk, of any source but an image: what a guest writes over one is kept by its own VMM.
    pub disk: Disk,
    /// Writable directory for an empty disk's file.
    pub scratch: PathBuf,
}
