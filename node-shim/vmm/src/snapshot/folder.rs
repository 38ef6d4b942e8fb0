//! A snapshot's folder.
//!
//! ```text
//! FOLDER/state       everything but memory and disks (see `state`)
//! FOLDER/memory      guest memory (see `pages`)
//! FOLDER/disks/NAME  what the VM's disks have in its scratch directory
//! ```
//!
//! It is written under another name, synced, and renamed: a snapshot is whole, or it is not there. What a crash leaves of a
//! half-written one is removed by the next snapshot of the same name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use node_shim_virtio::device::Memory;
use rustix::fs::{CWD, RenameFlags};

use super::state::{self, FormatError, VmState};
use super::{SnapshotError, pages};

const STATE: &str = "state";
const MEMORY: &str = "memory";
const DISKS: &str = "disks";
/// Bytes that are copied at a time where the file system cannot share them.
const COPY_BYTES: usize = 1 << 20;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { action, path, source }
}

/// What goes into a folder.
pub(crate) struct Contents<'a> {
    /// The `state` file's bytes.
    pub(crate) state: &'a [u8],
    /// Guest memory, which nobody changes.
    pub(crate) memory: &'a Memory,
    /// Whether the memory is a private mapping of another snapshot's file.
    pub(crate) mapped_file: bool,
    /// /proc/self/pagemap, where it can be read.
    pub(crate) pagemap: Option<&'a File>,
    /// Where the files of the disks are, and their names.
    pub(crate) scratch: &'a Path,
    /// Files of disks.
    pub(crate) disks: &'a [String],
}

/// Writes a snapshot. Returns the bytes of memory that are not holes.
pub(crate) fn write(folder: &Path, contents: &Contents<'_>) -> Result<u64, SnapshotError> {
    let (parent, partial) = names(folder)?;
    match fs::symlink_metadata(folder) {
        Ok(_) => return Err(SnapshotError::Exists(folder.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look for", folder)(error)),
    }
    remove_partial(&partial).map_err(failed("remove", &partial))?;
    let result = write_partial(&partial, contents).and_then(|written| {
        rustix::fs::renameat_with(CWD, &partial, CWD, folder, RenameFlags::NOREPLACE)
            .map_err(|error| failed("rename to", folder)(error.into()))?;
        sync(&parent)?;
        Ok(written)
    });
    if result.is_err() {
        // What went wrong is told; what cannot be removed either is the next one's to remove.
        let _ = remove_partial(&partial);
    }
    result
}

/// Removes what a snapshot left that did not come to its end. With calls that the thread's seccomp filter knows: `fs::remove_dir_all` makes others.
fn remove_partial(partial: &Path) -> io::Result<()> {
    for directory in [&partial.join(DISKS), partial] {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir(directory)?;
    }
    Ok(())
}

/// The folder's parent, and the name that it has while it is written.
fn names(folder: &Path) -> Result<(PathBuf, PathBuf), SnapshotError> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(SnapshotError::Name(folder.to_owned()));
    };
    if !folder.is_absolute() {
        return Err(SnapshotError::Name(folder.to_owned()));
    }
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(".partial");
    Ok((parent.to_owned(), parent.join(partial)))
}

fn write_partial(partial: &Path, contents: &Contents<'_>) -> Result<u64, SnapshotError> {
    fs::create_dir(partial).map_err(failed("make", partial))?;
    let disks = partial.join(DISKS);
    fs::create_dir(&disks).map_err(failed("make", &disks))?;
    for name in contents.disks {
        let (from, to) = (contents.scratch.join(name), disks.join(name));
        copy(&from, &to)?;
    }
    sync(&disks)?;
    let path = partial.join(MEMORY);
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(failed("make", &path))?;
    let written = pages::write(
        contents.memory,
        contents.pagemap.filter(|_| !contents.mapped_file),
        &file,
    )
    .map_err(failed("write", &path))?;
    file.sync_all().map_err(failed("sync", &path))?;
    let path = partial.join(STATE);
    fs::write(&path, contents.state).map_err(failed("write", &path))?;
    sync(&path)?;
    sync(partial)?;
    Ok(written)
}

fn sync(path: &Path) -> Result<(), SnapshotError> {
    let file = File::open(path).map_err(failed("open", path))?;
    file.sync_all().map_err(failed("sync", path))
}

/// Copies a sparse file to a new one: shared blocks where the file system can, else its data without its holes.
fn copy(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    let mut source = File::open(from).map_err(failed("open", from))?;
    let target = File::options().write(true).create_new(true).open(to);
    let mut target = target.map_err(failed("make", to))?;
    if rustix::fs::ioctl_ficlone(target.as_fd(), source.as_fd()).is_err() {
        copy_data(&mut source, &mut target).map_err(failed("copy to", to))?;
    }
    target.sync_all().map_err(failed("sync", to))
}

fn copy_data(source: &mut File, target: &mut File) -> io::Result<()> {
    use rustix::fs::SeekFrom as Find;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < length {
        // No more data: the rest is a hole.
        let start = match rustix::fs::seek(&*source, Find::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&*source, Find::Hole(start))?.min(length);
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        let mut left = end.saturating_sub(start);
        while left > 0 {
            let count = buffer.len().min(usize::try_from(left).unwrap_or(buffer.len()));
            let chunk = &mut buffer[..count];
            source.read_exact(chunk)?;
            io::Write::write_all(target, chunk)?;
            left -= count as u64;
        }
        at = end.max(start + 1);
    }
    Ok(())
}

/// A snapshot that can be restored.
pub(crate) struct Opened {
    /// Its state.
    pub(crate) state: VmState,
    /// Its memory file, which has as many bytes as the state says.
    pub(crate) memory: File,
    folder: PathBuf,
}

/// Opens a snapshot and checks that it is whole.
pub(crate) fn open(folder: &Path) -> Result<Opened, SnapshotError> {
    let path = folder.join(STATE);
    let file = File::open(&path).map_err(failed("open", &path))?;
    let mut bytes = Vec::new();
    file.take(state::FILE_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read", &path))?;
    let format = |source| SnapshotError::Format {
        path: path.clone(),
        source,
    };
    let state = state::decode(&bytes).map_err(format)?;
    for name in &state.disks {
        if !is_file_name(name) {
            let what = format!("`{}` is no name of a disk's file", name.escape_default());
            return Err(format(FormatError::Contents(what)));
        }
    }
    let path = folder.join(MEMORY);
    let memory = File::open(&path).map_err(failed("open", &path))?;
    let found = memory.metadata().map_err(failed("inspect", &path))?.len();
    if found != state.memory_bytes {
        return Err(SnapshotError::Format {
            path,
            source: FormatError::Length {
                expected: state.memory_bytes,
                found,
            },
        });
    }
    Ok(Opened {
        state,
        memory,
        folder: folder.to_owned(),
    })
}

/// One component, and not `.` or `..`.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains('/') && !name.contains('\0') && name != "." && name != ".."
}

impl Opened {
    /// Copies the files of the disks to a scratch directory that has none of them.
    pub(crate) fn copy_disks(&self, scratch: &Path) -> Result<(), SnapshotError> {
        for name in &self.state.disks {
            let to = scratch.join(name);
            if fs::symlink_metadata(&to).is_ok() {
                return Err(SnapshotError::DiskExists(to));
            }
        }
        for name in &self.state.disks {
            copy(&self.folder.join(DISKS).join(name), &scratch.join(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(32 << 20).unwrap();
        for at in [0, 5 << 20, (32 << 20) - 3] {
            std::os::unix::fs::FileExt::write_all_at(&file, b"abc", at).unwrap();
        }
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        assert!(copy(&from, &to).is_err(), "an existing file is never overwritten");
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\0b"] {
            assert!(!is_file_name(name), "{name:?}");
        }
        assert!(is_file_name("root.overlay.map"));
        for folder in ["/", "relative", "", "/.."] {
            assert!(names(Path::new(folder)).is_err(), "{folder}");
        }
        let (parent, partial) = names(Path::new("/a/b")).unwrap();
        assert_eq!((parent, partial), (PathBuf::from("/a"), PathBuf::from("/a/.b.partial")));
    }

    fn write_to(folder: &Path, scratch: &Path, disks: &[String]) -> Result<u64, SnapshotError> {
        let memory = crate::memory::map(&crate::memory::Plan::fixed(1 << 20), None).unwrap();
        let contents = Contents {
            state: b"state",
            memory: &memory,
            mapped_file: false,
            pagemap: None,
            scratch,
            disks,
        };
        write(folder, &contents)
    }

    #[test]
    fn a_snapshot_is_whole_or_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("snapshot");
        let disks = ["missing.overlay".to_owned()];
        assert!(write_to(&folder, directory.path(), &disks).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        // What a crash left.
        fs::create_dir(directory.path().join(".snapshot.partial")).unwrap();
        fs::write(directory.path().join(".snapshot.partial/memory"), "x").unwrap();
        write_to(&folder, directory.path(), &[]).unwrap();
        assert_eq!(fs::read(folder.join("state")).unwrap(), b"state");
        assert_eq!(fs::metadata(folder.join("memory")).unwrap().len(), 1 << 20);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(matches!(
            write_to(&folder, directory.path(), &[]),
            Err(SnapshotError::Exists(_))
        ));
        assert!(matches!(open(&folder), Err(SnapshotError::Format { .. })));
    }
}
