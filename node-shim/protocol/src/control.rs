//! The control socket of a running `node-shim`: a `SOCK_SEQPACKET` Unix socket, as the node agent's is. Each packet is one JSON value of at
//! most [`MAX_PACKET_BYTES`]; a descriptor that it speaks of is attached by `SCM_RIGHTS`. Only the VMM's own user and root are heard.
//!
//! ```text
//! client                        node-shim
//!  | Request [, descriptor]          |   one at a time: the next one is read when this one is answered
//!  |-------------------------------->|
//!  |                        Response |
//!  |<--------------------------------|
//!  | Console                         |
//!  |-------------------------------->|
//!  |                    Done         |
//!  |<--------------------------------|
//!  |  bytes of the console, both ways, at most CONSOLE_PACKET_BYTES in a packet, until one side closes
//!  |<------------------------------->|
//! ```
//!
//! A client that does not read its answers is disconnected. A client of the console that does not keep up loses output, and is told how
//! much.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::GuestNetwork;

/// Largest packet in bytes; a longer one ends the connection.
pub const MAX_PACKET_BYTES: usize = 64 * 1024;
/// Largest packet of console bytes, either way.
pub const CONSOLE_PACKET_BYTES: usize = 4096;
/// Most clients at a time.
pub const CLIENTS_MAX: usize = 8;
/// Most descriptors in one packet.
pub const MAX_DESCRIPTORS: usize = 1;

/// What a client asks for. Closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// What the VM does: [`Response::Status`].
    Status,
    /// A button of the machine.
    Power(Power),
    /// Stops the vCPUs and brings the devices to rest. Answered when they are. A paused VM may be paused again.
    Pause,
    /// Lets a paused VM go on. A running VM may be resumed.
    Resume,
    /// Changes what the guest has, within the limits of its configuration.
    #[serde(rename_all = "camelCase")]
    Resize {
        /// vCPUs that are plugged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vcpus: Option<u32>,
        /// Bytes of RAM that are plugged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory_bytes: Option<u64>,
    },
    /// Plugs a disk. One descriptor: the open file.
    AttachDisk(AttachDisk),
    /// Asks the guest to give a disk up.
    DetachDisk {
        /// Its name.
        name: String,
    },
    /// Plugs a network interface. One descriptor: the tap.
    AttachNetwork(AttachNetwork),
    /// Asks the guest to give a network interface up.
    DetachNetwork {
        /// Its name.
        name: String,
    },
    /// The memory balloon.
    Balloon(Balloon),
    /// Writes the whole VM to a folder. Answered when it is on stable storage; until then the VM is paused.
    #[serde(rename_all = "camelCase")]
    Snapshot {
        /// The folder, which must not be there yet: an absolute path, as `node-shim` sees it.
        folder: PathBuf,
        /// What the VM does afterwards.
        then: AfterSnapshot,
    },
    /// Makes this connection a stream of the guest's serial console.
    Console,
}

/// Buttons of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Power {
    /// The ACPI power button, with the configuration's grace period. A paused VM goes on first.
    Button,
    /// Off, at once.
    Off,
    /// A reset of the machine, at once.
    Reset,
}

/// What a VM does once its snapshot is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AfterSnapshot {
    /// What it did before: a running VM goes on, a paused one stays paused.
    Continue,
    /// It stays paused, so that nothing happens in it that the snapshot does not have.
    StayPaused,
}

/// A disk to plug: raw, whatever is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachDisk {
    /// Its name, and the beginning of its serial number.
    pub name: String,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A network interface to plug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachNetwork {
    /// Its name.
    pub name: String,
    /// The guest's MAC address.
    pub mac: String,
    /// What the guest's DHCP client is told.
    pub network: GuestNetwork,
}

/// Requests to the memory balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Balloon {
    /// How much the guest shall give back.
    #[serde(rename_all = "camelCase")]
    Target {
        /// Bytes inside of the balloon.
        bytes: u64,
    },
    /// What the guest says of its memory: [`Response::BalloonStatistics`].
    Statistics,
}

/// What `node-shim` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Response {
    /// It is done.
    Done,
    /// Answer to [`Request::Status`].
    Status(VmStatus),
    /// Answer to [`Balloon::Statistics`].
    BalloonStatistics(BalloonStatistics),
    /// Answer to [`Request::Snapshot`].
    Snapshot(SnapshotDone),
    /// It is not done.
    Error(Failure),
}

/// What a VM does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmStatus {
    /// Name of the VM.
    pub name: String,
    /// Version of `node-shim`.
    pub version: String,
    /// The VM's state.
    pub state: VmState,
    /// When the guest was last started or reset, in milliseconds since the Unix epoch. A restored guest keeps it.
    pub boot_time_ms: u64,
    /// vCPUs that the guest has.
    pub vcpus: u32,
    /// Bytes of RAM that the guest has.
    pub memory_bytes: u64,
    /// Names of its disks. One that was detached is here until the guest has given it up.
    pub disks: Vec<String>,
    /// Names of its network interfaces, as `disks`.
    pub interfaces: Vec<String>,
    /// Resets of the guest since its first start.
    pub resets: u64,
    /// How long the restore took that this process began with, in microseconds from the start of the process to running vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_in_us: Option<u64>,
    /// What keeps a guest that breaks into the VMM from going further.
    #[serde(default)]
    pub isolation: Isolation,
}

/// What a VMM has given up: see docs/isolation.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Isolation {
    /// No program that it starts could gain privileges.
    pub no_new_privs: bool,
    /// What becomes of a system call that a thread has no need of.
    pub seccomp: SeccompMode,
    /// Version of the Landlock interface that limits what files it may name; 0 where the kernel has none.
    pub landlock_abi: u32,
}

/// What becomes of a system call that a thread has no need of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SeccompMode {
    /// It is made: there is no filter.
    #[default]
    Off,
    /// It is made, and the kernel logs it: for development.
    Logged,
    /// It is not made, and the VMM ends.
    Enforced,
}

/// States of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// vCPUs run; no driver has taken a device yet.
    Booting,
    /// The guest's kernel has taken its first virtio device.
    Running,
    /// vCPUs and devices stand still.
    Paused,
    /// As `Paused`, while a snapshot is written.
    Saving,
    /// The power button was pressed.
    PoweringOff,
}

/// What the guest says of its memory (virtio 1.2, 5.5.6.3), in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalloonStatistics {
    /// Inside of the balloon.
    pub actual_bytes: u64,
    /// All of the guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Not used for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Could be used without swapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
}

/// A snapshot that is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotDone {
    /// Bytes of guest memory that were written: pages of zeros are holes.
    pub memory_bytes: u64,
    /// How long vCPUs stood still for it, in microseconds.
    pub paused_us: u64,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// For a program.
    pub kind: FailureKind,
    /// One sentence for a person: what is wrong and what to do about it.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// The request is none, or asks for something impossible.
    Invalid,
    /// Not while the VM does what it does now; another time it may work.
    Refused,
    /// The host failed.
    Failed,
}

impl Response {
    /// An error.
    pub fn error(kind: FailureKind, message: impl Into<String>) -> Self {
        Self::Error(Failure {
            kind,
            message: message.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_a_person_would_write_them() {
        let cases = [
            (r#""status""#, Request::Status),
            (r#"{"power":"button"}"#, Request::Power(Power::Button)),
            (
                r#"{"snapshot":{"folder":"/s/1","then":"stayPaused"}}"#,
                Request::Snapshot {
                    folder: "/s/1".into(),
                    then: AfterSnapshot::StayPaused,
                },
            ),
            (
                r#"{"resize":{"memoryBytes":1073741824}}"#,
                Request::Resize {
                    vcpus: None,
                    memory_bytes: Some(1 << 30),
                },
            ),
            (
                r#"{"balloon":{"target":{"bytes":4096}}}"#,
                Request::Balloon(Balloon::Target { bytes: 4096 }),
            ),
        ];
        for (text, request) in cases {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
        assert!(serde_json::from_str::<Request>(r#"{"resize":{"cores":3}}"#).is_err());
    }
}
