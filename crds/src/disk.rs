//! The disks of a VM.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Quantity, image::PullPolicy, rate_limit::RateLimit};

/// Where a container disk lies in its image by convention, the one that KubeVirt's container disks follow.
pub const DEFAULT_IMAGE_PATH: &str = "/disk";
/// Size of an empty disk is a multiple of this many bytes.
pub const EMPTY_DISK_STEP_BYTES: u64 = 1 << 20;
/// Largest empty disk in bytes.
pub const MAX_EMPTY_DISK_BYTES: u64 = 16 << 40;

/// A disk: a name and exactly one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.image), has(self.persistentVolumeClaim), has(self.emptyDisk), has(self.configMap), has(self.secret)].filter(it, it).size() == 1")
        .message("a disk has exactly one source: write one of image, persistentVolumeClaim, emptyDisk, configMap and secret"),
    validation = Rule::new("!(has(self.configMap) || has(self.secret)) || !has(self.readOnly) || self.readOnly")
        .message("a disk with a configMap or a secret can only be read: leave readOnly out"),
    validation = Rule::new("!has(self.persistentVolumeClaim) || !has(self.persistentVolumeClaim.size) || !has(self.readOnly) || !self.readOnly")
        .message("a claim's file cannot be made or grown where it is only read: leave persistentVolumeClaim.size or readOnly out"),
    validation = Rule::new("has(self.persistentVolumeClaim) || has(self.emptyDisk) || !(has(self.cache) || has(self.discard))")
        .message("cache and discard are for a persistentVolumeClaim or an emptyDisk: leave them out"),
    validation = Rule::new("!(has(self.configMap) || has(self.secret)) || !(has(self.io) || has(self.limits))")
        .message("a disk with a configMap or a secret is in memory: leave io and limits out"),
    validation = Rule::new("!has(self.emptyDisk) || !has(self.readOnly) || !self.readOnly")
        .message("an emptyDisk that is readOnly stays empty for ever: leave readOnly out, or write image instead of emptyDisk"),
)]
pub struct Disk {
    /// Name of the disk, unique in the VM. The guest sees its first 20 characters as the serial number, so that it is also
    /// `/dev/disk/by-id/virtio-<name>` there.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Whether the guest may only read the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// What the node's page cache does for the disk; `Writeback` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheMode>,
    /// How the VMM reads and writes the disk; if it is left out, with `io_uring` where the node lets containers have it, else with threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoMode>,
    /// What becomes of space that the guest no longer needs; `Unmap` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<DiscardMode>,
    /// Serial number that the guest sees, instead of the beginning of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), pattern(r"^[!-~]+$"))]
    pub serial: Option<String>,
    /// How much the disk may move; without it as much as the node can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<RateLimit>,
    /// A disk image in a container image. What the guest writes is kept apart from it, and lives as long as the VM's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageDisk>,
    /// A claim, which the guest reads and writes in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimDisk>,
    /// The keys of a `ConfigMap` as files of a small read-only file system (FAT) that has the first 11 characters of the disk's name as its label. They are as
    /// the node has them when the guest starts, also when it reboots: a guest that runs sees no change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapDisk>,
    /// The keys of a Secret, in the same way as those of a `configMap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretDisk>,
    /// An empty disk that lives as long as the VM's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_disk: Option<EmptyDisk>,
}

/// What the node's page cache does for a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CacheMode {
    /// Reads and writes go through it. What the guest flushes is on stable storage.
    #[default]
    Writeback,
    /// Nothing: reads and writes go to the storage (`O_DIRECT`). What the guest flushes is on stable storage. The storage must take 512-byte sectors.
    None,
}

/// How the VMM reads and writes a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum IoMode {
    /// With threads, on any node.
    Threads,
    /// With Linux' `io_uring`; a VM on a node that does not let containers have it fails.
    IoUring,
}

/// What becomes of space that the guest discards (`fstrim`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DiscardMode {
    /// The storage gets it back, where it can take it.
    #[default]
    Unmap,
    /// It stays allocated: the guest is told that the disk cannot discard.
    Ignore,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's format; an image that is based on another one is refused.
    Qcow2,
    /// Virtual PC's and Azure's format.
    Vhd,
    /// `VMware`'s format, in one file.
    Vmdk,
}

/// A disk image in a container image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageDisk {
    /// Container image that holds the disk image.
    #[schemars(length(min = 1, max = 512), pattern(r"^\S+$"))]
    pub image: String,
    /// Absolute path in the image of the disk image, or of a directory that holds nothing else; `/disk` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^(/[^/]+)+$') && !self.matches('/[.][.]?(/|$)')")
        .message("path is an absolute path in the image, without . and .. and without a / at its end: write for example /disk or /disk/root.img"))]
    pub path: Option<String>,
    /// Format of the disk image: what it says of itself, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// When the kubelet fetches the image; IfNotPresent if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
}

impl ImageDisk {
    /// The path in the image, or its default.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(DEFAULT_IMAGE_PATH)
    }
}

/// An empty disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDisk {
    /// Size of the disk, for example `10Gi`: from 1Mi to 16Ti, a whole number of MiB. Space on the node is taken as the guest writes.
    #[x_kube(
        validation = Rule::new("isQuantity(self)").message("emptyDisk.size is not a quantity: write for example 512Mi or 10Gi"),
        validation = Rule::new("!isQuantity(self) || (quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('16Ti')) <= 0)")
            .message("emptyDisk.size is out of range: write a size from 1Mi to 16Ti"),
        validation = Rule::new("!isQuantity(self) || (quantity(self).isInteger() && quantity(self).asInteger() % 1048576 == 0)")
            .message("emptyDisk.size is not a whole number of MiB: write for example 512Mi or 10Gi"),
    )]
    pub size: Quantity,
}

/// Path of the disk's file in a claim with a file system, by the convention that KubeVirt's claims follow.
pub const DEFAULT_CLAIM_PATH: &str = "/disk.img";

/// A claim in the VM's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.volumeMode) || self.volumeMode != 'Block' || !(has(self.path) || has(self.size))")
    .message("a claim of volumeMode Block is the disk itself: leave path and size out"))]
pub struct ClaimDisk {
    /// Name of the `PersistentVolumeClaim`.
    #[schemars(
        length(min = 1, max = 253),
        pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub claim_name: String,
    /// The claim's own volumeMode; Filesystem if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_mode: Option<VolumeMode>,
    /// Absolute path in the claim's file system of the file that is the disk, byte by byte; `/disk.img` if it is left out. No part of it may be a symbolic
    /// link, and its directory must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^(/[^/]+)+$') && !self.matches('/[.][.]?(/|$)')")
        .message("path is an absolute path in the claim, without . and .. and without a / at its end: write for example /disk.img"))]
    pub path: Option<String>,
    /// Size that the file has at least, from 1Mi to 16Ti, a whole number of MiB: at the VM's start it is made, sparse, or grown. Without it the file must be
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("isQuantity(self)").message("persistentVolumeClaim.size is not a quantity: write for example 10Gi"),
        validation = Rule::new("!isQuantity(self) || (quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('16Ti')) <= 0)")
            .message("persistentVolumeClaim.size is out of range: write a size from 1Mi to 16Ti"),
        validation = Rule::new("!isQuantity(self) || (quantity(self).isInteger() && quantity(self).asInteger() % 1048576 == 0)")
            .message("persistentVolumeClaim.size is not a whole number of MiB: write for example 10Gi"),
    )]
    pub size: Option<Quantity>,
}

impl ClaimDisk {
    /// The path in the claim, or its default.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(DEFAULT_CLAIM_PATH)
    }
}

/// How a claim's volume is handed to a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum VolumeMode {
    /// A file system.
    #[default]
    Filesystem,
    /// A block device.
    Block,
}

impl VolumeMode {
    /// The name in the Kubernetes API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filesystem => "Filesystem",
            Self::Block => "Block",
        }
    }
}

/// A `ConfigMap` in the VM's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapDisk {
    /// Name of the `ConfigMap`.
    #[schemars(
        length(min = 1, max = 253),
        pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}

/// A Secret in the VM's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretDisk {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub secret_name: String,
}
