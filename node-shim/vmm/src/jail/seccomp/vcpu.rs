//! A vCPU's thread: it runs the guest, and carries out what the guest writes to registers.

use super::{Facts, Rules, ioctl, is};

pub(super) fn add(rules: &mut Rules, facts: Facts) {
    // In the order in which the filter looks: the first is what the thread does nearly all of its time.
    rules.allow_ioctls(&[
        ioctl::KVM_RUN,
        ioctl::KVM_IRQ_LINE,
        // `DRIVER_OK`, a reset of a device, and MSI-X.
        ioctl::KVM_IOEVENTFD,
        ioctl::KVM_IRQFD,
        ioctl::KVM_SET_GSI_ROUTING,
        // A vCPU that is plugged again; where it was when it crashed.
        ioctl::KVM_SET_MP_STATE,
        ioctl::KVM_GET_REGS,
        ioctl::KVM_GET_SREGS,
    ]);
    rules.allow(&[
        // `DRIVER_OK`, a reset of a device.
        libc::SYS_eventfd2,
        libc::SYS_epoll_ctl,
        // The clock's alarm and the watchdog.
        libc::SYS_timerfd_settime,
        // A disk that the guest gives up: the last that its overlay has to write, and its locks.
        libc::SYS_fdatasync,
        libc::SYS_flock,
    ]);
    rules.allow_if(libc::SYS_fcntl, [is(1, libc::F_DUPFD_CLOEXEC.unsigned_abs())]);
    // Takes another vCPU, which this one ejects, out of the guest. No other signal, and to nobody else.
    rules.allow_if(
        libc::SYS_tgkill,
        [is(0, facts.pid), is(2, facts.kick_signal.unsigned_abs())],
    );
}
