//! The thread that writes a snapshot. Where it may, is Landlock's to say.

use super::{Rules, ioctl};

pub(super) fn add(rules: &mut Rules) {
    files(rules);
    rules.allow(&[
        libc::SYS_mkdir,
        libc::SYS_mkdirat,
        libc::SYS_getdents64,
        libc::SYS_rmdir,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        // Guest memory that was never touched is not read.
        libc::SYS_pread64,
        libc::SYS_pwrite64,
    ]);
    // The files of disks share their blocks where the file system can.
    rules.allow_ioctls(&[ioctl::FICLONE]);
}

/// Files by their names.
pub(super) fn files(rules: &mut Rules) {
    rules.allow(&[
        libc::SYS_openat,
        libc::SYS_statx,
        libc::SYS_newfstatat,
        libc::SYS_fstat,
        libc::SYS_lstat,
        libc::SYS_lseek,
        libc::SYS_ftruncate,
        libc::SYS_fsync,
        libc::SYS_unlink,
    ]);
}
