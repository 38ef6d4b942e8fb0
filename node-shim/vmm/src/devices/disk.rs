//! Disks: images behind overlays and empty disks, both with files in the scratch directory; claims; and files that are made a disk.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;

use node_shim_protocol::ExitReason;
use node_shim_protocol::config::{BackingImage, Cache, Discard, DiskFormat, DiskSource, Io};
use node_shim_virtio::block::format::{self, Format, Image};
use node_shim_virtio::block::{Block, Engine, FileStorage, Options, OverlayStorage, QUEUES_MAX, Storage, StorageError};
use node_shim_virtio::rate_limit::Limits;

use crate::config::{CheckedConfig, Disk};
use crate::volume::{self, VolumeError};
use crate::{jail, log};

mod claim;
pub(crate) mod command;
mod files;
pub(crate) mod lent;

pub(crate) use self::files::FilesDisk;
use self::files::FilesError;

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
    /// Its file in a claim, or its device, cannot be opened.
    #[error("disk `{disk}`: {source}")]
    Claim {
        /// The disk.
        disk: String,
        /// Why.
        source: VolumeError,
    },
    /// Its file in a claim, or its device, cannot be used as it is.
    #[error("disk `{disk}`: {source}")]
    InClaim {
        /// The disk.
        disk: String,
        /// Why.
        source: StorageError,
    },
    /// Files do not become a disk.
    #[error("disk `{disk}`: {source}")]
    Files {
        /// The disk.
        disk: String,
        /// Why.
        source: FilesError,
    },
    /// `io_uring` was asked for.
    #[error(
        "disk `{disk}`: this process may not use io_uring, which its configuration asks for; leave `io` out, or let the node's containers have it \
         (seccomp profile, sysctl kernel.io_uring_disabled)"
    )]
    NoUring {
        /// The disk.
        disk: String,
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
    /// For the exit code: what is wrong with the image is the user's to mend, what is wrong with scratch space the host's. A claim may be free tomorrow,
    /// and what is in it, in a `ConfigMap` or in a Secret can be mended without the VM.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Threads { .. } | Self::NoUring { .. } => ExitReason::HostUnavailable,
            Self::Storage { source, .. } if is_of_host(source) => ExitReason::HostUnavailable,
            Self::Image { .. }
            | Self::Storage { .. }
            | Self::InClaim {
                // What the VM asks for, of storage that does not have it.
                source: StorageError::Direct { .. },
                ..
            } => ExitReason::InvalidDisk,
            Self::Claim { .. } | Self::InClaim { .. } | Self::Files { .. } => ExitReason::DiskUnavailable,
        }
    }

    fn in_claim(disk: &str, source: StorageError) -> Self {
        Self::InClaim {
            disk: disk.to_owned(),
            source,
        }
    }
}

/// Whether another try may help.
fn is_of_host(error: &StorageError) -> bool {
    match error {
        StorageError::Io { .. } | StorageError::InUse { .. } => true,
        StorageError::PartialSector { .. }
        | StorageError::Empty { .. }
        | StorageError::TooLarge { .. }
        | StorageError::Format { .. }
        | StorageError::Unsupported { .. }
        | StorageError::Size { .. }
        | StorageError::Direct { .. }
        | StorageError::Map { .. } => false,
    }
}

/// Whether this process has more than one processor, or a share of them that is as much.
static SPARE_PROCESSOR: LazyLock<bool> = LazyLock::new(|| available_parallelism().is_ok_and(|count| count.get() > 1));

/// Every disk of a configuration.
#[derive(Default)]
pub(crate) struct Disks {
    /// The devices, in the guest's order.
    pub(crate) blocks: Vec<Block>,
    /// Those of files, which are made anew for each start of the guest.
    pub(crate) files: Vec<FilesDisk>,
}

/// Opens every disk, in the guest's order.
pub(crate) fn open_all(config: &CheckedConfig) -> Result<Disks, DiskError> {
    // Now: it reads files of the control group, which are out of reach later.
    LazyLock::force(&SPARE_PROCESSOR);
    let mut disks = Disks::default();
    if config.disks.is_empty() {
        return Ok(disks);
    }
    let best = Engine::best();
    log::line(format_args!("disks use {best}"));
    for (index, disk) in config.disks.iter().enumerate() {
        match open_contents(&config.scratch, disk)? {
            Contents::Storage(storage) => {
                let options = options(config, index, disk, engine(disk, best)?);
                disks.blocks.push(start(&disk.name, options, storage)?);
            }
            Contents::Files(files) => {
                disks.blocks.push(files.device(index, &disk.serial));
                disks.files.push(files);
            }
        }
    }
    Ok(disks)
}

fn engine(disk: &Disk, best: Engine) -> Result<Engine, DiskError> {
    match disk.io {
        None => Ok(best),
        Some(Io::Threads) => Ok(Engine::Pool),
        Some(Io::IoUring) if best == Engine::Uring => Ok(Engine::Uring),
        Some(Io::IoUring) => Err(DiskError::NoUring {
            disk: disk.name.clone(),
        }),
    }
}

/// Why there can be no snapshot: a disk of which it would have no copy. A guest that goes on has the old one in its page cache, even of one that it only
/// reads.
pub(crate) fn without_copies(config: &CheckedConfig) -> Option<String> {
    config.disks.iter().find_map(|disk| without_copy(disk.read_only, &disk.source).map(|problem| {
        format!(
            "disk `{}` {problem}, of which this snapshot would have no copy: a VM that is restored from it might find another disk than it left; leave \
             the disk out to take snapshots",
            disk.name
        )
    }))
}

fn without_copy(read_only: bool, source: &DiskSource) -> Option<&'static str> {
    match source {
        DiskSource::File { .. } | DiskSource::Device { .. } if read_only => {
            Some("is in a claim, where others may write")
        }
        DiskSource::File { .. } | DiskSource::Device { .. } => Some("is in a claim, where the guest writes"),
        DiskSource::Files { .. } => Some("is made of a ConfigMap or a Secret as it is when the VM starts"),
        DiskSource::Image { .. } | DiskSource::Empty { .. } => None,
    }
}

/// Directories that are read when the guest is reset.
pub(crate) fn directories(config: &CheckedConfig) -> Vec<PathBuf> {
    let of_disk = |disk: &Disk| match &disk.source {
        DiskSource::Files { path, .. } => Some(path.clone()),
        DiskSource::Image { .. } | DiskSource::File { .. } | DiskSource::Device { .. } | DiskSource::Empty { .. } => {
            None
        }
    };
    config.disks.iter().filter_map(of_disk).collect()
}

/// Names of the files in the scratch directory that have the contents of disks, for copies of them.
pub(crate) fn file_names(config: &CheckedConfig) -> Vec<String> {
    let names = config.disks.iter().flat_map(|disk| match &disk.source {
        DiskSource::File { .. } | DiskSource::Device { .. } | DiskSource::Files { .. } => Vec::new(),
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

/// Of the disk that the guest finds as the one with this index.
fn options(config: &CheckedConfig, index: usize, disk: &Disk, engine: Engine) -> Options {
    Options {
        name: format!("blk{index}"),
        serial: disk.serial.clone(),
        queues: u16::from(config.vcpus).min(QUEUES_MAX),
        engine,
        discard: disk.discard == Discard::Unmap,
        limits: disk.limits,
        on_thread: jail::device_thread,
        spare_processor: *SPARE_PROCESSOR,
    }
}

fn start(disk: &str, options: Options, storage: Arc<dyn Storage>) -> Result<Block, DiskError> {
    Block::start(options, storage).map_err(|source| DiskError::Threads {
        disk: disk.to_owned(),
        source,
    })
}

/// A disk that is plugged into a running VM by whoever controls it: raw, whatever is in it.
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
        serial: name.to_owned(),
        ..plugged_options(name, queues)
    };
    start(name, options, Arc::new(storage.map_err(storage_error)?))
}

/// Of a disk that is plugged.
fn plugged_options(name: &str, queues: u8) -> Options {
    Options {
        name: format!("blk-{name}"),
        serial: String::new(),
        queues: u16::from(queues).min(QUEUES_MAX),
        // No ring is made once the filters are there: it would be a way around them.
        engine: Engine::Pool,
        discard: true,
        limits: Limits::default(),
        on_thread: jail::device_thread,
        spare_processor: *SPARE_PROCESSOR,
    }
}

/// What a disk consists of.
enum Contents {
    /// Something that is read and written while the guest runs.
    Storage(Arc<dyn Storage>),
    /// Files, which are read when it starts.
    Files(FilesDisk),
}

fn open_contents(scratch: &Path, disk: &Disk) -> Result<Contents, DiskError> {
    let storage: Arc<dyn Storage> = match &disk.source {
        DiskSource::Image { path, format, backing } => match open_overlay(scratch, disk)? {
            Some(overlay) => Arc::new(overlay),
            None => Arc::from(open_image(&disk.name, path, *format, backing)?.storage),
        },
        DiskSource::File { path, size_bytes } => Arc::new(open_claim_file(disk, path, *size_bytes)?),
        DiskSource::Device { path } => Arc::new(open_claim_device(disk, path)?),
        DiskSource::Files { path, label } => {
            let files = FilesDisk::open(&disk.name, path, label);
            return files.map(Contents::Files).map_err(files_error(disk));
        }
        DiskSource::Empty { size_bytes } => {
            let file = open_empty(scratch, disk, *size_bytes)?;
            Arc::new(if disk.read_only { file.write_protected() } else { file })
        }
    };
    Ok(Contents::Storage(storage))
}

fn files_error(disk: &Disk) -> impl FnOnce(FilesError) -> DiskError {
    let disk = disk.name.clone();
    move |source| DiskError::Files { disk, source }
}

/// Beside the page cache, where that is asked for.
fn cached(disk: &Disk, storage: FileStorage, path: &Path) -> Result<FileStorage, StorageError> {
    match disk.cache {
        Cache::Writeback => Ok(storage),
        Cache::None => storage.direct(path),
    }
}

fn open_claim_file(disk: &Disk, path: &Path, size_bytes: Option<u64>) -> Result<FileStorage, DiskError> {
    let file = claim::open_file(&disk.name, path, size_bytes, disk.read_only)?;
    cached(disk, file, path).map_err(|source| DiskError::in_claim(&disk.name, source))
}

fn open_claim_device(disk: &Disk, path: &Path) -> Result<FileStorage, DiskError> {
    let device = claim::open_device(&disk.name, path, disk.read_only)?;
    cached(disk, device, path).map_err(|source| DiskError::in_claim(&disk.name, source))
}

fn open_empty(scratch: &Path, disk: &Disk, size_bytes: u64) -> Result<FileStorage, DiskError> {
    let path = scratch.join(empty_name(disk));
    let file = FileStorage::open_or_create(&path, size_bytes);
    file.and_then(|file| cached(disk, file, &path))
        .map_err(|source| DiskError::Storage {
            disk: disk.name.clone(),
            source,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_mended_without_the_vm_is_tried_again() {
        let path = || PathBuf::from("/disk");
        let image = |source| DiskError::Storage {
            disk: "a".to_owned(),
            source,
        };
        let claim = |source| DiskError::in_claim("a", source);
        let files = |source| DiskError::Files {
            disk: "a".to_owned(),
            source,
        };
        let large = || StorageError::TooLarge {
            path: path(),
            length: u64::MAX,
        };
        let partial = || StorageError::PartialSector {
            path: path(),
            length: 1,
        };
        let direct = StorageError::Direct {
            path: path(),
            problem: "is slow",
        };
        let name = FilesError::Name {
            path: path(),
            name: "A".to_owned(),
            problem: "is no name",
        };
        for (error, expected) in [
            (image(StorageError::Empty { path: path() }), ExitReason::InvalidDisk),
            (image(partial()), ExitReason::InvalidDisk),
            (image(large()), ExitReason::InvalidDisk),
            (image(StorageError::InUse { path: path() }), ExitReason::HostUnavailable),
            (claim(StorageError::Empty { path: path() }), ExitReason::DiskUnavailable),
            (claim(partial()), ExitReason::DiskUnavailable),
            (claim(large()), ExitReason::DiskUnavailable),
            (claim(StorageError::InUse { path: path() }), ExitReason::DiskUnavailable),
            (claim(direct), ExitReason::InvalidDisk),
            (
                files(FilesError::TooLarge { path: path() }),
                ExitReason::DiskUnavailable,
            ),
            (files(name), ExitReason::DiskUnavailable),
        ] {
            assert_eq!(error.reason(), expected, "{error}");
        }
    }

    #[test]
    fn only_disks_with_a_copy_are_in_a_snapshot() {
        let path = || PathBuf::from("/disk");
        let image = DiskSource::Image {
            path: path(),
            format: None,
            backing: Vec::new(),
        };
        let file = DiskSource::File {
            path: path(),
            size_bytes: None,
        };
        let files = DiskSource::Files {
            path: path(),
            label: "conf".to_owned(),
        };
        for (read_only, source, expected) in [
            (false, image.clone(), None),
            (true, image, None),
            (false, DiskSource::Empty { size_bytes: 512 }, None),
            (false, file.clone(), Some("the guest writes")),
            (true, file, Some("others may write")),
            (true, DiskSource::Device { path: path() }, Some("others may write")),
            (true, files, Some("a ConfigMap or a Secret")),
        ] {
            let problem = without_copy(read_only, &source);
            let matches = match (problem, expected) {
                (Some(problem), Some(expected)) => problem.contains(expected),
                (problem, expected) => problem == expected,
            };
            assert!(matches, "{read_only} {source:?}: {problem:?}");
        }
    }
}
