//! Filters on children of this process, each of which makes one call.

use std::arch::asm;

use super::*;

/// What no thread may do, as numbers and arguments of system calls.
fn forbidden() -> Vec<(&'static str, i64, [u64; 6])> {
    let path = c"/etc/passwd".as_ptr() as u64;
    let here = u64::from(libc::AT_FDCWD.cast_unsigned());
    let fork = libc::SIGCHLD as u64;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    // More than the kernel looks at: a filter that looks at all of it could be passed.
    let high = 1_u64 << 32;
    let own = u64::from(std::process::id());
    vec![
        ("open", libc::SYS_open, [path, 0, 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [path, 0, 0, 0, 0, 0]),
        ("execveat", libc::SYS_execveat, [here, path, 0, 0, 0, 0]),
        ("socket of AF_INET", libc::SYS_socket, [2, 1, 0, 0, 0, 0]),
        ("socket of AF_NETLINK", libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
        ("socket of AF_VSOCK", libc::SYS_socket, [40, 1, 0, 0, 0, 0]),
        ("bind", libc::SYS_bind, [0, 0, 0, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [0; 6]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [own, 0, 0, 0, 0, 0]),
        (
            "mmap to execute",
            libc::SYS_mmap,
            [0, 4096, executable, anonymous, u64::MAX, 0],
        ),
        (
            "mprotect to execute",
            libc::SYS_mprotect,
            [0, 4096, executable, 0, 0, 0],
        ),
        ("pkey_mprotect", libc::SYS_pkey_mprotect, [0, 4096, 1, 0, 0, 0]),
        ("memfd_create", libc::SYS_memfd_create, [path, 0, 0, 0, 0, 0]),
        ("ioctl TIOCSTI", libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0]),
        (
            "ioctl TIOCSTI, high bits",
            libc::SYS_ioctl,
            [0, high | libc::TIOCSTI, 0, 0, 0, 0],
        ),
        // Zeros, which are a device's by fallocate(2).
        ("ioctl BLKZEROOUT", libc::SYS_ioctl, [u64::MAX, 0x127f, 0, 0, 0, 0]),
        ("ioctl TIOCLINUX", libc::SYS_ioctl, [0, 0x541c, 0, 0, 0, 0]),
        ("fork", libc::SYS_fork, [0; 6]),
        ("vfork", libc::SYS_vfork, [0; 6]),
        ("clone of a process", libc::SYS_clone, [fork, 0, 0, 0, 0, 0]),
        (
            "clone into a user namespace",
            libc::SYS_clone,
            [0x1000_0000 | fork, 0, 0, 0, 0, 0],
        ),
        ("unshare", libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]),
        ("setns", libc::SYS_setns, [0; 6]),
        ("mount", libc::SYS_mount, [0; 6]),
        ("chroot", libc::SYS_chroot, [path, 0, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, [own, 0, 0, 0, 0, 0]),
        ("tkill", libc::SYS_tkill, [own, 0, 0, 0, 0, 0]),
        (
            "tgkill of another process",
            libc::SYS_tgkill,
            [1, 1, libc::SIGABRT as u64, 0, 0, 0],
        ),
        (
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            [libc::SIGSYS as u64, 0, 0, 8, 0, 0],
        ),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("io_uring_register", libc::SYS_io_uring_register, [0; 6]),
        ("bpf", libc::SYS_bpf, [0; 6]),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 6]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 6]),
        ("keyctl", libc::SYS_keyctl, [0; 6]),
        (
            "prctl PR_SET_DUMPABLE",
            libc::SYS_prctl,
            [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0],
        ),
        ("seccomp with a listener", libc::SYS_seccomp, [1, 8, 0, 0, 0, 0]),
        ("personality", libc::SYS_personality, [0x0040_0000, 0, 0, 0, 0, 0]),
        ("setuid", libc::SYS_setuid, [0; 6]),
        ("symlinkat", libc::SYS_symlinkat, [path, here, path, 0, 0, 0]),
        ("an x32 call", 0x4000_0000 | libc::SYS_getpid, [0; 6]),
    ]
}

fn facts(connects: bool) -> Facts {
    Facts {
        pid: std::process::id(),
        kick_signal: 34,
        connects,
    }
}

/// The filter of a kind's list.
fn compile(kind: Kind, facts: Facts, mode: Mode) -> Result<BpfProgram, BackendError> {
    filters(kind, facts, mode).map(|mut filters| filters.pop().unwrap())
}

/// How a child ends that has this filter and then does something.
fn ends(program: &BpfProgram, act: impl FnOnce()) -> libc::c_int {
    // As fork(2), but for the descriptors, which it shares: a copy of them would hold the locks of other tests for a moment.
    // SAFETY: the child makes system calls only, until it ends, on a copy of the stack.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::CLONE_FILES | libc::SIGCHLD,
            0_u64,
            0_u64,
            0_u64,
            0_u64,
        )
    };
    let child = libc::pid_t::try_from(child).unwrap();
    if child == 0 {
        // SAFETY: another test may have installed the handler.
        unsafe { libc::signal(libc::SIGSYS, libc::SIG_DFL) };
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: no core files; the limit is a whole structure.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        if seccompiler::apply_filter(program).is_ok() {
            act();
            // SAFETY: the end of the child.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: as above.
        unsafe { libc::_exit(99) };
    }
    let mut status = 0;
    // SAFETY: waits for the child, whose status goes to `status`.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

fn call(number: i64, arguments: [u64; 6]) {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: none of the tests' calls writes to memory of this process.
    unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
}

fn is_killed(status: libc::c_int) -> bool {
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS
}

fn is_fine(status: libc::c_int) -> bool {
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

#[test]
fn no_thread_does_what_no_thread_needs() {
    for kind in Kind::ALL {
        let program = compile(kind, facts(true), Mode::Enforce).unwrap();
        for (name, number, arguments) in forbidden() {
            let status = ends(&program, || call(number, arguments));
            assert!(is_killed(status), "{kind:?}: {name} ended with {status:#x}");
        }
        // 20 is getpid of 32-bit programs.
        let status = ends(&program, || {
            // SAFETY: getpid changes nothing but the register.
            unsafe { asm!("int 0x80", inlateout("eax") 20 => _) };
        });
        assert!(is_killed(status), "{kind:?}: a 32-bit call ended with {status:#x}");
    }
}

#[test]
fn only_the_threads_that_need_to_may() {
    let path = c"/etc/passwd".as_ptr() as u64;
    let own = u64::from(std::process::id());
    let cases: [(&str, i64, [u64; 6], &[Kind]); 14] = [
        (
            "openat",
            libc::SYS_openat,
            [u64::from(libc::AT_FDCWD.cast_unsigned()), path, 0, 0, 0, 0],
            &[Kind::Main, Kind::Snapshot],
        ),
        ("socket of AF_UNIX", libc::SYS_socket, [1, 5, 0, 0, 0, 0], &[Kind::Main]),
        ("accept4", libc::SYS_accept4, [u64::MAX, 0, 0, 0, 0, 0], &[Kind::Main]),
        (
            "sendto without an address",
            libc::SYS_sendto,
            [u64::MAX, 0, 0, 0, 0, 0],
            &[Kind::Main, Kind::Console],
        ),
        (
            "KVM_RUN",
            libc::SYS_ioctl,
            [u64::MAX, u64::from(ioctl::KVM_RUN), 0, 0, 0, 0],
            &[Kind::Main, Kind::Vcpu],
        ),
        (
            "KVM_CREATE_VM",
            libc::SYS_ioctl,
            [u64::MAX, 0xae01, 0, 0, 0, 0],
            &[Kind::Main],
        ),
        (
            "the kick of a vCPU",
            libc::SYS_tgkill,
            [own, u64::MAX, 34, 0, 0, 0],
            &[Kind::Main, Kind::Vcpu],
        ),
        (
            "TUNSETOFFLOAD",
            libc::SYS_ioctl,
            [u64::MAX, u64::from(ioctl::TUNSETOFFLOAD), 0, 0, 0, 0],
            &[Kind::Main, Kind::Net],
        ),
        (
            "preadv",
            libc::SYS_preadv,
            [u64::MAX, 0, 0, 0, 0, 0],
            &[Kind::Main, Kind::Disk, Kind::DiskIo],
        ),
        (
            "BLKDISCARD",
            libc::SYS_ioctl,
            [u64::MAX, u64::from(ioctl::BLKDISCARD), 0, 0, 0, 0],
            &[Kind::Main, Kind::Disk, Kind::DiskIo],
        ),
        (
            "io_uring_enter",
            libc::SYS_io_uring_enter,
            [u64::MAX, 0, 0, 0, 0, 0],
            &[Kind::Main, Kind::Disk],
        ),
        (
            "readv",
            libc::SYS_readv,
            [u64::MAX, 0, 0, 0, 0, 0],
            &[Kind::Main, Kind::Net],
        ),
        (
            "renameat2",
            libc::SYS_renameat2,
            [u64::MAX, 0, u64::MAX, 0, 0, 0],
            &[Kind::Main, Kind::Snapshot],
        ),
        ("mmap", libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, 0], &Kind::ALL),
    ];
    for (name, number, arguments, allowed) in cases {
        for kind in Kind::ALL {
            let program = compile(kind, facts(true), Mode::Enforce).unwrap();
            let status = ends(&program, || call(number, arguments));
            let expected = if allowed.contains(&kind) { is_fine } else { is_killed };
            assert!(expected(status), "{kind:?}: {name} ended with {status:#x}");
        }
    }
}

#[test]
fn a_vmm_without_agent_and_vsock_connects_to_nothing() {
    let program = compile(Kind::Main, facts(false), Mode::Enforce).unwrap();
    for (number, arguments) in [
        (libc::SYS_socket, [1, 5, 0, 0, 0, 0]),
        (libc::SYS_connect, [u64::MAX, 0, 0, 0, 0, 0]),
    ] {
        assert!(is_killed(ends(&program, || call(number, arguments))));
    }
}

#[test]
fn a_call_that_is_only_logged_is_made() {
    for kind in Kind::ALL {
        let program = compile(kind, facts(true), Mode::Log).unwrap();
        let status = ends(&program, || call(libc::SYS_getppid, [0; 6]));
        assert!(is_fine(status), "{kind:?}: {status:#x}");
    }
}

#[test]
fn threads_are_made_by_clone_alone() {
    let filters = filters(Kind::Main, facts(true), Mode::Enforce).unwrap();
    let [refusal, program]: [BpfProgram; 2] = filters.try_into().unwrap();
    let status = ends(&refusal, || {
        if seccompiler::apply_filter(&program).is_err() {
            // SAFETY: the end of the child.
            unsafe { libc::_exit(1) };
        }
        // SAFETY: the kernel would look at the arguments only if it were to make the call.
        let result = unsafe { libc::syscall(libc::SYS_clone3, 0_u64, 0_u64) };
        if result != -1 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS) {
            // SAFETY: the end of the child.
            unsafe { libc::_exit(2) };
        }
    });
    assert!(is_fine(status), "{status:#x}");
}

/// A thread has the filter of the one that started it beside its own.
#[test]
fn the_main_thread_may_what_the_threads_may_that_it_starts() {
    let main = rules(Kind::Main, facts(true));
    for kind in [Kind::Vcpu, Kind::Disk, Kind::DiskIo, Kind::Net, Kind::Snapshot] {
        for (number, needed) in rules(kind, facts(true)).0 {
            let has = main.0.get(&number).unwrap_or_else(|| panic!("{kind:?}: call {number}"));
            let all = has.is_empty() || !needed.is_empty() && needed.iter().all(|rule| has.contains(rule));
            assert!(all, "{kind:?}: call {number}");
        }
    }
}
