//! Signals: those that ask for the VM's end or tell of a new terminal size come through a descriptor, and one of our own takes a vCPU out
//! of the guest.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vmm_sys_util::signal::{create_sigset, register_signal_handler};

/// What asks for the VM's end: a person, the kubelet, a terminal that went away.
const STOP: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals in [`STOP`] and `SIGWINCH`, blocked everywhere and readable here.
pub(crate) struct Signals(OwnedFd);

/// The signals that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// One of [`STOP`].
    pub(crate) stop: bool,
    /// The terminal has another size.
    pub(crate) resize: bool,
}

impl Signals {
    /// Blocks the signals for this thread and every later one.
    pub(crate) fn block() -> io::Result<Self> {
        let [terminate, interrupt, hang_up] = STOP;
        let set = create_sigset(&[terminate, interrupt, hang_up, libc::SIGWINCH]).map_err(io::Error::from)?;
        // SAFETY: the set is valid, and the old one is not asked for.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: the set is valid; -1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd returned a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Those that nobody sends.
    #[cfg(test)]
    pub(crate) fn none() -> io::Result<Self> {
        let set = create_sigset(&[]).map_err(io::Error::from)?;
        // SAFETY: the set is valid; -1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd returned a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// What has arrived; reads all of them.
    pub(crate) fn take(&self) -> Arrived {
        let mut arrived = Arrived::default();
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        while matches!(rustix::io::read(&self.0, &mut info), Ok(bytes) if bytes == info.len()) {
            // `ssi_signo` is the first field (signalfd(2)).
            let number = info.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            if i64::from(number) == i64::from(libc::SIGWINCH) {
                arrived.resize = true;
            } else {
                arrived.stop = true;
            }
        }
        arrived
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// The signal that takes a vCPU out of the guest.
pub(crate) fn kick_signal() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

/// Installs the handler of [`kick_signal`].
pub(crate) fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), crate::vcpu::on_kick).map_err(io::Error::from)
}
