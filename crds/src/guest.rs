//! What the node agent reports about the guest, under its own field manager.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Field manager of [`GuestStatus`] and of `status.acknowledgedTarget`; nobody else writes them.
pub const FIELD_MANAGER: &str = "tandem-node-agent";

/// What the guest does. Written by the node agent of the VM's node only, and left as it is when the VM ends: `podUID` says which run it
/// speaks of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestStatus {
    /// UID of the pod that this guest runs in.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// The guest's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<GuestState>,
    /// When the guest was last started or reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_time: Option<Time>,
    /// CPUs that the guest has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<i32>,
    /// Memory that the guest has, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub memory: Option<String>,
    /// Resets of the guest since its pod started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets: Option<i64>,
    /// What was found to boot on the VM's disk: the entry's title, the kernel's release and where its boot loader's configuration is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub kernel: Option<String>,
    /// What keeps the guest from the CPUs and memory that `status.target` says, as far as the VMM can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub hindrance: Option<String>,
    /// Disks that the guest was given while it ran and has not given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 31))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub disks: Vec<GuestDisk>,
    /// Disks of `status.targetDisks` that it could not be given, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 31))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub refused_disks: Vec<RefusedDisk>,
}

/// A disk that a guest was given while it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestDisk {
    /// Name of the disk in the VM's spec.
    #[schemars(length(max = 63))]
    pub name: String,
    /// UID of the volume pod that lends it.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
}

/// A disk that a guest could not be given. The node agent tries again what may work another time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusedDisk {
    /// Name of the disk in the VM's spec.
    #[schemars(length(max = 63))]
    pub name: String,
    /// UID of the volume pod that lends it.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Why not.
    #[schemars(length(max = 512))]
    pub message: String,
}

/// State of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum GuestState {
    /// It runs; no driver has taken a device yet.
    Booting,
    /// Its kernel has taken its first device.
    Running,
    /// The power button was pressed.
    PoweringOff,
}
