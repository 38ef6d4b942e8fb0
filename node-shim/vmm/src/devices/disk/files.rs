//! The files of a directory as a small read-only disk: a `ConfigMap` or a Secret, which the kubelet shows as a directory.
//!
//! ```text
//! config/..data -> ..2026_01_31_12_00_00.1      the kubelet makes a new directory and renames the link: contents change all at once
//! config/key    -> ..data/key
//! ```
//!
//! What a guest has read it keeps in its page cache, so that a file system must not change under it. The disk is made when the VM starts, and again
//! when its guest is reset, and is the same size every time.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use node_shim_virtio::block::{Block, MemoryStorage, ReplaceableStorage};
use node_shim_virtio::fat;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use crate::log;

/// Bytes of the disk: room for the largest `ConfigMap` with as many keys as are taken. What is not used takes no memory.
const DISK_BYTES: usize = 8 << 20;
/// Most bytes of all files: those of a `ConfigMap` or a Secret (`MaxSecretSize` of k8s.io/api/core/v1).
const FILES_MAX_BYTES: u64 = 1 << 20;
/// Most files.
const FILES_MAX: usize = 256;
/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 4096;
/// Tries at reading a directory that is replaced in the meantime.
const TRIES: usize = 3;
/// Where the kubelet has the files (`pkg/volume/util/atomic_writer.go` of Kubernetes).
const DATA: &str = "..data";

/// Why files are no disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// The directory or a file in it is missing or unreadable.
    #[error("failed to read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Contents changed every time.
    #[error("the files in {path} were replaced while they were read")]
    Replaced {
        /// The directory.
        path: PathBuf,
    },
    /// More than a `ConfigMap` can have.
    #[error("{path} has more than {FILES_MAX} files or {FILES_MAX_BYTES} bytes; use fewer, or another kind of disk")]
    TooLarge {
        /// The directory.
        path: PathBuf,
    },
    /// A name that the file system does not have.
    #[error(
        "the key `{name}` of {path} {problem}, which a FAT file system does not tell apart from another name; rename it"
    )]
    Name {
        /// The directory.
        path: PathBuf,
        /// The file.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file system cannot be made.
    #[error("failed to make a disk of the files in {path}: {source}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Names and contents of files, by their names.
type Files = Vec<(String, Vec<u8>)>;

/// A disk of files, to be made anew.
pub(crate) struct FilesDisk {
    name: String,
    directory: PathBuf,
    label: String,
    storage: Arc<ReplaceableStorage>,
}

impl FilesDisk {
    /// Reads the files and makes the disk.
    pub(crate) fn open(name: &str, directory: &Path, label: &str) -> Result<Self, FilesError> {
        let contents = make(directory, label)?;
        Ok(Self {
            name: name.to_owned(),
            directory: directory.to_owned(),
            label: label.to_owned(),
            storage: Arc::new(ReplaceableStorage::new(contents)),
        })
    }

    /// The device, which the guest finds as the one with this index.
    pub(crate) fn device(&self, index: usize, serial: &str) -> Block {
        let storage = Arc::clone(&self.storage);
        Block::on_caller(format!("blk{index}"), serial, storage)
    }

    /// Reads the files again, for a guest that starts anew. Where that fails the disk stays as it was, and the log says why.
    pub(crate) fn refresh(&self) {
        let made = make(&self.directory, &self.label).and_then(|contents| {
            self.storage.replace(contents).map_err(|source| FilesError::Make {
                path: self.directory.clone(),
                source,
            })
        });
        if let Err(error) = made {
            log::guest(format_args!(
                "disk `{}` has the files that it had before: {error}",
                self.name
            ));
        }
    }
}

/// Reads the files, and makes a disk of them.
pub(super) fn make(directory: &Path, label: &str) -> Result<MemoryStorage, FilesError> {
    let files = read_all(directory, || ())?;
    check_names(directory, &files)?;
    let listed: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, contents)| (name.as_str(), contents.as_slice()))
        .collect();
    let disk = fat::disk(fat::label(label), &listed, DISK_BYTES).map_err(|source| FilesError::Make {
        path: directory.to_owned(),
        source,
    })?;
    Ok(MemoryStorage::new(disk))
}

/// FAT takes `a` and `A` for the same, and readers take `a.` for `a`.
fn check_names(directory: &Path, files: &Files) -> Result<(), FilesError> {
    let refuse = |name: &str, problem| {
        Err(FilesError::Name {
            path: directory.to_owned(),
            name: name.to_owned(),
            problem,
        })
    };
    let mut seen = std::collections::BTreeSet::new();
    for (name, _) in files {
        if name.ends_with(['.', ' ']) {
            return refuse(name, "ends with a dot or a space");
        }
        if !seen.insert(name.to_ascii_lowercase()) {
            return refuse(name, "is another key in upper or lower case");
        }
    }
    Ok(())
}

/// Reads what is there at one moment. In tests something happens while a try reads.
fn read_all(directory: &Path, mut meanwhile: impl FnMut()) -> Result<Files, FilesError> {
    let mut tries = 1;
    loop {
        let result = read_once(directory, &mut meanwhile);
        // The kubelet removes the old directory, file by file, once the link leads to the new one.
        let replaced = match &result {
            Err(FilesError::Read { source, .. }) => source.kind() == io::ErrorKind::NotFound,
            Err(FilesError::Replaced { .. }) => true,
            Ok(_) | Err(FilesError::TooLarge { .. } | FilesError::Name { .. } | FilesError::Make { .. }) => false,
        };
        if !replaced || tries == TRIES {
            return result;
        }
        tries += 1;
    }
}

fn read_once(directory: &Path, meanwhile: &mut impl FnMut()) -> Result<Files, FilesError> {
    let failed = |path: &Path, source: rustix::io::Errno| FilesError::Read {
        path: path.to_owned(),
        source: source.into(),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let outer = rustix::fs::openat(CWD, directory, flags, Mode::empty()).map_err(|error| failed(directory, error))?;
    let linked = match rustix::fs::openat(&outer, DATA, flags, Mode::empty()) {
        Ok(data) => Some(data),
        Err(rustix::io::Errno::NOENT) => None,
        Err(error) => return Err(failed(&directory.join(DATA), error)),
    };
    let data = linked.as_ref().unwrap_or(&outer);
    meanwhile();
    let mut files = Vec::new();
    let mut left = FILES_MAX_BYTES;
    for name in names(data).map_err(|error| failed(directory, error))? {
        let path = directory.join(&name);
        let Some(file) = open_regular(data, &name).map_err(|error| failed(&path, error))? else {
            continue;
        };
        let mut contents = Vec::new();
        let read = file.take(left + 1).read_to_end(&mut contents);
        let read = read.map_err(|source| FilesError::Read { path, source })? as u64;
        if read > left || files.len() == FILES_MAX {
            return Err(FilesError::TooLarge {
                path: directory.to_owned(),
            });
        }
        left -= read;
        files.push((name, contents));
    }
    // Otherwise files may have been gone from there before they were listed.
    if is_linked(&outer, linked.as_ref()).map_err(|error| failed(&directory.join(DATA), error))? {
        Ok(files)
    } else {
        Err(FilesError::Replaced {
            path: directory.to_owned(),
        })
    }
}

/// Whether the kubelet's link leads to this directory, which is open; or there is none, as before.
fn is_linked(outer: &OwnedFd, data: Option<&OwnedFd>) -> rustix::io::Result<bool> {
    let found = match rustix::fs::statat(outer, DATA, AtFlags::empty()) {
        Ok(found) => Some(found),
        Err(rustix::io::Errno::NOENT) => None,
        Err(error) => return Err(error),
    };
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let read = data.map(rustix::fs::fstat).transpose()?;
    Ok(found.map(identity) == read.map(identity))
}

/// Names in a directory, sorted, but for those that keys cannot have: the kubelet's own.
fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)?.take(ENTRIES_MAX) {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && !name.starts_with("..")
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// `None` for what is no file.
fn open_regular(directory: &OwnedFd, name: &str) -> rustix::io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(opened) => opened,
        // A link, a socket.
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode);
    Ok((kind == FileType::RegularFile).then(|| File::from(opened)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use node_shim_virtio::block::Storage;

    use super::*;

    fn contains(disk: &FilesDisk, text: &str) -> bool {
        let mut bytes = vec![0; DISK_BYTES];
        disk.storage.read_bytes_at(&mut bytes, 0).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// A directory as the kubelet makes it, with one key.
    fn publish(directory: &Path, version: &str, contents: &str) {
        let data = directory.join(version);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("key"), contents).unwrap();
        symlink(version, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join(DATA)).unwrap();
        let _ = symlink("..data/key", directory.join("key"));
    }

    #[test]
    fn a_changed_configmap_is_seen_when_it_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        publish(directory.path(), "..2026_01", "first contents");
        let disk = FilesDisk::open("conf", directory.path(), "conf").unwrap();
        assert!(contains(&disk, "first contents"));
        publish(directory.path(), "..2026_02", "second contents");
        fs::remove_dir_all(directory.path().join("..2026_01")).unwrap();
        assert!(contains(&disk, "first contents"), "nothing changes under a guest");
        disk.refresh();
        assert!(contains(&disk, "second contents") && !contains(&disk, "first contents"));
        fs::remove_dir_all(directory.path()).unwrap();
        disk.refresh();
        assert!(contains(&disk, "second contents"), "what cannot be read stays");
    }

    #[test]
    fn what_is_replaced_while_it_is_read_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        publish(directory.path(), "..0", "contents 0");
        let mut times = 0;
        // As the kubelet does: first the link, then the old files.
        let mut replace = |most| {
            if times < most {
                times += 1;
                publish(directory.path(), &format!("..{times}"), &format!("contents {times}"));
                fs::remove_file(directory.path().join(format!("..{}/key", times - 1))).unwrap();
            }
        };
        let files = read_all(directory.path(), || replace(2)).unwrap();
        assert_eq!(files, [("key".to_owned(), b"contents 2".to_vec())]);
        let error = read_all(directory.path(), || replace(usize::MAX)).unwrap_err();
        assert!(matches!(error, FilesError::Replaced { .. }), "{error}");
    }

    #[test]
    fn only_regular_files_of_the_directory_itself_are_on_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let inside = |name: &str| directory.path().join(name);
        fs::write(inside(".hidden"), "a key may begin with one dot").unwrap();
        fs::create_dir(inside("subdirectory")).unwrap();
        fs::write(inside("subdirectory/file"), "not here").unwrap();
        symlink("/etc/passwd", inside("link")).unwrap();
        rustix::fs::mknodat(CWD, inside("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let files = read_all(directory.path(), || ()).unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [".hidden"]);
    }

    #[test]
    fn as_much_as_a_configmap_may_have_fits() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..FILES_MAX {
            let name = format!("{number}{}", "n".repeat(240));
            fs::write(directory.path().join(name), vec![b'x'; 4096]).unwrap();
        }
        let disk = FilesDisk::open("conf", directory.path(), "conf").unwrap();
        assert_eq!(disk.storage.len(), DISK_BYTES as u64);
        fs::write(directory.path().join("one-more"), "").unwrap();
        let error = FilesDisk::open("conf", directory.path(), "conf")
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("more than 256 files"), "{error}");
    }

    #[test]
    fn what_is_too_large_or_badly_named_says_so() {
        let error = |files: &[(&str, usize)]| {
            let directory = tempfile::tempdir().unwrap();
            for (name, length) in files {
                fs::write(directory.path().join(name), vec![0; *length]).unwrap();
            }
            FilesDisk::open("conf", directory.path(), "conf")
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(error(&[("a", 1 << 20)]), None);
        assert!(error(&[("a", 1 << 20), ("b", 1)]).unwrap().contains("1048576 bytes"));
        assert!(error(&[("a", 1), ("A", 1)]).unwrap().contains("upper or lower case"));
        assert!(error(&[("a.", 1)]).unwrap().contains("ends with a dot"));
        let missing = FilesDisk::open("conf", Path::new("/nowhere"), "conf")
            .err()
            .unwrap()
            .to_string();
        assert!(missing.contains("/nowhere"), "{missing}");
    }
}
