//! The host's end of a network device: a tap.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::HEADER_BYTES;
use super::offload::Offloads;

/// Where frames come from and go to, one for each `readv(2)` and `writev(2)`, each after a `virtio_net_hdr` of [`HEADER_BYTES`].
/// It never blocks.
pub trait Link: AsFd + Send {
    /// The driver takes these offloads from now on.
    ///
    /// # Errors
    /// When the host refuses.
    fn configure(&mut self, offloads: Offloads) -> io::Result<()>;
}

/// A tap device's descriptor, made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Takes a tap that somebody has attached.
    ///
    /// # Errors
    /// When its flags cannot be changed.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            file: descriptor.into(),
        })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Link for Tap {
    fn configure(&mut self, offloads: Offloads) -> io::Result<()> {
        let header = libc::c_int::try_from(HEADER_BYTES).map_err(io::Error::other)?;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which `header` is, and changes nothing of ours.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })?;
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        check(unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads.bits()),
            )
        })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
