//! The disks of a VM.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Quantity, image::PullPolicy};

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
    validation = Rule::new("has(self.image) != has(self.emptyDisk)")
        .message("a disk has exactly one source: write either image or emptyDisk"),
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
    /// A disk image in a container image. What the guest writes is kept apart from it, and lives as long as the VM's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageDisk>,
    /// An empty disk that lives as long as the VM's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_disk: Option<EmptyDisk>,
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
