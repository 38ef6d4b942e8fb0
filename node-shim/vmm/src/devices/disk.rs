//! Disks: images behind overlays, and empty disks, both in the scratch directory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;

use node_shim_protocol::ExitReason;
use node_shim_protocol::config::{BackingImage, DiskFormat, DiskSource};
use node_shim_virtio::block::format::{self, Format, Image};
use node_shim_virtio::block::{Block, Engine, FileStorage, Options, OverlayStorage, QUEUES_MAX, Storage, StorageError};
use node_shim_virtio::rate_limit::Limits;

use crate::config::{CheckedConfig, Disk};
use crate::volume::{self, VolumeError};
use crate::{jail, log};

pub(crate) mod command;

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// Its image cannot be opened.
    #[error("disk `{disk}`: {source}")]
    Image {
        /// The disk.
        disk: String,
        /// Why.
        source: VolumeError,
    },
    /// Its image or its file in the scratch directory is unusable.
    #[error("disk `{disk}`: {source}")]
    Storage {
        /// The disk.
        disk: String,
        /// Why.
        source: StorageError,
    },
    /// The host refuses its threads.
    #[error("disk `{disk}`: failed to start its threads: {source}")]
    Threads {
        /// The disk.
        disk: String,
        /// Why.
        source: io::Error,
    },
}

impl DiskError {
    /// For the exit code: what is wrong with the image is the user's to mend, what is wrong with scratch space the host's.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Image { .. } => ExitReason::InvalidDisk,
            Self::Threads { .. } => ExitReason::HostUnavailable,
            Self::Storage { source, .. } => match source {
                StorageError::Io { .. } | StorageError::InUse { .. } => ExitReason::HostUnavailable,
                StorageError::PartialSector { .. }
                | StorageError::Empty { .. }
                | StorageError::TooLarge { .. }
                | StorageError::Format { .. }
                | StorageError::Unsupported { .. }
                | StorageError::Size { .. }
                | StorageError::Map { .. } => ExitReason::InvalidDisk,
            },
        }
    }
}

/// Whether this process has more than one processor, or a share of them that is as much.
static SPARE_PROCESSOR: LazyLock<bool> = LazyLock::new(|| available_parallelism().is_ok_and(|count| count.get() > 1));

/// Opens every disk, in the guest's order.
pub(crate) fn open_all(config: &CheckedConfig) -> Result<Vec<Block>, DiskError> {
    // Now: it reads files of the control group, which are out of reach later.
    LazyLock::force(&SPARE_PROCESSOR);
    if config.disks.is_empty() {
        return Ok(Vec::new());
    }
    let engine = Engine::best();
    log::line(format_args!("disks use {engine}"));
    let disks = config.disks.iter().enumerate();
    disks.map(|(index, disk)| open(config, index, disk, engine)).collect()
}

/// Names of the files in the scratch directory that have the contents of disks, for copies of them.
pub(crate) fn file_names(config: &CheckedConfig) -> Vec<String> {
    let names = config.disks.iter().flat_map(|disk| match &disk.source {
        DiskSource::Image { .. } if disk.read_only => Vec::new(),
        DiskSource::Image { .. } => vec![overlay_name(disk), format!("{}.map", overlay_name(disk))],
        DiskSource::Empty { .. } => vec![empty_name(disk)],
    });
    names.collect()
}

fn overlay_name(disk: &Disk) -> String {
    format!("{}.overlay", disk.name)
}

fn empty_name(disk: &Disk) -> String {
    format!("{}.raw", disk.name)
}

/// Opens one disk, which the guest finds as the one with this index, with its threads.
pub(crate) fn open(config: &CheckedConfig, index: usize, disk: &Disk, engine: Engine) -> Result<Block, DiskError> {
    let options = Options {
        name: format!("blk{index}"),
        serial: disk.serial.clone(),
        queues: u16::from(config.vcpus).min(QUEUES_MAX),
        engine,
        limits: disk.limits,
        on_thread: jail::device_thread,
        spare_processor: *SPARE_PROCESSOR,
    };
    start(&disk.name, options, open_storage(&config.scratch, disk)?)
}

fn start(disk: &str, options: Options, storage: Arc<dyn Storage>) -> Result<Block, DiskError> {
    Block::start(options, storage).map_err(|source| DiskError::Threads {
        disk: disk.to_owned(),
        source,
    })
}

/// A disk that is plugged into a running VM: raw, whatever is in it.
pub(crate) fn attach(name: &str, file: File, read_only: bool, queues: u8) -> Result<Block, DiskError> {
    let storage_error = |source| DiskError::Storage {
        disk: name.to_owned(),
        source,
    };
    let shown = Path::new(name);
    let storage = if read_only {
        FileStorage::read_only(file, shown)
    } else {
        FileStorage::writable(file, shown)
    };
    let options = Options {
        name: format!("blk-{name}"),
        serial: name.to_owned(),
        queues: u16::from(queues).min(QUEUES_MAX),
        // No ring is made once the filters are there: it would be a way around them.
        engine: Engine::Pool,
        limits: Limits::default(),
        on_thread: jail::device_thread,
        spare_processor: *SPARE_PROCESSOR,
    };
    start(name, options, Arc::new(storage.map_err(storage_error)?))
}

fn open_storage(scratch: &Path, disk: &Disk) -> Result<Arc<dyn Storage>, DiskError> {
    let storage_error = |source| DiskError::Storage {
        disk: disk.name.clone(),
        source,
    };
    match &disk.source {
        DiskSource::Image { path, format, backing } => {
            if let Some(overlay) = open_overlay(scratch, disk)? {
                return Ok(Arc::new(overlay));
            }
            Ok(Arc::from(open_image(&disk.name, path, *format, backing)?.storage))
        }
        DiskSource::Empty { size_bytes } => {
            let path = scratch.join(empty_name(disk));
            let file = FileStorage::open_or_create(&path, *size_bytes).map_err(storage_error)?;
            Ok(Arc::new(if disk.read_only { file.write_protected() } else { file }))
        }
    }
}

/// Opens the overlay of a writable disk with an image, and the image below it. No other disk has one.
fn open_overlay(scratch: &Path, disk: &Disk) -> Result<Option<OverlayStorage>, DiskError> {
    let DiskSource::Image { path, format, backing } = &disk.source else {
        return Ok(None);
    };
    if disk.read_only {
        return Ok(None);
    }
    let image = open_image(&disk.name, path, *format, backing)?;
    let overlay = OverlayStorage::open(image, &overlay_path(scratch, disk));
    overlay.map(Some).map_err(|source| DiskError::Storage {
        disk: disk.name.clone(),
        source,
    })
}

fn overlay_path(scratch: &Path, disk: &Disk) -> PathBuf {
    scratch.join(overlay_name(disk))
}

/// Opens an image and what the configuration says is below it, the lowest first.
fn open_image(
    disk: &str,
    path: &Path,
    stated: Option<DiskFormat>,
    backing: &[BackingImage],
) -> Result<Image, DiskError> {
    let mut below = None;
    for image in backing.iter().rev() {
        below = Some(open_layer(disk, &image.path, image.format, below)?);
    }
    let image = open_layer(disk, path, stated, below)?;
    log::line(format_args!(
        "disk `{disk}`: {} image of {} MiB",
        image.format,
        image.storage.len() >> 20
    ));
    Ok(image)
}

fn open_layer(disk: &str, path: &Path, stated: Option<DiskFormat>, below: Option<Image>) -> Result<Image, DiskError> {
    let file = volume::open_file_or_only_file(path).map_err(|source| DiskError::Image {
        disk: disk.to_owned(),
        source,
    })?;
    format::open(file, path, stated.map(format_of), below).map_err(|source| DiskError::Storage {
        disk: disk.to_owned(),
        source,
    })
}

const fn format_of(format: DiskFormat) -> Format {
    match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
        DiskFormat::Vhd => Format::Vhd,
        DiskFormat::Vmdk => Format::Vmdk,
    }
}
