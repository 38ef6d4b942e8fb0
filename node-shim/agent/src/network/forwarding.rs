//! Switches IPv6 forwarding on in the calling thread's network namespace. For IPv6 there is no other way than `/proc/sys`, which is
//! read-only in an unprivileged container; a procfs of our own, mounted nowhere, is not, and shows the calling thread's namespace.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Failure to set a value.
#[derive(Debug, thiserror::Error)]
#[error("failed to set {name} in the pod's network namespace: {source}")]
pub(super) struct ForwardingError {
    name: String,
    source: io::Error,
}

/// Lets IPv6 packets be forwarded, and keeps the routes that the `uplink` learnt from a router.
pub(super) fn enable_ipv6(uplink: &str) -> Result<(), ForwardingError> {
    let set = |name: String, change: fn(&str) -> Option<&'static [u8]>| {
        let result = update(&name, change);
        result.map_err(|source| ForwardingError { name, source })
    };
    // A router does not listen to others, unless it is told to: 2.
    set(format!("net/ipv6/conf/{uplink}/accept_ra"), |value| {
        (value == "1").then_some(b"2".as_slice())
    })?;
    set("net/ipv6/conf/all/forwarding".to_owned(), |value| {
        (value != "1").then_some(b"1".as_slice())
    })
}

/// Sets a value of `/proc/sys` to what `change` makes of it, if that is anything.
fn update(name: &str, change: impl Fn(&str) -> Option<&'static [u8]>) -> io::Result<()> {
    let own = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut value = String::new();
    File::from(open(own.as_fd(), name, OFlags::RDONLY)?)
        .take(64)
        .read_to_string(&mut value)?;
    let Some(wanted) = change(value.trim()) else {
        return Ok(());
    };
    let file = match open(own.as_fd(), name, OFlags::WRONLY) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            open(detached_proc()?.as_fd(), name, OFlags::WRONLY)?
        }
        result => result?,
    };
    File::from(file).write_all(wanted)
}

fn open(proc: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let path = Path::new("sys").join(name);
    Ok(rustix::fs::openat(proc, path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// A procfs that no path leads to; it goes with its descriptor.
fn detached_proc() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_procfs_of_our_own_is_the_threads_and_can_be_written() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIPPED: mounting needs root");
        }
        let work = || {
            // SAFETY: only this thread's network namespace changes, and the thread ends right after.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
            let proc = detached_proc().unwrap();
            let name = "net/ipv6/conf/all/forwarding";
            let read = || {
                let mut value = String::new();
                File::from(open(proc.as_fd(), name, OFlags::RDONLY).unwrap())
                    .read_to_string(&mut value)
                    .unwrap();
                value
            };
            assert_eq!(read(), "0\n");
            let mut file = File::from(open(proc.as_fd(), name, OFlags::WRONLY).unwrap());
            file.write_all(b"1").unwrap();
            assert_eq!(read(), "1\n");
        };
        std::thread::spawn(work).join().unwrap();
    }
}
