//! Disks in claims: raw files and block devices that the guest reads and writes in place, and nobody else in the meantime.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use node_shim_virtio::block::FileStorage;

use super::DiskError;
use crate::log;
use crate::volume::{self, Use, VolumeError};

/// What a qcow2 image begins with.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Opens a file, which has `least` bytes then.
pub(super) fn open_file(
    disk: &str,
    path: &Path,
    least: Option<u64>,
    read_only: bool,
) -> Result<FileStorage, DiskError> {
    let what_for = match (read_only, least) {
        (true, _) => Use::Read,
        (false, None) => Use::Write,
        (false, Some(_)) => Use::Make,
    };
    let file = volume::open_in_claim(path, what_for).map_err(claim_error(disk))?;
    warn_of_format(disk, &file);
    let storage = if read_only {
        FileStorage::read_only_locked(file, path)
    } else {
        FileStorage::writable_at_least(file, least.unwrap_or(0), path)
    };
    storage.map_err(|source| DiskError::in_claim(disk, source))
}

/// Opens a block device.
pub(super) fn open_device(disk: &str, path: &Path, read_only: bool) -> Result<FileStorage, DiskError> {
    let what_for = if read_only { Use::Read } else { Use::Write };
    let file = volume::open_device(path, what_for).map_err(claim_error(disk))?;
    FileStorage::device(file, read_only, path).map_err(|source| DiskError::in_claim(disk, source))
}

fn claim_error(disk: &str) -> impl FnOnce(VolumeError) -> DiskError {
    move |source| DiskError::Claim {
        disk: disk.to_owned(),
        source,
    }
}

/// A claim's disk is raw whatever its guest writes to it. Whoever put another format there is told why it does not boot.
fn warn_of_format(disk: &str, file: &File) {
    let mut start = [0; 4];
    if file.read_exact_at(&mut start, 0).is_ok() && start == QCOW2_MAGIC {
        log::line(format_args!(
            "disk `{disk}`: the claim's file looks like a qcow2 image, and is used as it is: convert it to a raw one (qemu-img convert -O raw)"
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use node_shim_protocol::ExitReason;
    use node_shim_virtio::block::Storage;
    use node_shim_virtio::buffers::Buffers;

    use super::*;

    #[test]
    fn a_file_is_made_sparse_and_grown_and_never_cut() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let open = |least| open_file("data", &path, least, false).map(|storage| storage.len());
        assert!(open(None).is_err());
        assert_eq!(open(Some(64 << 20)).unwrap(), 64 << 20);
        assert_eq!(fs::metadata(&path).unwrap().blocks(), 0);
        assert_eq!(open(Some(128 << 20)).unwrap(), 128 << 20);
        assert_eq!(open(Some(1 << 20)).unwrap(), 128 << 20);
        assert_eq!(open(None).unwrap(), 128 << 20);
    }

    #[test]
    fn a_file_has_one_writer_or_many_readers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let open = |read_only| open_file("data", &path, None, read_only);
        fs::write(&path, [0; 4096]).unwrap();
        let writer = open(false).unwrap();
        for read_only in [false, true] {
            let error = open(read_only).err().unwrap();
            assert_eq!(error.reason(), ExitReason::DiskUnavailable);
            assert!(error.to_string().contains("in use by another process"), "{error}");
        }
        drop(writer);
        let readers = [open(true).unwrap(), open(true).unwrap()];
        assert!(open(false).is_err());
        assert!(readers[0].write_at(&mut Buffers::over(&mut [1; 512]), 0).is_err());
        drop(readers);
        open(false)
            .unwrap()
            .write_at(&mut Buffers::over(&mut [1; 512]), 0)
            .unwrap();
        assert_eq!(fs::read(&path).unwrap()[..513], [[1; 512].as_slice(), &[0]].concat());
    }

    #[test]
    fn what_is_wrong_with_a_claim_is_explained() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let open = || open_file("data", &path, None, false).err().unwrap();
        let missing = open();
        assert_eq!(missing.reason(), ExitReason::DiskUnavailable);
        assert!(missing.to_string().contains("disk `data`: failed to open"), "{missing}");
        fs::write(&path, [0; 1000]).unwrap();
        let partial = open();
        assert_eq!(partial.reason(), ExitReason::DiskUnavailable);
        assert!(
            partial.to_string().contains("whole number of 512-byte sectors"),
            "{partial}"
        );
        let file = open_device("data", &path, false).err().unwrap();
        assert!(file.to_string().contains("is not a block device"), "{file}");
    }
}
