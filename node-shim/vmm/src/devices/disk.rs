//! Disks: images behind overlays, and empty disks, both in the scratch directory.

use node_shim_protocol::ExitReason;
use node_shim_protocol::config::DiskSource;
use node_shim_virtio::block::Block;
use node_shim_virtio::block::file::FileStorage;
use node_shim_virtio::block::overlay::OverlayStorage;
use node_shim_virtio::block::storage::{Storage, StorageError};

use crate::config::{CheckedConfig, Disk};
use crate::volume::{self, VolumeError};

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
}

impl DiskError {
    /// For the exit code: what is wrong with the image is the user's to mend, what is wrong with scratch space the host's.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Image { .. } => ExitReason::InvalidDisk,
            Self::Storage { source, .. } => match source {
                StorageError::Io { .. } | StorageError::InUse { .. } => ExitReason::HostUnavailable,
                StorageError::PartialSector { .. }
                | StorageError::Empty { .. }
                | StorageError::Size { .. }
                | StorageError::Map { .. } => ExitReason::InvalidDisk,
            },
        }
    }
}

/// Opens every disk, in the guest's order.
pub(crate) fn open_all(config: &CheckedConfig) -> Result<Vec<Block>, DiskError> {
    let disks = config.disks.iter().enumerate();
    disks.map(|(index, disk)| open_disk(config, index, disk)).collect()
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

fn open_disk(config: &CheckedConfig, index: usize, disk: &Disk) -> Result<Block, DiskError> {
    let storage_error = |source| DiskError::Storage {
        disk: disk.name.clone(),
        source,
    };
    let storage: Box<dyn Storage> = match &disk.source {
        DiskSource::Image { path } => {
            let file = volume::open_file_or_only_file(path).map_err(|source| DiskError::Image {
                disk: disk.name.clone(),
                source,
            })?;
            let image = FileStorage::read_only(file, path).map_err(storage_error)?;
            if disk.read_only {
                Box::new(image)
            } else {
                let overlay = config.scratch.join(overlay_name(disk));
                Box::new(OverlayStorage::open(image, &overlay).map_err(storage_error)?)
            }
        }
        DiskSource::Empty { size_bytes } => {
            let path = config.scratch.join(empty_name(disk));
            Box::new(FileStorage::open_or_create(&path, *size_bytes).map_err(storage_error)?)
        }
    };
    Ok(Block::new(format!("blk{index}"), &disk.name, storage))
}
