//! A disk's own thread: it waits for kicks and hands requests on, to `io_uring`, to the threads of [`super::disk_io`], or, one by one, does
//! what they do.

use super::{Rules, disk_io};

pub(super) fn add(rules: &mut Rules) {
    disk_io::add(rules);
    rules.allow(&[
        libc::SYS_ppoll,
        // Of a ring that was made and restricted to `readv` and `writev` before: there is no `io_uring_setup`, and no `io_uring_register`.
        libc::SYS_io_uring_enter,
    ]);
}
