//! Opening files of image volumes, whose authors are not the VM's owner: a symlink in an image must not lead out of the image.
//!
//! The volume is the deepest mount point on the way to the file. What is below it is opened with `RESOLVE_IN_ROOT` (openat2(2)): an
//! absolute symlink or `..` means the volume's own root, as it would in the image itself.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags};

/// Most entries of a directory that an error message lists.
const LISTED_MAX: usize = 8;
/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 1024;

/// Why a file of a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// Missing, unreadable, or a symlink that leads nowhere inside of the volume.
    #[error("failed to open {path}: {source}{hint}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A directory, a socket, a device.
    #[error("{path} is not a regular file; name one")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A directory that should hold one file.
    #[error("{path} holds {found}; it must hold exactly one regular file, or the file must be named")]
    NotOneFile {
        /// The directory.
        path: PathBuf,
        /// What is there.
        found: String,
    },
}

fn open_error(path: &Path, error: rustix::io::Errno) -> VolumeError {
    let hint = match error {
        rustix::io::Errno::NOENT => "; check the path inside of the image",
        rustix::io::Errno::XDEV | rustix::io::Errno::LOOP => "; symlinks must stay inside of their volume",
        _ => "",
    };
    VolumeError::Open {
        path: path.to_owned(),
        source: error.into(),
        hint,
    }
}

/// Opens a regular file read-only.
pub(crate) fn open_file(path: &Path) -> Result<File, VolumeError> {
    let descriptor = open_inside(path).map_err(|error| open_error(path, error))?;
    regular(path, descriptor)
}

/// Opens a regular file read-only, or the only regular file of a directory.
pub(crate) fn open_file_or_only_file(path: &Path) -> Result<File, VolumeError> {
    let descriptor = open_inside(path).map_err(|error| open_error(path, error))?;
    if file_type(&descriptor) != Ok(FileType::Directory) {
        return regular(path, descriptor);
    }
    let entries = Dir::read_from(&descriptor).map_err(|error| open_error(path, error))?;
    let mut names = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        let entry = entry.map_err(|error| open_error(path, error))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    let [name] = names.as_slice() else {
        let found = describe(
            &mut names
                .iter()
                .map(|name| name.to_string_lossy().into_owned())
                .collect::<Vec<_>>(),
        );
        return Err(VolumeError::NotOneFile {
            path: path.to_owned(),
            found,
        });
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file_path = path.join(name.to_string_lossy().as_ref());
    let descriptor = rustix::fs::openat(&descriptor, name.as_c_str(), flags, Mode::empty())
        .map_err(|error| open_error(&file_path, error))?;
    regular(&file_path, descriptor)
}

/// What a directory holds, in words.
fn describe(names: &mut [String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names.sort_unstable();
    let listed = names
        .iter()
        .take(LISTED_MAX)
        .map(|name| format!("`{}`", name.escape_default()));
    let list = listed.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}

fn file_type(descriptor: &OwnedFd) -> rustix::io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(descriptor)?.st_mode))
}

fn regular(path: &Path, descriptor: OwnedFd) -> Result<File, VolumeError> {
    match file_type(&descriptor) {
        Ok(FileType::RegularFile) => Ok(File::from(descriptor)),
        Ok(_) => Err(VolumeError::NotAFile { path: path.to_owned() }),
        Err(error) => Err(open_error(path, error)),
    }
}

/// Opens `path` without leaving the volume that it is in.
fn open_inside(path: &Path) -> rustix::io::Result<OwnedFd> {
    let absolute = std::path::absolute(path).map_err(|_| rustix::io::Errno::NOENT)?;
    let (root, rest) = volume_root(&absolute)?;
    // NONBLOCK: opening a FIFO of a hostile image must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let rest = if rest.as_os_str().is_empty() {
        Path::new(".")
    } else {
        &rest
    };
    rustix::fs::openat2(&root, rest, flags, Mode::empty(), resolve)
}

/// The deepest mount point on the way to an absolute path, before any symlink, and the rest of the path.
fn volume_root(path: &Path) -> rustix::io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    let mut current = rustix::fs::openat(CWD, "/", flags, Mode::empty())?;
    let mut mount = mount_id(&current)?;
    let mut root = current.try_clone().map_err(|_| rustix::io::Errno::MFILE)?;
    let components: Vec<Component<'_>> = path.components().skip(1).collect();
    let mut rest_from = 0;
    for (index, component) in components.iter().enumerate() {
        // A file, a symlink or nothing: whatever mount it is on, the way there ends here.
        let Ok(next) = rustix::fs::openat(&current, component.as_os_str(), flags, Mode::empty()) else {
            break;
        };
        let next_mount = mount_id(&next)?;
        if next_mount != mount {
            mount = next_mount;
            root = next.try_clone().map_err(|_| rustix::io::Errno::MFILE)?;
            rest_from = index + 1;
        }
        current = next;
    }
    Ok((root, components[rest_from..].iter().collect()))
}

fn mount_id(descriptor: &OwnedFd) -> rustix::io::Result<u64> {
    let stat = rustix::fs::statx(descriptor, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(stat.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_found_and_so_is_the_only_file_of_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk.raw");
        std::fs::write(&file, "x").unwrap();
        assert!(open_file(&file).is_ok());
        assert!(open_file_or_only_file(&file).is_ok());
        assert!(open_file_or_only_file(directory.path()).is_ok());
    }

    #[test]
    fn what_is_not_one_file_is_listed() {
        let directory = tempfile::tempdir().unwrap();
        let error = open_file_or_only_file(directory.path()).unwrap_err().to_string();
        assert!(error.contains("holds nothing"), "{error}");
        for name in ["b", "a"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        let error = open_file_or_only_file(directory.path()).unwrap_err().to_string();
        assert!(error.contains("holds `a`, `b`"), "{error}");
    }

    #[test]
    fn a_symlink_cannot_be_a_disk_of_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", directory.path().join("disk.raw")).unwrap();
        assert!(open_file_or_only_file(directory.path()).is_err());
    }

    #[test]
    fn directories_fifos_and_missing_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = open_file(directory.path()).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let error = open_file(&fifo).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
        let error = open_file(&directory.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("check the path"), "{error}");
    }

    #[test]
    fn magic_links_lead_nowhere() {
        assert!(open_file(Path::new("/proc/self/exe")).is_err());
    }

    #[test]
    fn relative_symlinks_inside_work() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("vmlinuz-6.1"), "x").unwrap();
        symlink("vmlinuz-6.1", directory.path().join("vmlinuz")).unwrap();
        assert!(open_file(&directory.path().join("vmlinuz")).is_ok());
    }
}
