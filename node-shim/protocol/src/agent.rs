//! The conversation between `node-shim` and the node agent, over one `SOCK_SEQPACKET` Unix socket: each packet is one JSON value of at
//! most [`MAX_PACKET_BYTES`], with the descriptors that it speaks of attached by `SCM_RIGHTS`, in the order in which it names them.
//!
//! ```text
//! shim                                   agent
//!  | Hello, fds [netns]                    |   the agent knows the pod by the socket it was called on
//!  |-------------------------------------->|
//!  |                 Granted, fds [kvm, queues...]   or Refused
//!  |<--------------------------------------|
//!  | Status ...                            |   whenever it changes
//!  |-------------------------------------->|
//!  |                                Resize |   whenever the VM's owner wants another size
//!  |<--------------------------------------|
//!  | Resized                               |
//!  |-------------------------------------->|
//!  |                AttachDisk, fds [disk] |   a disk that a volume pod lends, or DetachDisk
//!  |<--------------------------------------|
//!  | Plugged                               |
//!  |-------------------------------------->|
//!  x connection lost: the agent restarted. The shim connects again and sends
//!  | Resume                                |   no descriptor is needed: it still has them
//!  |-------------------------------------->|
//! ```
//!
//! A volume pod has a conversation of its own, on the socket of its own device:
//!
//! ```text
//! lender                                 agent
//!  | Lend, fds [disk]                      |   again after the agent has restarted
//!  |-------------------------------------->|
//!  |                        Lent or Refused|
//!  |<--------------------------------------|
//!  | Withdraw                              |   its pod is to end
//!  |-------------------------------------->|
//!  |                              Returned |   once no guest has the disk
//!  |<--------------------------------------|
//! ```

use serde::{Deserialize, Serialize};

use crate::config::{BridgedNetwork, Discard, GuestNetwork, RateLimit};
use crate::control::Failure;

/// Version of this conversation; the agent refuses a shim that speaks another. 2: queues and IPv6. 3: the pod's UID, and resizes. 4: bindings of
/// interfaces, disks that are plugged.
pub const VERSION: u32 = 4;
/// Oldest version of a running shim that the agent goes on with. It is not sent what its version does not have.
pub const RESUME_VERSION: u32 = 3;
/// First version whose shim takes [`Response::AttachDisk`] and [`Response::DetachDisk`].
pub const DISKS_VERSION: u32 = 4;
/// Largest packet in bytes; a longer one is refused.
pub const MAX_PACKET_BYTES: usize = 64 * 1024;
/// Most interfaces of one VM.
pub const MAX_INTERFACES: usize = 8;
/// Most queues of one tap: more than a few vCPUs gain nothing from queues of their own.
pub const MAX_QUEUES: u16 = 4;
/// Most descriptors in one packet: one for KVM and one for each queue of each interface. Linux takes 253 (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 1 + MAX_INTERFACES * MAX_QUEUES as usize;

/// What the shim says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// First packet of a new VM. One descriptor: the shim's own network namespace.
    #[serde(rename_all = "camelCase")]
    Hello {
        /// [`VERSION`].
        version: u32,
        /// UID of the pod, 1 to [`POD_UID_MAX_BYTES`]. Which pod it is, the agent knows from the kubelet; this tells it from others that had
        /// its name before or have it after it.
        #[serde(rename = "podUID")]
        pod_uid: String,
        /// The interfaces for which a tap is wanted.
        interfaces: Vec<InterfaceRequest>,
    },
    /// First packet of a VM that the agent's predecessor has already served. No descriptor.
    Resume {
        /// [`VERSION`].
        version: u32,
        /// As in `Hello`.
        #[serde(rename = "podUID")]
        pod_uid: String,
        /// What the guest does now.
        status: GuestStatus,
    },
    /// What the guest does now. No descriptor, no answer.
    Status(GuestStatus),
    /// Answer to [`Response::Resize`]. No descriptor.
    Resized(Resized),
    /// Answer to [`Response::AttachDisk`] and to [`Response::DetachDisk`]. No descriptor.
    Plugged(Plugged),
    /// First packet of a volume pod. One descriptor: its disk, opened and locked.
    Lend {
        /// [`VERSION`].
        version: u32,
        /// As in `Hello`, of the volume pod.
        #[serde(rename = "podUID")]
        pod_uid: String,
        /// How the disk is to be used.
        disk: DiskOptions,
    },
    /// The volume pod is to end: answered by [`Response::Returned`]. No descriptor.
    Withdraw,
}

/// Most bytes of a pod's UID, as in `status.podUID`.
pub const POD_UID_MAX_BYTES: usize = 64;

/// What became of a [`Resize`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resized {
    /// Its `sequence`.
    pub sequence: u64,
    /// Why it was not taken, or not as a whole; its message has at most [`FAILURE_MAX_BYTES`] of one line. None: from now on the guest can get no
    /// more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What the guest does now that it was taken: what it was said to have before may be less than what it had then.
    pub status: GuestStatus,
}

/// What became of a [`Response::AttachDisk`] or a [`Response::DetachDisk`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plugged {
    /// Name of the disk, at most [`DISK_NAME_MAX_BYTES`].
    pub name: String,
    /// Why it was not done; its message has at most [`FAILURE_MAX_BYTES`] of one line. None: the guest has the disk, or was asked to give it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What the guest does and has now.
    pub status: GuestStatus,
}

/// Most bytes of the name of a disk: a DNS label.
pub const DISK_NAME_MAX_BYTES: usize = 63;
/// Most disks that a guest can have been given while it ran: one for each PCI slot, of which the host bridge has one.
pub const PLUGGED_DISKS_MAX: usize = 31;

/// How a disk that is lent is to be used. What the storage itself has to do with (`O_DIRECT`, locks) goes with the descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskOptions {
    /// Serial number that the guest sees: 1 to 20 printable ASCII characters; the first 20 bytes of the name where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// How much it may move.
    #[serde(default, skip_serializing_if = "RateLimit::is_unlimited")]
    pub rate_limit: RateLimit,
    /// What becomes of space that the guest discards.
    #[serde(default, skip_serializing_if = "Discard::is_default")]
    pub discard: Discard,
}

/// A disk for a guest: raw, whatever is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachDisk {
    /// Its name in the VM's spec, a DNS label.
    pub name: String,
    /// UID of the volume pod that lends it, 1 to [`POD_UID_MAX_BYTES`]: what is told back of it.
    pub lender: String,
    /// How it is to be used.
    pub options: DiskOptions,
}

/// A disk that a guest was given while it ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PluggedDisk {
    /// [`AttachDisk::name`].
    pub name: String,
    /// [`AttachDisk::lender`].
    pub lender: String,
}

/// Most bytes of the message of [`Resized::failure`] and of [`Plugged::failure`].
pub const FAILURE_MAX_BYTES: usize = 512;

/// An interface that wants a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InterfaceRequest {
    /// Name in the VM's spec.
    pub name: String,
    /// The guest's MAC address; with a bridge the network decides, and the grant says it.
    pub mac: String,
    /// Queues that the tap is to have, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// How the guest is connected.
    #[serde(default)]
    pub binding: InterfaceBinding,
    /// The pod's interface on the network; that of the pod's default route where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_interface: Option<String>,
}

/// How a guest is connected. Closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InterfaceBinding {
    /// Behind the pod's own addresses.
    #[default]
    Masquerade,
    /// On the network itself, as the pod's interface.
    Bridge,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Response {
    /// Answer to `Hello`. Descriptors: `/dev/kvm`, then the queues of each interface's tap, in the order of the request.
    Granted {
        /// What each guest interface is told.
        interfaces: Vec<InterfaceGrant>,
    },
    /// Answer to `Hello` or `Resume`: what is wrong and what to do about it.
    #[serde(rename_all = "camelCase")]
    Refused {
        /// One sentence for a person.
        reason: String,
        /// Whether the same request may succeed later.
        retryable: bool,
    },
    /// What the guest shall have from now on, answered by [`Request::Resized`]. No descriptor. Not before `Granted` or `Resume`.
    Resize(Resize),
    /// A disk for the guest, answered by [`Request::Plugged`]. One descriptor: the disk. From [`DISKS_VERSION`] on.
    AttachDisk(AttachDisk),
    /// The guest is to give a disk up that it was given so, answered by [`Request::Plugged`]; when it has, its status lacks the disk. No
    /// descriptor. From [`DISKS_VERSION`] on.
    DetachDisk {
        /// [`AttachDisk::name`].
        name: String,
    },
    /// Answer to `Lend`: the disk is plugged when its VM is to have it.
    Lent,
    /// Answer to `Withdraw`: no guest has the disk, and none gets it any more.
    Returned,
}

/// What a guest shall have: within its configuration's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resize {
    /// Grows with each size that is wanted. One that is smaller than the last is out of date, and not carried out; the same again is.
    pub sequence: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory_bytes: u64,
}

/// An interface whose tap is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InterfaceGrant {
    /// Name in the VM's spec.
    pub name: String,
    /// Queues that the tap has: as many descriptors as there are for it.
    pub queues: u16,
    /// What is on the other side.
    pub network: GrantedNetwork,
}

/// What a guest is connected to. Closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum GrantedNetwork {
    /// A private network behind the pod's addresses.
    Masquerade(GuestNetwork),
    /// The pod's network itself.
    Bridge(BridgedNetwork),
}

/// What the guest does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestStatus {
    /// The guest's state.
    pub state: GuestState,
    /// When the guest was last started or reset, in milliseconds since the Unix epoch.
    pub boot_time_ms: u64,
    /// vCPUs that the guest has.
    pub vcpus: u32,
    /// Bytes of RAM that the guest has.
    pub memory_bytes: u64,
    /// Resets of the guest since its VMM started.
    pub resets: u64,
    /// What was found to boot on a disk, at most [`KERNEL_MAX_BYTES`] of one line; none where the configuration names a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// What keeps the guest from the size that it shall have, as far as the VMM can tell: at most [`HINDRANCE_MAX_BYTES`] of one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hindrance: Option<String>,
    /// Disks that it was given while it ran and has not given up, at most [`PLUGGED_DISKS_MAX`], by their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<PluggedDisk>,
}

/// Most bytes of [`GuestStatus::kernel`].
pub const KERNEL_MAX_BYTES: usize = 256;
/// Most bytes of [`GuestStatus::hindrance`].
pub const HINDRANCE_MAX_BYTES: usize = 256;

/// States of a guest.
///
/// ```text
/// Booting --first virtio driver is ready--> Running --power button--> PoweringOff --> (process ends)
///    ^_________________reset________________|
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestState {
    /// vCPUs run; no driver has taken a device yet.
    Booting,
    /// The guest's kernel has taken its first virtio device.
    Running,
    /// The power button was pressed; the guest has until the end of the grace period.
    PoweringOff,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shim of version 3 that runs is not restarted for a new agent.
    #[test]
    fn what_a_shim_of_the_oldest_version_says_is_understood() {
        let status = r#"{"state":"Running","bootTimeMs":1,"vcpus":2,"memoryBytes":3,"resets":0}"#;
        let resume = format!(r#"{{"resume":{{"version":3,"podUID":"p1","status":{status}}}}}"#);
        let Request::Resume { version, status, .. } = serde_json::from_str(&resume).unwrap() else {
            panic!("no Resume");
        };
        assert_eq!((version, status.disks.as_slice()), (RESUME_VERSION, &[][..]));
        assert!(!serde_json::to_string(&status).unwrap().contains("disks"));
    }

    #[test]
    fn packets_about_disks_read_as_a_person_would_write_them() {
        let lend = r#"{"lend":{"version":4,"podUID":"v1","disk":{"readOnly":true}}}"#;
        let request = Request::Lend {
            version: VERSION,
            pod_uid: "v1".to_owned(),
            disk: DiskOptions {
                read_only: true,
                ..DiskOptions::default()
            },
        };
        assert_eq!(serde_json::from_str::<Request>(lend).unwrap(), request);
        assert_eq!(serde_json::to_string(&request).unwrap(), lend);
        assert_eq!(serde_json::to_string(&Request::Withdraw).unwrap(), r#""withdraw""#);
        let attach = r#"{"attachDisk":{"name":"data","lender":"v1","options":{"readOnly":false,"discard":"ignore"}}}"#;
        let response = Response::AttachDisk(AttachDisk {
            name: "data".to_owned(),
            lender: "v1".to_owned(),
            options: DiskOptions {
                discard: Discard::Ignore,
                ..DiskOptions::default()
            },
        });
        assert_eq!(serde_json::from_str::<Response>(attach).unwrap(), response);
        assert_eq!(serde_json::to_string(&response).unwrap(), attach);
    }
}
