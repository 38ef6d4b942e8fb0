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
    /// The NoCloud seed, shown to the guest as one more read-only disk with the label `cidata`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// Stream sockets between guest and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
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
    /// Most vCPUs that can be plugged while the guest runs; [`Self::cores`] where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cores: Option<u32>,
}

/// Guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    /// Bytes of RAM that the guest starts with.
    pub size_bytes: u64,
    /// Most bytes of RAM, with what can be plugged while the guest runs; [`Self::size_bytes`] where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_bytes: Option<u64>,
    /// Takes all memory, also what can be plugged, from the host's pool of huge pages of this size, at once. Where it is left out the host
    /// gives pages as the guest uses them, large ones where it has them (transparent huge pages).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// A size of huge pages. Closed; Kubernetes writes them so in `hugepages-2Mi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// 2 MiB.
    #[serde(rename = "2Mi")]
    TwoMebibytes,
    /// 1 GiB.
    #[serde(rename = "1Gi")]
    OneGibibyte,
}

impl HugePages {
    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::TwoMebibytes => 2 << 20,
            Self::OneGibibyte => 1 << 30,
        }
    }
}

impl std::fmt::Display for HugePages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TwoMebibytes => "2Mi",
            Self::OneGibibyte => "1Gi",
        })
    }
}

/// A virtio-vsock device, with Firecracker's protocol on the host's side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vsock {
    /// The socket that clients connect to, which the VMM makes. Connections of the guest to port n go to this path with `_n` appended.
    pub socket: PathBuf,
    /// The guest's context id, at least 3, which is also what it is where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_cid: Option<u32>,
}

/// What the guest starts from. Closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Boot {
    /// A kernel file (PVH ELF or bzImage), loaded by the VMM.
    Kernel(KernelBoot),
    /// What a disk's own boot loader would start, found anew at each start and reset.
    Disk(DiskBoot),
}

/// A disk to boot from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskBoot {
    /// Name of one of [`VmConfig::disks`].
    pub name: String,
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
    /// Name of the disk in the VM's spec.
    pub name: String,
    /// Serial number that the guest sees: 1 to 20 printable ASCII characters; the first 20 bytes of the name where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// How much it may move.
    #[serde(default, skip_serializing_if = "RateLimit::is_unlimited")]
    pub rate_limit: RateLimit,
    /// What the host's page cache does for it.
    #[serde(default, skip_serializing_if = "Cache::is_default")]
    pub cache: Cache,
    /// What carries out its requests; the best that this process may use where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    /// What becomes of space that the guest discards.
    #[serde(default, skip_serializing_if = "Discard::is_default")]
    pub discard: Discard,
    /// Where its contents come from.
    pub source: DiskSource,
}

/// What the host's page cache does for a disk. Closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cache {
    /// Reads and writes go through it.
    #[default]
    Writeback,
    /// Nothing (`O_DIRECT`). Only for files that are written in place, and devices.
    None,
}

impl Cache {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What carries out a disk's requests. Closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Io {
    /// Threads.
    Threads,
    /// `io_uring(7)`: it is an error where this process may not use it.
    IoUring,
}

/// What becomes of space that a guest discards. Closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Discard {
    /// The storage gets it back, where it can take it.
    #[default]
    Unmap,
    /// It stays allocated: the guest is told that the disk cannot discard.
    Ignore,
}

impl Discard {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How much a device may move. What is left out has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Rate>,
    /// Requests of a disk, packets of an interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Rate>,
}

impl RateLimit {
    /// Whether there is no limit at all.
    pub const fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }
}

/// A rate, and what may be saved up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rate {
    /// For each second, at least 1.
    pub per_second: u64,
    /// Most that may go at once after a pause, at least 1; what goes in a second where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// Where a disk's contents come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum DiskSource {
    /// An image that is never written: a file, or a directory that holds exactly one file. Writes go to a sparse overlay in
    /// [`VmConfig::scratch`], which lives as long as the pod does.
    Image {
        /// The image or its directory.
        path: PathBuf,
        /// Its format; where it is left out, what the image says of itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<DiskFormat>,
        /// The images that a qcow2 image is based on, the nearest first. Names in the image itself are never followed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        backing: Vec<BackingImage>,
    },
    /// A raw file that the guest reads and writes in place. It is raw whatever is in it. No part of its path below the mount point that it is in may be a
    /// symbolic link.
    #[serde(rename_all = "camelCase")]
    File {
        /// The file.
        path: PathBuf,
        /// Bytes that it has at least, a multiple of 512: it is made, sparse, or grown. Where it is left out the file must be there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_bytes: Option<u64>,
    },
    /// A block device that the guest reads and writes in place. It is raw whatever is in it.
    Device {
        /// The device.
        path: PathBuf,
    },
    /// The files of a directory, as they are when the guest starts or is reset, on a read-only FAT file system.
    Files {
        /// The directory, as the kubelet makes those of `ConfigMap`s and Secrets; or an ordinary one, whose subdirectories are left out.
        path: PathBuf,
        /// Label of the file system: 1 to 11 letters, digits, `-` and `_`.
        label: String,
    },
    /// A sparse, zeroed raw file in [`VmConfig::scratch`]. It is raw whatever its guest writes to it.
    #[serde(rename_all = "camelCase")]
    Empty {
        /// Size of the disk in bytes; a multiple of 512.
        size_bytes: u64,
    },
}

/// How an image's file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's format.
    Qcow2,
    /// Virtual PC's and Azure's format.
    Vhd,
    /// `VMware`'s format, in one file.
    Vmdk,
}

/// An image below another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackingImage {
    /// The image or its directory.
    pub path: PathBuf,
    /// Its format; where it is left out, what the image says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// Name of the interface in the VM's spec.
    pub name: String,
    /// The guest's MAC address, `xx:xx:xx:xx:xx:xx`, locally administered.
    pub mac: String,
    /// How much the guest may receive.
    #[serde(default, skip_serializing_if = "RateLimit::is_unlimited")]
    pub receive_limit: RateLimit,
    /// How much the guest may send.
    #[serde(default, skip_serializing_if = "RateLimit::is_unlimited")]
    pub transmit_limit: RateLimit,
    /// How it is connected.
    pub binding: Binding,
    /// The pod's interface on its network, where the node agent opens the tap; that of the pod's default route where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_interface: Option<String>,
}

/// How an interface is connected to the pod's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Binding {
    /// The guest has a private address behind the pod's own; the node agent opens the tap and makes the NAT.
    Masquerade,
    /// The guest takes the place of the pod's interface on its network; the node agent opens the tap. Its MAC address is then that interface's.
    Bridge,
    /// A tap that the caller has made, for use without Kubernetes.
    Tap {
        /// Name of the tap device.
        device: String,
        /// What the guest's DHCP client is told.
        network: GuestNetwork,
    },
}

/// What the guest is told about its network by DHCP. It may send from these addresses and from no others.
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
    /// IPv6, where the guest has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<GuestNetwork6>,
}

/// What the guest is told about its network by router advertisements and DHCPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestNetwork6 {
    /// The guest's only address beside its link-local ones.
    pub address: std::net::Ipv6Addr,
    /// Length of the network prefix, 1 to 126.
    pub prefix_length: u8,
    /// The host's end of the tap.
    pub gateway: std::net::Ipv6Addr,
}

/// What a network gave the pod's interface, and the guest gets in its place. It may send from these addresses and from no others; where there
/// is none at all, it is configured as any machine there, and only its MAC address is held to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BridgedNetwork {
    /// The guest's MAC address, `xx:xx:xx:xx:xx:xx`: that of the pod's interface.
    pub mac: String,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// IPv4, where the interface has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<BridgedIpv4>,
    /// IPv6, where the interface has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<BridgedIpv6>,
}

/// Most routes of [`BridgedIpv4::routes`].
pub const BRIDGED_ROUTES_MAX: usize = 16;

/// What the guest is told by DHCP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BridgedIpv4 {
    /// The guest's address.
    pub address: std::net::Ipv4Addr,
    /// Length of the prefix that is on the link, 1 to 32; 32 where nothing is, as behind a router of its own.
    pub prefix_length: u8,
    /// The routes beside that, at most [`BRIDGED_ROUTES_MAX`]; the default route is one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

/// A route of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Where it leads to.
    pub destination: std::net::Ipv4Addr,
    /// Length of that prefix, 0 to 32.
    pub prefix_length: u8,
    /// The next router; none where the destination is on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<std::net::Ipv4Addr>,
}

/// What the guest is told by router advertisements and DHCPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BridgedIpv6 {
    /// The guest's address.
    pub address: std::net::Ipv6Addr,
    /// Length of the prefix that is on the link, 1 to 128; 128 where nothing is.
    pub prefix_length: u8,
    /// MAC address of the default route's router, `xx:xx:xx:xx:xx:xx`, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_mac: Option<String>,
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
