//! What a VM starts from.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::image::PullPolicy;

/// What a VM starts from: exactly one source. Without `boot` it is the VM's first disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.kernel) != has(self.disk)")
    .message("boot has exactly one source: write either kernel, or disk with the name of one of spec.disks"))]
pub struct Boot {
    /// Name of the disk whose own boot loader says which kernel, initrd and command line to start: GRUB, systemd-boot, EXTLINUX or a
    /// unified kernel image. The disk is read at every start and reset, so a kernel update made in the guest is what boots next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub disk: Option<String>,
    /// A Linux kernel from a container image, loaded without firmware or boot loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelBoot>,
}

/// A Linux kernel, its initrd and its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.commandLine) || size(bytes(self.commandLine)) <= 2047")
    .message("commandLine is longer than the 2047 bytes that Linux reads"))]
pub struct KernelBoot {
    /// Container image that holds kernel and initrd.
    #[schemars(length(min = 1, max = 512), pattern(r"^\S+$"))]
    pub image: String,
    /// When the kubelet fetches the image; IfNotPresent if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Absolute path of the kernel in the image: a bzImage (`vmlinuz`) or an ELF kernel with a PVH entry (`vmlinux`).
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^(/[^/]+)+$') && !self.matches('/[.][.]?(/|$)')")
        .message("kernelPath is an absolute path in the image, without . and .. and without a / at its end: write for example /boot/vmlinuz"))]
    pub kernel_path: String,
    /// Absolute path of the initial RAM disk in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^(/[^/]+)+$') && !self.matches('/[.][.]?(/|$)')")
        .message("initrdPath is an absolute path in the image, without . and .. and without a / at its end: write for example /boot/initrd.img"))]
    pub initrd_path: Option<String>,
    /// Kernel command line, at most 2047 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2047))]
    #[x_kube(validation = Rule::new("!self.matches('[\\\\x00-\\\\x1f\\\\x7f]')")
        .message("commandLine holds a line break or another control character: write it on one line (in YAML: >- or quotes)"))]
    pub command_line: Option<String>,
}
