//! Disks that one process opens and another uses: a volume pod's, plugged into a VM that runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use node_shim_protocol::ExitReason;
use node_shim_protocol::agent::AttachDisk;
use node_shim_protocol::config::DiskSource;
use node_shim_virtio::block::{Block, FileStorage, Options};
use rustix::fs::{MemfdFlags, SealFlags};

use super::{DiskError, files, files_error, open_claim_device, open_claim_file, open_empty, plugged_options, start};
use crate::config::{self, ConfigError, Disk};

/// Bytes that are written at a time where a disk in memory has any.
const BLOCK_BYTES: usize = 4096;

/// Why a disk cannot be lent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LendError {
    /// As a VM's own disk.
    #[error(transparent)]
    Disk(DiskError),
    /// An image.
    #[error(
        "disk `{0}`: an image cannot be lent, because what its guest writes is kept by its VMM; restart the VM to give it this disk"
    )]
    Image(String),
    /// No memory for a disk of files.
    #[error("disk `{disk}`: failed to keep it in memory: {source}")]
    Memory {
        /// The disk.
        disk: String,
        /// Why.
        source: io::Error,
    },
}

impl LendError {
    /// For the exit code.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Disk(error) => error.reason(),
            Self::Image(_) => ExitReason::InvalidConfig,
            Self::Memory { .. } => ExitReason::HostUnavailable,
        }
    }
}

/// Opens a disk as a VMM opens its own, locked.
pub(crate) fn open(scratch: &Path, disk: &Disk) -> Result<File, LendError> {
    let storage = match &disk.source {
        DiskSource::Image { .. } => return Err(LendError::Image(disk.name.clone())),
        DiskSource::File { path, size_bytes } => open_claim_file(disk, path, *size_bytes),
        DiskSource::Device { path } => open_claim_device(disk, path),
        DiskSource::Empty { size_bytes } => open_empty(scratch, disk, *size_bytes),
        DiskSource::Files { path, label } => {
            let contents = files::make(path, label).map_err(files_error(disk));
            let contents = contents.map_err(LendError::Disk)?;
            return in_memory(contents.as_bytes()).map_err(|source| LendError::Memory {
                disk: disk.name.clone(),
                source,
            });
        }
    };
    storage.map(FileStorage::into_file).map_err(LendError::Disk)
}

/// A file without a name that nobody can change any more. Blocks of zeros take no memory.
fn in_memory(contents: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("disk", flags)?);
    file.set_len(contents.len() as u64)?;
    for (index, block) in contents.chunks(BLOCK_BYTES).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, (index * BLOCK_BYTES) as u64)?;
        }
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// What was asked for and cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// It says something impossible.
    #[error(transparent)]
    Invalid(ConfigError),
    /// Its descriptor is no disk, or the host refuses threads.
    #[error(transparent)]
    Disk(DiskError),
}

/// A disk that a volume pod lends. Neither it nor its descriptor is trusted.
pub(crate) fn attach(disk: &AttachDisk, file: File, queues: u8) -> Result<Block, AttachError> {
    let AttachDisk {
        name,
        lender: _,
        options,
    } = disk;
    let checked = config::check_disk_options(name, options).map_err(AttachError::Invalid)?;
    let storage = FileStorage::lent(file, options.read_only, Path::new(name));
    let storage = storage.map_err(|source| AttachError::Disk(DiskError::in_claim(name, source)))?;
    let options = Options {
        serial: checked.serial,
        discard: checked.discard,
        limits: checked.limits,
        ..plugged_options(name, queues)
    };
    start(name, options, Arc::new(storage)).map_err(AttachError::Disk)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use node_shim_protocol::agent::DiskOptions;
    use node_shim_protocol::config as protocol;
    use node_shim_virtio::block::Storage;

    use super::*;

    fn disk(source: DiskSource) -> Disk {
        let read_only = matches!(source, DiskSource::Files { .. });
        let disk = protocol::Disk {
            name: "data".to_owned(),
            serial: None,
            read_only,
            rate_limit: protocol::RateLimit::default(),
            cache: protocol::Cache::default(),
            io: None,
            discard: protocol::Discard::default(),
            source,
        };
        config::check_disk(disk).unwrap()
    }

    #[test]
    fn each_kind_is_opened_as_a_vm_opens_it() {
        let directory = tempfile::tempdir().unwrap();
        let open = |source| open(directory.path(), &disk(source));
        let path = directory.path().join("disk.img");
        let claim = |size_bytes| DiskSource::File {
            path: path.clone(),
            size_bytes,
        };
        let error = open(claim(None)).unwrap_err();
        assert_eq!(error.reason(), ExitReason::DiskUnavailable);
        let lent = open(claim(Some(1 << 20))).unwrap();
        assert_eq!(lent.metadata().unwrap().len(), 1 << 20);
        let error = open(claim(None)).unwrap_err();
        assert!(error.to_string().contains("in use by another process"), "{error}");
        assert_eq!(error.reason(), ExitReason::DiskUnavailable);
        drop(lent);
        assert!(open(claim(None)).is_ok());

        let empty = open(DiskSource::Empty { size_bytes: 4096 }).unwrap();
        assert_eq!(empty.metadata().unwrap().len(), 4096);
        let image = DiskSource::Image {
            path: PathBuf::from("/image"),
            format: None,
            backing: Vec::new(),
        };
        assert_eq!(open(image).unwrap_err().reason(), ExitReason::InvalidConfig);
    }

    #[test]
    fn files_become_a_disk_that_nobody_changes() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("key"), "value").unwrap();
        let source = DiskSource::Files {
            path: directory.path().to_owned(),
            label: "data".to_owned(),
        };
        let file = open(Path::new("/nowhere"), &disk(source)).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert!(file.write_all_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err());
        let storage = FileStorage::lent(file, true, Path::new("data")).unwrap();
        let mut bytes = vec![0; usize::try_from(storage.len()).unwrap()];
        storage.read_bytes_at(&mut bytes, 0).unwrap();
        assert!(bytes.windows(5).any(|window| window == b"value"));
    }

    #[test]
    fn what_a_hostile_lender_says_is_checked() {
        let attach = |name: &str, options, file| {
            let disk = AttachDisk {
                name: name.to_owned(),
                lender: "v1".to_owned(),
                options,
            };
            super::attach(&disk, file, 1).err().unwrap().to_string()
        };
        let null = || File::open("/dev/null").unwrap();
        let serial = |serial: &str| DiskOptions {
            serial: Some(serial.to_owned()),
            ..DiskOptions::default()
        };
        assert!(attach("Data", DiskOptions::default(), null()).contains("name"));
        assert!(attach("data", serial("two words"), null()).contains("serial"));
        assert!(attach("data", DiskOptions::default(), null()).contains("not open for that"));
    }
}
