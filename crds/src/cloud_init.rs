//! Configuration that the guest's cloud-init reads from a NoCloud disk.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Most bytes of user data or network data in the VirtualMachine itself.
pub const MAX_INLINE_BYTES: usize = 32 * 1024;
/// Key of a Secret that holds user data, unless the reference names another.
pub const DEFAULT_USER_DATA_KEY: &str = "userdata";
/// Key of a Secret that holds network data, unless the reference names another.
pub const DEFAULT_NETWORK_DATA_KEY: &str = "networkdata";

/// Configuration that the guest's cloud-init reads from a NoCloud disk. The guest's host name is the VM's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    // Rules of the whole, not of the fields: the message of a field's rule repeats the field's value.
    validation = Rule::new("!has(self.userData) || size(bytes(self.userData)) <= 32768")
        .message("userData is longer than 32 KiB: put it into a Secret and write userDataSecretRef"),
    validation = Rule::new("!has(self.networkData) || size(bytes(self.networkData)) <= 32768")
        .message("networkData is longer than 32 KiB: put it into a Secret and write networkDataSecretRef"),
    validation = Rule::new("!(has(self.userData) && has(self.userDataSecretRef))")
        .message("user data has at most one source: write either userData or userDataSecretRef"),
    validation = Rule::new("!(has(self.networkData) && has(self.networkDataSecretRef))")
        .message("network data has at most one source: write either networkData or networkDataSecretRef"),
)]
pub struct CloudInit {
    /// User data, at most 32 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub user_data: Option<String>,
    /// User data from a Secret in the VM's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_secret_ref: Option<SecretKeyReference>,
    /// Network configuration, at most 32 KiB. Without it the guest asks for an address by DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub network_data: Option<String>,
    /// Network configuration from a Secret in the VM's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_data_secret_ref: Option<SecretKeyReference>,
}

/// A key of a Secret in the VM's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
    /// Key in the Secret; `userdata` or `networkdata` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), pattern(r"^[-._a-zA-Z0-9]+$"))]
    pub key: Option<String>,
}
