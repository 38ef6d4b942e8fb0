//! The VM's virtio devices, from its checked configuration.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use node_shim_protocol::ExitReason;
use node_shim_protocol::agent::InterfaceGrant;
use node_shim_protocol::config::DiskSource;
use node_shim_virtio::block::Block;
use node_shim_virtio::block::file::FileStorage;
use node_shim_virtio::block::overlay::OverlayStorage;
use node_shim_virtio::block::storage::{Storage, StorageError};
use node_shim_virtio::device::{Memory, VirtioDevice};
use node_shim_virtio::pci::VirtioPci;
use node_shim_virtio::rng::Rng;

use crate::activator::DeviceActivator;
use crate::config::{CheckedConfig, Disk};
use crate::kvm::Vm;
use crate::mailbox::Mailbox;
use crate::pci;
use crate::poll::Poll;
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

/// Why cloud-init data cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloudInitError {}

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {}

/// A tap and what the guest is told about its network.
pub(crate) struct Network {}

/// Opens every disk, in the guest's order.
pub(crate) fn open_disks(config: &CheckedConfig) -> Result<Vec<Block>, DiskError> {
    let disks = config.disks.iter().enumerate();
    disks.map(|(index, disk)| open_disk(config, index, disk)).collect()
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
                let overlay = config.scratch.join(format!("{}.overlay", disk.name));
                Box::new(OverlayStorage::open(image, &overlay).map_err(storage_error)?)
            }
        }
        DiskSource::Empty { size_bytes } => {
            let path = config.scratch.join(format!("{}.raw", disk.name));
            Box::new(FileStorage::open_or_create(&path, *size_bytes).map_err(storage_error)?)
        }
    };
    Ok(Block::new(format!("blk{index}"), &disk.name, storage))
}

/// The cloud-init seed.
pub(crate) fn seed(_config: &CheckedConfig) -> Result<Option<Block>, CloudInitError> {
    Ok(None)
}

/// The taps.
pub(crate) fn networks(
    _config: &CheckedConfig,
    _granted: Vec<(InterfaceGrant, OwnedFd)>,
) -> Result<Vec<Network>, NetworkError> {
    Ok(Vec::new())
}

/// Every device, in the order of its PCI slots.
pub(crate) fn all(
    disks: Vec<Block>,
    seed: Option<Block>,
    _networks: Vec<Network>,
) -> Result<Vec<Box<dyn VirtioDevice>>, NetworkError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in disks.into_iter().chain(seed) {
        devices.push(Box::new(disk));
    }
    devices.push(Box::new(Rng::new()));
    Ok(devices)
}

/// Makes PCI functions of devices, each with its vectors and its connection to the event loop.
pub(crate) fn connect(
    devices: Vec<Box<dyn VirtioDevice>>,
    memory: &Arc<Memory>,
    vm: &Arc<Vm>,
    poll: &Arc<Poll>,
    mailbox: &Arc<Mailbox>,
) -> io::Result<Vec<Arc<VirtioPci>>> {
    let mut functions = Vec::with_capacity(devices.len());
    for (index, device) in devices.into_iter().enumerate() {
        let queues = u16::try_from(device.queue_max_sizes().len()).map_err(io::Error::other)?;
        // One vector for each queue and one for the configuration.
        let interrupts = Arc::new(vm.msi_vectors(queues.saturating_add(1))?);
        let activator = Arc::new(DeviceActivator::new(
            index,
            Arc::clone(vm),
            Arc::clone(poll),
            Arc::clone(mailbox),
        ));
        let bar = u32::try_from(pci::bar_address(index)).map_err(io::Error::other)?;
        functions.push(Arc::new(VirtioPci::new(
            device,
            Arc::clone(memory),
            interrupts,
            activator,
            bar,
        )));
    }
    Ok(functions)
}
