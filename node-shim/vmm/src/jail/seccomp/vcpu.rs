//! A vCPU's thread: it runs the guest, and carries out what the guest writes to registers.

use super::{Rules, ioctl, is};

pub(super) fn add(rules: &mut Rules) {
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
}
