//! The main thread: the event loop, requests of the control socket, and a machine's start, which a reset is too. It starts the threads of
//! vCPUs, snapshots and of disks and interfaces that are plugged, so it may do whatever those may.

use super::{Facts, Rules, disk, ioctl, is, is_long, net, snapshot, start, vcpu};

pub(super) fn add(rules: &mut Rules, facts: Facts) {
    // First: the filter looks at a vCPU's requests in this order too.
    vcpu::add(rules, facts);
    disk::add(rules);
    net::add(rules);
    snapshot::add(rules);
    start::add(rules);
    machine(rules);
    event_loop(rules);
    if facts.connects {
        rules.allow_if(libc::SYS_socket, [is(0, libc::AF_UNIX.unsigned_abs())]);
        rules.allow(&[libc::SYS_connect]);
    }
}

/// A machine's start and its end; its state for a snapshot, and from one.
fn machine(rules: &mut Rules) {
    rules.allow_ioctls(ioctl::MACHINE);
    // The kernel of a disk is looked for anew and kept in a file without a name. One that was unpacked goes to the cache in the scratch
    // directory, or is found there and becomes its newest.
    snapshot::files(rules);
    rules.allow(&[libc::SYS_rename, libc::SYS_utimensat]);
    rules.allow(&[libc::SYS_readv, libc::SYS_preadv]);
}

fn event_loop(rules: &mut Rules) {
    rules.allow(&[
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_create1,
        libc::SYS_timerfd_settime,
        // The control socket, the node agent, the host's ends of vsock.
        libc::SYS_accept4,
        libc::SYS_recvmsg,
        libc::SYS_recvfrom,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_shutdown,
        libc::SYS_geteuid,
    ]);
    // Nothing is sent to an address.
    rules.allow_if(libc::SYS_sendto, [is_long(4, 0)]);
    rules.allow(&[libc::SYS_sendmsg]);
    rules.allow_if(
        libc::SYS_getsockopt,
        [
            is(1, libc::SOL_SOCKET.unsigned_abs()),
            is(2, libc::SO_PEERCRED.unsigned_abs()),
        ],
    );
    // Who is a client of the console; a tap or a disk that somebody plugs.
    for command in [libc::F_DUPFD_CLOEXEC, libc::F_GETFL, libc::F_SETFL] {
        rules.allow_if(libc::SYS_fcntl, [is(1, command.unsigned_abs())]);
    }
    rules.allow(&[libc::SYS_flock]);
    // The size of the terminal; sockets that must not block.
    rules.allow_ioctls(&[ioctl::TIOCGWINSZ, ioctl::FIONBIO]);
}
