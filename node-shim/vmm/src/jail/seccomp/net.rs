//! The thread of a queue pair: frames between a tap and the guest's buffers.

use super::{Rules, ioctl};

pub(super) fn add(rules: &mut Rules) {
    rules.allow(&[libc::SYS_ppoll, libc::SYS_readv, libc::SYS_writev]);
    // What the guest's driver takes, and whether it uses this pair.
    rules.allow_ioctls(&[ioctl::TUNSETOFFLOAD, ioctl::TUNSETVNETHDRSZ, ioctl::TUNSETQUEUE]);
}
