//! A VM's disks, checked.

use std::collections::BTreeSet;
use std::path::Path;

use node_shim_protocol::agent::DiskOptions;
use node_shim_protocol::config::{self as protocol, Cache, Discard, DiskFormat, DiskSource, Io};
use node_shim_virtio::block::storage::DISK_MAX_BYTES;
use node_shim_virtio::fat::LABEL_BYTES;
use node_shim_virtio::rate_limit::Limits;

use super::{ConfigError, check_label, check_name, check_rate_limit, refuse};

/// Most disks.
const DISKS_MAX: usize = 16;
/// Most images below another one.
const BACKING_MAX: usize = 8;
/// Bytes of a disk's serial number (virtio 1.2, 5.2.6).
const SERIAL_MAX_BYTES: usize = 20;

/// A disk whose name is a DNS label.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Unique among the disks.
    pub(crate) name: String,
    /// At most 20 bytes.
    pub(crate) serial: String,
    /// Whether the guest may only read it.
    pub(crate) read_only: bool,
    /// How much it may move.
    pub(crate) limits: Limits,
    /// What the page cache does for it.
    pub(crate) cache: Cache,
    /// What carries out its requests, where that matters.
    pub(crate) io: Option<Io>,
    /// What becomes of space that is no longer needed.
    pub(crate) discard: Discard,
    /// Where its contents come from.
    pub(crate) source: DiskSource,
}

/// Checks the disks, in the guest's order.
pub(super) fn check_all(disks: Vec<protocol::Disk>) -> Result<Vec<Disk>, ConfigError> {
    if disks.len() > DISKS_MAX {
        return refuse("disks", format!("there are {}; write at most {DISKS_MAX}", disks.len()));
    }
    let mut names = BTreeSet::new();
    let numbered = disks.into_iter().enumerate();
    numbered
        .map(|(index, disk)| {
            let field = format!("disks[{index}]");
            check_name(&format!("{field}.name"), &disk.name, &mut names)?;
            check(&field, disk)
        })
        .collect()
}

/// Checks a disk that is alone.
pub(crate) fn check_one(disk: protocol::Disk) -> Result<Disk, ConfigError> {
    check_label("disk.name", &disk.name)?;
    check("disk", disk)
}

/// A disk whose name was checked.
fn check(field: &str, disk: protocol::Disk) -> Result<Disk, ConfigError> {
    let protocol::Disk {
        name,
        serial,
        read_only,
        rate_limit,
        cache,
        io,
        discard,
        source,
    } = disk;
    check_source(field, read_only, &source)?;
    check_cache(field, cache, &source)?;
    Ok(Disk {
        serial: check_serial(field, serial, &name)?,
        name,
        read_only,
        limits: check_rate_limit(&format!("{field}.rateLimit"), rate_limit)?,
        cache,
        io,
        discard,
        source,
    })
}

/// What of a disk that is lent its device needs.
#[derive(Clone, Debug)]
pub(crate) struct CheckedOptions {
    /// As in [`Disk`].
    pub(crate) serial: String,
    /// As in [`Disk`].
    pub(crate) limits: Limits,
    /// Whether the guest is told that it can discard.
    pub(crate) discard: bool,
}

/// Checks the name and the options of a disk that is lent.
pub(crate) fn check_options(name: &str, options: &DiskOptions) -> Result<CheckedOptions, ConfigError> {
    check_label("name", name)?;
    Ok(CheckedOptions {
        serial: check_serial("options", options.serial.clone(), name)?,
        limits: check_rate_limit("options.rateLimit", options.rate_limit)?,
        discard: options.discard == Discard::Unmap,
    })
}

fn check_cache(field: &str, cache: Cache, source: &DiskSource) -> Result<(), ConfigError> {
    match (cache, source) {
        (Cache::None, DiskSource::Image { .. } | DiskSource::Files { .. }) => refuse(
            format!("{field}.cache"),
            "an image is shared, and files are in memory; leave it out",
        ),
        (Cache::None, DiskSource::File { .. } | DiskSource::Device { .. } | DiskSource::Empty { .. })
        | (Cache::Writeback, _) => Ok(()),
    }
}

fn check_source(field: &str, read_only: bool, source: &DiskSource) -> Result<(), ConfigError> {
    match source {
        DiskSource::Image { path, format, backing } => {
            let write = "write the path of an image or of its directory";
            if path.as_os_str().is_empty() {
                return refuse(format!("{field}.source.image.path"), write);
            }
            let list = format!("{field}.source.image.backing");
            if backing.len() > BACKING_MAX {
                return refuse(
                    list,
                    format!("there are {}; write at most {BACKING_MAX}", backing.len()),
                );
            }
            if !backing.is_empty() && format.is_some_and(|format| format != DiskFormat::Qcow2) {
                return refuse(list, "only a qcow2 image is based on another one; leave it out");
            }
            if let Some(index) = backing.iter().position(|image| image.path.as_os_str().is_empty()) {
                return refuse(format!("{list}[{index}].path"), write);
            }
        }
        DiskSource::File { path, size_bytes } => {
            if path.as_os_str().is_empty() {
                return refuse(format!("{field}.source.file.path"), "write the path of a raw file");
            }
            if let Some(size_bytes) = size_bytes {
                let size = format!("{field}.source.file.sizeBytes");
                if read_only {
                    return refuse(size, "a disk that is only read is not made; leave it out");
                }
                check_size(size, *size_bytes)?;
            }
        }
        DiskSource::Device { path } => {
            if path.as_os_str().is_empty() {
                return refuse(
                    format!("{field}.source.device.path"),
                    "write the path of a block device",
                );
            }
        }
        DiskSource::Files { path, label } => check_files(field, read_only, path, label)?,
        DiskSource::Empty { size_bytes } => check_size(format!("{field}.source.empty.sizeBytes"), *size_bytes)?,
    }
    Ok(())
}

fn check_files(field: &str, read_only: bool, path: &Path, label: &str) -> Result<(), ConfigError> {
    if path.as_os_str().is_empty() {
        return refuse(format!("{field}.source.files.path"), "write the path of a directory");
    }
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !(1..=LABEL_BYTES).contains(&label.len()) || !label.bytes().all(sound) {
        return refuse(
            format!("{field}.source.files.label"),
            format!("write 1 to {LABEL_BYTES} letters, digits, - and _"),
        );
    }
    if !read_only {
        return refuse(
            format!("{field}.readOnly"),
            "a disk of files can only be read; write true",
        );
    }
    Ok(())
}

fn check_size(field: String, size_bytes: u64) -> Result<(), ConfigError> {
    if !(512..=DISK_MAX_BYTES).contains(&size_bytes) || !size_bytes.is_multiple_of(512) {
        return refuse(
            field,
            format!("is {size_bytes}; write a multiple of 512 up to {DISK_MAX_BYTES}"),
        );
    }
    Ok(())
}

fn check_serial(field: &str, serial: Option<String>, name: &str) -> Result<String, ConfigError> {
    let Some(serial) = serial else {
        return Ok(name.chars().take(SERIAL_MAX_BYTES).collect());
    };
    if !(1..=SERIAL_MAX_BYTES).contains(&serial.len()) || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse(
            format!("{field}.serial"),
            format!("write 1 to {SERIAL_MAX_BYTES} printable ASCII characters, without spaces"),
        );
    }
    Ok(serial)
}
