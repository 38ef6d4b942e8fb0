//! What a boot loader's configuration says to start.

use std::fmt;

use crate::files::FileRef;

/// The boot loaders whose configurations are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// GRUB 2.
    Grub,
    /// systemd-boot, and entries of the Boot Loader Specification without another loader.
    SystemdBoot,
    /// A unified kernel image that the firmware starts itself.
    UnifiedKernel,
    /// EXTLINUX or SYSLINUX.
    Extlinux,
}

impl fmt::Display for Loader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Grub => "GRUB",
            Self::SystemdBoot => "systemd-boot",
            Self::UnifiedKernel => "a unified kernel image",
            Self::Extlinux => "EXTLINUX",
        })
    }
}

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The entry's title.
    pub title: Option<String>,
    /// The kernel, or a unified kernel image.
    pub kernel: FileRef,
    /// Initial RAM disks, in order.
    pub initrds: Vec<FileRef>,
    /// The kernel's command line. `None` leaves it to a unified kernel image.
    pub command_line: Option<String>,
}
