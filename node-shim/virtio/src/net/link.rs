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
    /// This queue is one of those among which the host shares out its frames, or no longer is.
    ///
    /// # Errors
    /// When the host refuses.
    fn attach(&mut self, attached: bool) -> io::Result<()>;
}

/// One queue of a tap device, made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and with `IFF_MULTI_QUEUE` where there are several.
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

    fn attach(&mut self, attached: bool) -> io::Result<()> {
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if attached {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).map_err(io::Error::other)?;
        // SAFETY: TUNSETQUEUE reads one ifreq, which `request` is.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Read;

    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    /// A tap in a network namespace that ends with this thread.
    fn tap() -> io::Result<OwnedFd> {
        // SAFETY: only this test's own thread gets a network namespace of its own; no descriptor is affected.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        open_queue(0)
    }

    /// A queue of the tap `tap9` in the thread's namespace.
    fn open_queue(more_flags: libc::c_int) -> io::Result<OwnedFd> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap9") {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more_flags;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: TUNSETIFF reads and writes the ifreq that it is given.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(file.into())
    }

    #[test]
    fn a_real_tap_takes_the_header_size_and_every_offload() {
        let descriptor = match tap() {
            Ok(descriptor) => descriptor,
            Err(error) => {
                eprintln!("skipped: making a tap needs CAP_NET_ADMIN and /dev/net/tun: {error}");
                return;
            }
        };
        let mut tap = Tap::new(descriptor).unwrap();
        for offloads in [Offloads::all(), Offloads::empty(), Offloads::CHECKSUM | Offloads::TSO6] {
            tap.configure(offloads).unwrap();
        }
        let mut header: libc::c_int = 0;
        // SAFETY: TUNGETVNETHDRSZ writes one int.
        check(unsafe { libc::ioctl(tap.file.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut header) }).unwrap();
        assert_eq!(header, 12);
        let error = tap.file.read(&mut [0; 64]).unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EIO)),
            "{error}"
        );
    }

    #[test]
    fn queues_of_a_real_tap_come_and_go() {
        // SAFETY: only this test's own thread gets a network namespace of its own; no descriptor is affected.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from);
        let first = match unshared.and_then(|()| open_queue(libc::IFF_MULTI_QUEUE)) {
            Ok(first) => first,
            Err(error) => {
                eprintln!("skipped: making a tap needs CAP_NET_ADMIN and /dev/net/tun: {error}");
                return;
            }
        };
        let mut first = Tap::new(first).unwrap();
        let mut second = Tap::new(open_queue(libc::IFF_MULTI_QUEUE).unwrap()).unwrap();
        for attached in [false, true, false, true] {
            second.attach(attached).unwrap();
        }
        assert!(second.attach(true).is_err(), "it is already");
        // Offloads are the whole tap's, whether or not a queue is attached.
        second.attach(false).unwrap();
        first.configure(Offloads::all()).unwrap();
        assert!(first.attach(true).is_err());
    }
}
