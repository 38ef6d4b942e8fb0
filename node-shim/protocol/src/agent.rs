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
//!  x connection lost: the agent restarted. The shim connects again and sends
//!  | Resume                                |   no descriptor is needed: it still has them
//!  |-------------------------------------->|
//! ```

use serde::{Deserialize, Serialize};

use crate::config::{BridgedNetwork, GuestNetwork};
use crate::control::Failure;

/// Version of this conversation; the agent refuses a shim that speaks another. 2: queues and IPv6. 3: the pod's UID, and resizes. 4: bindings.
pub const VERSION: u32 = 4;
/// The oldest version that `Resume` is taken in: what it says has not changed since, and the VM runs already.
pub const RESUME_VERSION: u32 = 3;
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

/// Most bytes of the message of [`Resized::failure`].
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
