//! Opening files of volumes, whose authors are not the VM's owner: a symlink in a volume must not lead out of it.
//!
//! The volume is the deepest mount point on the way to the file. What is below it in an image is opened with `RESOLVE_IN_ROOT` (openat2(2)): an
//! absolute symlink or `..` means the volume's own root, as it would in the image itself. In a claim, which others may be writing to, no symlink is
//! followed at all.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Uid};

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
    /// A file of a claim cannot be opened, or made.
    #[error("failed to open {path} in the claim: {source}{hint}")]
    Claim {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A block device cannot be opened.
    #[error("failed to open the block device {path}: {source}{hint}")]
    Device {
        /// The device.
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

/// What is done with a claim's file or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is read.
    Read,
    /// It is read and written.
    Write,
    /// It is read and written, and made where it is not there.
    Make,
}

/// Opens a regular file of a claim.
pub(crate) fn open_in_claim(path: &Path, what_for: Use) -> Result<File, VolumeError> {
    // The pod's group is the claim's, where the cluster cares for it: another VM's VMM has the same.
    let shared = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let open = |access, mode| open_below(path, access | OFlags::CLOEXEC | OFlags::NONBLOCK, mode, resolve);
    let opened = match what_for {
        Use::Read => open(OFlags::RDONLY, Mode::empty()),
        Use::Write => open(OFlags::RDWR, Mode::empty()),
        Use::Make => match open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, shared) {
            Ok(made) => {
                // What the umask took. Storage that knows no modes may refuse, and has none to mend.
                let _ = rustix::fs::fchmod(&made, shared);
                Ok(made)
            }
            Err(rustix::io::Errno::EXIST) => open(OFlags::RDWR, Mode::empty()),
            Err(error) => Err(error),
        },
    };
    regular(path, opened.map_err(|error| claim_error(path, error, what_for))?)
}

fn claim_error(path: &Path, error: rustix::io::Errno, what_for: Use) -> VolumeError {
    use rustix::io::Errno;
    let hint = match (error, what_for) {
        (Errno::NOENT, Use::Make) => "; its directory must be there: make it, or write another path",
        (Errno::NOENT, Use::Read | Use::Write) => {
            "; put a raw disk image there, write another path, or write persistentVolumeClaim.size to have it made"
        }
        (Errno::LOOP | Errno::XDEV, _) => "; symlinks in a claim are not followed: write the path of the file itself",
        (Errno::ISDIR, _) => "; write the path of a file in it",
        (Errno::ROFS, _) => "; the claim is read-only: write readOnly: true",
        (Errno::ACCESS | Errno::PERM, _) => {
            "; user or group 65532 must be able to read it, and to write it unless readOnly is true"
        }
        _ => "",
    };
    VolumeError::Claim {
        path: path.to_owned(),
        source: error.into(),
        hint,
    }
}

/// Opens a block device that nobody else on this host writes or has mounted (`O_EXCL`, open(2)); for writing, so that nobody does in the meantime either.
pub(crate) fn open_device(path: &Path, what_for: Use) -> Result<File, VolumeError> {
    let open = |access| {
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        rustix::fs::openat(CWD, path, flags, Mode::empty())
    };
    let opened = match what_for {
        // There is no lock that readers share: once it is known that nobody writes, it is let go, for other readers and for a writer that comes later.
        Use::Read => open(OFlags::RDONLY | OFlags::EXCL).and_then(|alone| {
            let shared = open(OFlags::RDONLY);
            drop(alone);
            shared
        }),
        Use::Write | Use::Make => open(OFlags::RDWR | OFlags::EXCL),
    };
    let opened = opened.and_then(blocking);
    opened.map(File::from).map_err(|error| VolumeError::Device {
        path: path.to_owned(),
        source: error.into(),
        hint: device_hint(error, what_for, is_ours(path)),
    })
}

fn device_hint(error: rustix::io::Errno, what_for: Use, is_ours: bool) -> &'static str {
    use rustix::io::Errno;
    match error {
        Errno::BUSY => "; another VMM uses it, or it is mounted on the node: stop that first",
        Errno::ACCESS | Errno::PERM if !is_ours => {
            "; the node's container runtime must let user or group 65532 use it: set device_ownership_from_security_context = true in its configuration"
        }
        // The claim is mounted read-only: the container's devices are, then.
        Errno::ACCESS | Errno::PERM | Errno::ROFS if what_for != Use::Read => {
            "; it may only be read: write readOnly: true"
        }
        _ => "",
    }
}

/// Whether a file belongs to this process's user, or to one of its groups.
fn is_ours(path: &Path) -> bool {
    let Ok(stat) = rustix::fs::lstat(path) else {
        return false;
    };
    let in_group = |group| rustix::process::getgroups().is_ok_and(|groups| groups.contains(&group));
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    user == rustix::process::geteuid() || group == rustix::process::getegid() || in_group(group)
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
        Ok(FileType::RegularFile) => blocking(descriptor)
            .map(File::from)
            .map_err(|error| open_error(path, error)),
        Ok(_) => Err(VolumeError::NotAFile { path: path.to_owned() }),
        Err(error) => Err(open_error(path, error)),
    }
}

/// Without `O_NONBLOCK`, which is for opening only: `io_uring` would ask storage not to wait.
fn blocking(descriptor: OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    rustix::fs::fcntl_setfl(&descriptor, flags - OFlags::NONBLOCK)?;
    Ok(descriptor)
}

/// Opens `path` without leaving the volume that it is in.
fn open_inside(path: &Path) -> rustix::io::Result<OwnedFd> {
    // NONBLOCK: opening a FIFO of a hostile image must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    open_below(path, flags, Mode::empty(), resolve)
}

/// Opens `path` from the root of the volume that it is in.
fn open_below(path: &Path, flags: OFlags, mode: Mode, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let absolute = std::path::absolute(path).map_err(|_| rustix::io::Errno::NOENT)?;
    let (root, rest) = volume_root(&absolute)?;
    let rest = if rest.as_os_str().is_empty() {
        Path::new(".")
    } else {
        &rest
    };
    rustix::fs::openat2(&root, rest, flags, mode, resolve)
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

    use node_shim_virtio::testing::LoopDevice;

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
    fn a_claims_file_is_opened_or_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let missing = open_in_claim(&path, Use::Write).unwrap_err().to_string();
        assert!(missing.contains("persistentVolumeClaim.size"), "{missing}");
        let file = open_in_claim(&path, Use::Make).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert!(open_in_claim(&path, Use::Write).is_ok());
        assert!(open_in_claim(&path, Use::Read).is_ok());
        let nowhere = open_in_claim(&directory.path().join("no/disk.img"), Use::Make)
            .unwrap_err()
            .to_string();
        assert!(nowhere.contains("its directory must be there"), "{nowhere}");
    }

    #[test]
    fn hostile_things_in_a_claim_are_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let inside = |name: &str| directory.path().join(name);
        std::fs::write(inside("file"), "x").unwrap();
        std::fs::create_dir(inside("directory")).unwrap();
        std::fs::write(inside("directory/file"), "x").unwrap();
        symlink("file", inside("link")).unwrap();
        symlink("/etc/passwd", inside("passwd")).unwrap();
        symlink("directory", inside("directory-link")).unwrap();
        symlink("made", inside("dangling")).unwrap();
        rustix::fs::mknodat(CWD, inside("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for what_for in [Use::Read, Use::Write, Use::Make] {
            for (name, expected) in [
                ("link", "symlinks in a claim are not followed"),
                ("passwd", "symlinks in a claim are not followed"),
                ("directory-link/file", "symlinks in a claim are not followed"),
                ("dangling", "symlinks in a claim are not followed"),
                ("fifo", "is not a regular file"),
            ] {
                let error = open_in_claim(&inside(name), what_for).unwrap_err().to_string();
                assert!(error.contains(expected), "{name} {what_for:?}: {error}");
            }
            assert!(open_in_claim(&inside("directory"), what_for).is_err());
        }
        assert!(!inside("made").exists());
        assert!(open_in_claim(Path::new("/proc/self/exe"), Use::Read).is_err());
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = open_device(Path::new("/nowhere/device"), Use::Write)
            .unwrap_err()
            .to_string();
        assert!(error.contains("the block device /nowhere/device"), "{error}");
    }

    #[test]
    fn what_is_made_is_the_groups_too_whatever_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        // What this process has anyway: other tests do not mind.
        rustix::process::umask(Mode::WGRP | Mode::WOTH);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        open_in_claim(&path, Use::Make).unwrap();
        assert_eq!(mode(), 0o660);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        open_in_claim(&path, Use::Make).unwrap();
        assert_eq!(mode(), 0o600, "what was there stays as it was");
    }

    #[test]
    fn what_is_open_waits_for_its_storage() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        for file in [
            open_in_claim(&path, Use::Make),
            open_in_claim(&path, Use::Read),
            open_file(&path),
            open_device(&path, Use::Write),
        ] {
            let flags = rustix::fs::fcntl_getfl(file.unwrap()).unwrap();
            assert!(!flags.contains(OFlags::NONBLOCK), "{flags:?}");
        }
    }

    #[test]
    fn what_keeps_a_device_closed_is_explained() {
        use rustix::io::Errno;
        let runtime = "device_ownership_from_security_context";
        for (error, what_for, ours, expected) in [
            (Errno::BUSY, Use::Read, true, "another VMM uses it"),
            (Errno::ACCESS, Use::Write, false, runtime),
            (Errno::ACCESS, Use::Read, false, runtime),
            (Errno::PERM, Use::Write, true, "write readOnly: true"),
            (Errno::ACCESS, Use::Write, true, "write readOnly: true"),
            (Errno::ROFS, Use::Write, false, "write readOnly: true"),
        ] {
            let hint = device_hint(error, what_for, ours);
            assert!(hint.contains(expected), "{error} {what_for:?} {ours}: {hint}");
        }
        assert_eq!(device_hint(Errno::PERM, Use::Read, true), "");
        assert_eq!(device_hint(Errno::NXIO, Use::Write, false), "");
        let directory = tempfile::tempdir().unwrap();
        assert!(is_ours(directory.path()) && !is_ours(Path::new("/nowhere")));
    }

    #[test]
    fn a_device_has_one_writer_or_many_readers() {
        let directory = tempfile::tempdir().unwrap();
        let Some(device) = LoopDevice::new(directory.path(), 512, 1 << 20) else {
            return;
        };
        let open = |what_for| open_device(&device.path, what_for);
        let writer = open(Use::Write).unwrap();
        for what_for in [Use::Read, Use::Write] {
            let error = open(what_for).unwrap_err().to_string();
            assert!(error.contains("another VMM uses it"), "{what_for:?}: {error}");
        }
        drop(writer);
        let readers = [open(Use::Read).unwrap(), open(Use::Read).unwrap()];
        // As docs/disks.md says.
        assert!(open(Use::Write).is_ok(), "{readers:?}");
    }

    #[test]
    fn relative_symlinks_inside_work() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("vmlinuz-6.1"), "x").unwrap();
        symlink("vmlinuz-6.1", directory.path().join("vmlinuz")).unwrap();
        assert!(open_file(&directory.path().join("vmlinuz")).is_ok());
    }
}
