//! What starting a thread takes: of who starts it, and of the new one until it has a filter of its own.

use super::{Rules, is, is_long};

/// What the C library makes a thread with (glibc `create_thread`). A new process would lack `CLONE_VM` and `CLONE_THREAD`.
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

pub(super) fn add(rules: &mut Rules) {
    // `clone3` keeps its flags in memory. It is in the list so that the other filter's answer counts: see `first`.
    rules.allow(&[libc::SYS_clone3]);
    rules.allow_if(libc::SYS_clone, [is_long(0, u64::from(THREAD.unsigned_abs()))]);
    // The new thread.
    rules.allow(&[libc::SYS_set_robust_list, libc::SYS_rseq]);
    rules.allow_if(libc::SYS_prctl, [is(0, libc::PR_SET_NAME.unsigned_abs())]);
    // Its filter. More filters can only take more away: one that answers in the kernel's place would need a flag.
    rules.allow_if(
        libc::SYS_prctl,
        [is(0, libc::PR_SET_NO_NEW_PRIVS.unsigned_abs()), is_long(1, 1)],
    );
    rules.allow_if(libc::SYS_seccomp, [is(0, libc::SECCOMP_SET_MODE_FILTER), is(1, 0)]);
}
