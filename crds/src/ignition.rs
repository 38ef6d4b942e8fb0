//! Configuration that the guest's Ignition reads at its first boot.
//!
//! Of Ignition's platforms, `proxmoxve` is the one whose disk is made as ours is: see `node-shim-virtio`'s `seed.rs`.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::cloud_init::SecretKeyReference;

/// Key of a Secret that holds an Ignition configuration, unless the reference names another.
pub const DEFAULT_CONFIG_KEY: &str = "ignition";

/// Configuration that the guest's Ignition reads at its first boot: the user data of a `NoCloud` disk.
/// Take a guest's image for Proxmox VE, or write `ignition.platform.id=proxmoxve` on its kernel's command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.config) || size(bytes(self.config)) <= 32768")
        .message("ignition.config is longer than 32 KiB: put it into a Secret and write configSecretRef"),
    validation = Rule::new("has(self.config) != has(self.configSecretRef)")
        .message("an Ignition configuration has exactly one source: write either config or configSecretRef"),
    validation = Rule::new("!has(self.config) || self.config.matches('^[ \\t\\r\\n]*[{]')")
        .message("ignition.config is not JSON: Butane's YAML has to be translated first, with `butane --strict`"),
)]
pub struct Ignition {
    /// Ignition configuration in JSON, at most 32 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub config: Option<String>,
    /// Ignition configuration from a Secret in the VM's namespace; its key is `ignition` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_secret_ref: Option<SecretKeyReference>,
}
