//! A thread that reads and writes a disk's files, which are open.

use super::{Rules, ioctl};

pub(super) fn add(rules: &mut Rules) {
    rules.allow(&[
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_fdatasync,
        libc::SYS_fsync,
        // Discard and write-zeroes.
        libc::SYS_fallocate,
    ]);
    // Discard, of a block device.
    rules.allow_ioctls(&[ioctl::BLKDISCARD]);
}
