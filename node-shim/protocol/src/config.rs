//! `VmConfig`: everything that one `node-shim` process needs to know about its VM, in the VMM's vocabulary.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of this format that this build writes and reads.
pub const VERSION: u32 = 1;

/// One VM, as the VMM sees it. Paths are inside the shim's own mount namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmConfig {
    /// Format version: [`VERSION`].
    pub version: u32,
    /// Name of the VM, for logs.
    pub name: String,
    /// Stable identity of the VM, shown to the guest by SMBIOS or as the NoCloud instance id: an RFC 9562 UUID.
    pub uuid: String,
    /// Virtual CPUs.
    pub cpu: Cpu,
    /// Guest memory.
    pub memory: Memory,
    /// What the guest starts from.
    pub boot: Boot,
    /// Disks in the order in which the guest finds them: the first is `/dev/vda`.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network interfaces in the order in which the guest finds them.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The NoCloud seed, shown to the guest as one more read-only disk with the label `CIDATA`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// How the VM is shut down.
    pub shutdown: Shutdown,
    /// Directory on writable storage for overlays and empty disks.
    pub scratch: PathBuf,
}

/// Virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cpu {
    /// Number of vCPUs that are online when the guest starts, at least 1.
    pub cores: u32,
}

/// Guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    /// Bytes of RAM that the guest starts with.
    pub size_bytes: u64,
}

/// What the guest starts from. Closed: booting from a disk image joins here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Boot {
    /// A kernel file (PVH ELF or bzImage), loaded by the VMM.
    Kernel(KernelBoot),
}

/// A kernel, its initrd and its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KernelBoot {
    /// PVH ELF or bzImage.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line, at most 2047 bytes (the x86 `COMMAND_LINE_SIZE` less its NUL).
    #[serde(default)]
    pub command_line: String,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disk {
    /// Name of the disk in the VM's spec; the guest sees its first 20 bytes as the serial number.
    pub name: String,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Where its contents come from.
    pub source: DiskSource,
}

/// Where a disk's contents come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum DiskSource {
    /// A raw image that is never written: a file, or a directory that holds exactly one file. Writes go to a sparse overlay in
    /// [`VmConfig::scratch`], which lives as long as the pod does.
    Image {
        /// The image or its directory.
        path: PathBuf,
    },
    /// A sparse, zeroed file in [`VmConfig::scratch`].
    #[serde(rename_all = "camelCase")]
    Empty {
        /// Size of the disk in bytes; a multiple of 512.
        size_bytes: u64,
    },
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// Name of the interface in the VM's spec.
    pub name: String,
    /// The guest's MAC address, `xx:xx:xx:xx:xx:xx`, locally administered.
    pub mac: String,
    /// How it is connected.
    pub binding: Binding,
}

/// How an interface is connected to the pod's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Binding {
    /// The guest has a private address behind the pod's own; the node agent opens the tap and makes the NAT.
    Masquerade,
    /// A tap that the caller has made, for use without Kubernetes.
    Tap {
        /// Name of the tap device.
        device: String,
        /// What the guest's DHCP client is told.
        network: GuestNetwork,
    },
}

/// What the guest is told about its network by DHCP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestNetwork {
    /// The guest's IPv4 address.
    pub address: std::net::Ipv4Addr,
    /// Length of the network prefix, 1 to 30.
    pub prefix_length: u8,
    /// The gateway, which is the host's end of the tap.
    pub gateway: std::net::Ipv4Addr,
    /// MAC address of the gateway, `xx:xx:xx:xx:xx:xx`.
    pub gateway_mac: String,
    /// Largest IP packet in bytes.
    pub mtu: u16,
}

/// NoCloud seed data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloudInit {
    /// cloud-init runs its per-instance modules again when this changes.
    pub instance_id: String,
    /// The guest's host name.
    pub hostname: String,
    /// The `user-data` file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<Text>,
    /// The `network-config` file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_data: Option<Text>,
}

/// The largest user data or network data in bytes, inline or from a file. As a Secret's 1 MiB less room for its other keys.
pub const CLOUD_INIT_MAX_BYTES: u64 = 512 * 1024;

/// Text that is given here, or read from a file when the VM starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Text {
    /// The text itself.
    Inline(String),
    /// A file that holds it.
    File(PathBuf),
}

/// How the VM is shut down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shutdown {
    /// Seconds between the ACPI power button (on SIGTERM) and the forced stop.
    pub grace_period_seconds: u64,
}
