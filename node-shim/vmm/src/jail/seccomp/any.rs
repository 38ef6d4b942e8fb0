//! What every thread needs: memory, waiting, its own end and the process's.

use super::{Facts, Rules, is, lacks};

pub(super) fn add(rules: &mut Rules, facts: Facts) {
    rules.allow(&[
        // The allocator, and the stacks of threads that end. How many arenas there may be depends on the CPUs.
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_sched_getaffinity,
        // Locks and channels.
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_restart_syscall,
        // Eventfds; lines on stderr.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_close,
        // The time, where the vDSO does not know it.
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        // Seeds of hash tables; virtio-rng.
        libc::SYS_getrandom,
        // A thread's end, and what the standard library does around its handler of stack overflows.
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        // The termination message, in a file that is open.
        libc::SYS_ftruncate,
        libc::SYS_pwrite64,
    ]);
    // No code but what is there.
    rules.allow_if(libc::SYS_mmap, [lacks(2, libc::PROT_EXEC.unsigned_abs())]);
    rules.allow_if(libc::SYS_mprotect, [lacks(2, libc::PROT_EXEC.unsigned_abs())]);
    // A build with debug assertions looks whether what it closes is open.
    rules.allow_if(libc::SYS_fcntl, [is(1, libc::F_GETFD.unsigned_abs())]);
    // abort(3).
    rules.allow_if(
        libc::SYS_tgkill,
        [is(0, facts.pid), is(2, libc::SIGABRT.unsigned_abs())],
    );
    // A panic on any thread makes the terminal what it was.
    for request in super::ioctl::TERMINAL_RESTORE {
        rules.allow_if(libc::SYS_ioctl, [is(0, 0), is(1, request)]);
    }
}
