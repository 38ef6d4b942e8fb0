//! Opens a file system, and freezes and thaws it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, ioctl, opcode};

use super::mounts::FileSystem;

/// `FIFREEZE` and `FITHAW` of linux/fs.h. Their argument is not looked at (`ioctl_fsfreeze` of Linux's fs/ioctl.c).
const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);

/// Opens a file system at the first of its mounts that can be reached: others may lie upon one. `None` when that is so of all of them.
///
/// # Errors
/// When the last one that was tried cannot be opened.
pub(super) fn open(file_system: &FileSystem) -> io::Result<Option<OwnedFd>> {
    let mut failure = None;
    for mount in file_system.mounts() {
        match open_mount(&mount.point) {
            Ok((file, id)) if id == mount.id => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(None), Err)
}

fn open_mount(point: &Path) -> io::Result<(OwnedFd, u64)> {
    // A mount point may be a file, and a file a FIFO.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(point, flags, Mode::empty())?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let id = id.ok_or_else(|| io::Error::other("the kernel does not say which mount a file is of"))?;
    Ok((file, id))
}

/// Freezes. `false` when such a file system cannot be frozen.
pub(super) fn freeze(file: &OwnedFd) -> io::Result<bool> {
    // SAFETY: the kernel takes this request's argument for nothing: no memory is read or written.
    let request = unsafe { IntegerSetter::<FIFREEZE>::new_usize(0) };
    // SAFETY: the descriptor is open and the request is complete.
    match unsafe { ioctl(file, request) } {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Thaws.
pub(super) fn thaw(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: the kernel takes this request's argument for nothing: no memory is read or written.
    let request = unsafe { IntegerSetter::<FITHAW>::new_usize(0) };
    // SAFETY: the descriptor is open and the request is complete.
    Ok(unsafe { ioctl(file, request) }?)
}
