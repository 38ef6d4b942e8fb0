//! What Tandem says about a VM.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::guest::GuestStatus;

/// Field manager of everything in `status` but `status.guest` and `status.acknowledgedTarget`.
pub const FIELD_MANAGER: &str = "tandem-operator";

/// What Tandem says about a VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people, the STATUS column. Programs read `conditions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub status: Option<String>,
    /// Conditions; their types and reasons are in the reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Fields of the spec whose present value the running VM does not have yet, and what they wait for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["field".to_owned()]))]
    pub pending_changes: Vec<PendingChange>,
    /// What the guest should have now, for the node agent, which asks the guest for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<GuestTarget>,
    /// Disks that the guest should be given while it runs, for the node agent. Where it is left out nothing is plugged or unplugged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_disks: Option<TargetDisks>,
    /// The last target that the VMM answered, from the node agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_target: Option<AcknowledgedTarget>,
    /// Node that the VM's pod is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// Name of the VM's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod_name: Option<String>,
    /// UID of the VM's pod.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// Address at which the VM is reached.
    #[serde(default, rename = "podIP", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub pod_ip: Option<String>,
    /// Every address at which the VM is reached, at most one for each IP family.
    #[serde(default, rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(length(max = 45)))]
    pub pod_ips: Vec<String>,
    /// MAC address of the guest's first interface; not with a bridge, where the network decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    pub mac_address: Option<String>,
    /// UUID that the guest sees as its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub uuid: Option<String>,
    /// What the operator remembers about earlier runs, so that it knows when to start the VM again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,
    /// What the guest does, from the node agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStatus>,
}

/// Most pending changes that are named; a restart applies them all.
pub const MAX_PENDING_CHANGES: usize = 64;

/// A field of the spec whose present value the running VM does not have yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PendingChange {
    /// The field, as in `spec.disks[data].readOnly`: an item of a list by its name.
    #[schemars(length(max = 256))]
    pub field: String,
    /// What it waits for.
    pub waits_for: WaitsFor,
    /// What the API server says against it, or how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// Most characters of what the API server says against a change.
pub const MAX_PENDING_MESSAGE: usize = 1024;

/// What a changed field waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WaitsFor {
    /// The VM's next start; `restartedAt` asks for one.
    Restart,
    /// Node and guest, which are being resized: the condition `Resizing` says how far they are.
    Resize,
    /// The API server, which does not admit it; it is tried again.
    Admission,
    /// A disk's volume pod and the guest, which takes the disk or gives it up; the condition `DisksReady` says what is wrong.
    HotPlug,
}

/// What the guest in one pod should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestTarget {
    /// UID of the pod whose guest is meant.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Counts the targets of this pod's guest, so that it can be said which of them was carried out.
    #[schemars(range(min = 1))]
    pub sequence: i64,
    /// CPUs.
    #[schemars(range(min = 1, max = 128))]
    pub vcpus: i32,
    /// Memory in bytes.
    #[schemars(range(min = 0))]
    pub memory_bytes: i64,
}

/// What the guest in one pod should be given of disks that its pod was not made with. It has no sequence: what the guest has is named in
/// `status.guest.disks`, each disk with the pod that lends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetDisks {
    /// UID of the pod whose guest is meant.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// The disks; what the guest was given and is not here it is asked to give up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 31))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub disks: Vec<TargetDisk>,
}

/// A disk, and the volume pod that lends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetDisk {
    /// Name of the disk in the VM's spec.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Name of the volume pod, in the VM's namespace and on its node.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// Its UID.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
}

/// The last target that a VMM answered. Written by the node agent of the VM's node only, as `status.guest` is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcknowledgedTarget {
    /// UID of the pod whose VMM was told.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// `sequence` of that target: without a `refusal` the guest can get no more than it says from then on.
    #[schemars(range(min = 1))]
    pub sequence: i64,
    /// Why the VMM did not take it, or not as a whole. The node agent tries again what may work another time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub refusal: Option<String>,
}

/// What the operator remembers about earlier runs of a VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restarts {
    /// Runs in a row that ended within ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<i32>,
    /// UID of the pod that was started last.
    #[serde(default, rename = "startedPodUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub started_pod_uid: Option<String>,
    /// `spec.restartedAt` as it was when that pod was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 35))]
    pub started_restarted_at: Option<String>,
    /// When the VM is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_time: Option<Time>,
    /// How the last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_termination: Option<LastTermination>,
}

/// How a run of a VM ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastTermination {
    /// UID of the pod that ended.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Generation of the VirtualMachine that the pod was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Why it ended, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why it ended, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// Exit code of the VMM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}
