//! Where things are, inside the shim pod. The operator mounts them there and `VmConfig` names them, so that the shim itself knows
//! none of these but the ones that it is started with.

/// Annotation of the shim pod that holds the [`VmConfig`](crate::VmConfig) as JSON.
pub const CONFIG_ANNOTATION: &str = "tandem.dev/vm-config";
/// Directory of the downward API volume that shows [`CONFIG_ANNOTATION`] as a file.
pub const CONFIG_DIR: &str = "/etc/tandem";
/// The projected [`VmConfig`](crate::VmConfig).
pub const CONFIG_FILE: &str = "/etc/tandem/vm.json";
/// Annotation of a volume pod that holds the [`LendConfig`](crate::LendConfig) as JSON.
pub const DISK_CONFIG_ANNOTATION: &str = "tandem.dev/disk-config";
/// The projected [`LendConfig`](crate::LendConfig), in [`CONFIG_DIR`].
pub const DISK_CONFIG_FILE: &str = "/etc/tandem/disk.json";
/// Mount point of the image volume with kernel and initrd.
pub const BOOT_DIR: &str = "/volumes/boot";
/// Parent of the mount points of disks' volumes, one directory per disk name: images, claims, `ConfigMap`s and Secrets.
pub const DISKS_DIR: &str = "/volumes/disks";
/// Parent of the block devices of disks, one per disk name. In `/dev`, which the container runtime makes for such.
pub const DEVICES_DIR: &str = "/dev/tandem";
/// Mount point of the Secret with cloud-init data.
pub const CLOUD_INIT_DIR: &str = "/volumes/cloud-init";
/// The pod's writable emptyDir: overlays of image disks and empty disks.
pub const SCRATCH_DIR: &str = "/scratch";
/// Where the device plugin mounts the socket directory of the allocated device id, read-only.
pub const AGENT_DIR: &str = "/run/tandem";
/// File name of the node agent's socket inside [`AGENT_DIR`] and inside each device's directory on the node.
pub const AGENT_SOCKET: &str = "agent.sock";
/// A VM's control socket, in [`SCRATCH_DIR`].
pub const CONTROL_SOCKET: &str = "/scratch/control.sock";
/// A VM's vsock device on the host's side, in [`SCRATCH_DIR`]: the way to the agent in the guest.
pub const VSOCK_SOCKET: &str = "/scratch/vsock.sock";
/// The kubelet's default termination message file.
pub const TERMINATION_LOG: &str = "/dev/termination-log";
