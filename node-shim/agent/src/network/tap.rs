//! Tap devices.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// The device that makes them.
const TUN_DEVICE: &str = "/dev/net/tun";

/// Failure to make a tap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapError {
    /// No device.
    #[error("failed to open {TUN_DEVICE}: does the node have the module `tun`, and the agent the device?")]
    Open(#[source] io::Error),
    /// A defect.
    #[error("{0} is no name of a network device")]
    Name(String),
    /// The kernel refuses.
    #[error("failed to make the tap {device}: the agent needs CAP_NET_ADMIN")]
    Make {
        /// Its name.
        device: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Makes the tap `device` in the calling thread's network namespace, and opens each of its queues: frames without packet information, with
/// a virtio-net header.
pub(crate) fn open(device: &str, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    (0..queues)
        .map(|queue| open_queue(device, queues > 1, queue == 0))
        .collect()
}

fn open_queue(device: &str, multi: bool, first: bool) -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tap = rustix::fs::open(TUN_DEVICE, flags, Mode::empty()).map_err(|error| TapError::Open(error.into()))?;
    let mut request = interface_request(device)?;
    let mut tap_flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi {
        tap_flags |= libc::IFF_MULTI_QUEUE;
    }
    if first {
        // It is new; the other queues are of the same.
        tap_flags |= libc::IFF_TUN_EXCL;
    }
    // The field is a short that holds unsigned flags: IFF_TUN_EXCL is its top bit.
    request.ifr_ifru.ifru_flags = u16::try_from(tap_flags).unwrap_or_default().cast_signed();
    // SAFETY: the descriptor is open, and the kernel reads and writes one ifreq, which outlives the call.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made < 0 {
        return Err(TapError::Make {
            device: device.to_owned(),
            source: io::Error::last_os_error(),
        });
    }
    Ok(tap)
}

fn interface_request(device: &str) -> Result<libc::ifreq, TapError> {
    // SAFETY: ifreq is plain data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = CString::new(device).map_err(|_| TapError::Name(device.to_owned()))?;
    let name = name.as_bytes_with_nul();
    if name.len() < 2 || name.len() > request.ifr_name.len() {
        return Err(TapError::Name(device.to_owned()));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    Ok(request)
}
