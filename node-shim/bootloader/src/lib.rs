//! Finds in a disk image the kernel, initrd and command line that the image's own boot loader would start, so that an unmodified
//! cloud image boots without firmware.
//!
//! ```text
//! disk ─► partitions ─► file systems ─► configuration of a boot loader ─► kernel, initrd, command line
//!         table/        filesystem/     grub/, systemd_boot, extlinux,     search ─► kernel/ (unpacked, cached)
//!                       volumes         unified
//! ```
//!
//! Everything on the disk is hostile: [`Limits`] bounds what it can cost. Nothing is written to it. All is synchronous, without
//! global state, and made to run in a process of its own with nothing but the disk and a pipe.

pub mod bls;
mod bytes;
mod disk;
pub mod extlinux;
pub mod files;
mod filesystem;
pub mod grub;
pub mod kernel;
mod limits;
mod search;
mod selection;
pub mod systemd_boot;
mod table;
pub mod unified;
mod version;
mod volumes;

pub use disk::{Disk, RawDisk};
pub use limits::Limits;
pub use search::{BootEntry, BootImage, FindError, find};
pub use selection::{Loader, Selection};
pub use table::{Purpose, Scheme};

#[cfg(any(test, feature = "testing"))]
pub mod testing;
