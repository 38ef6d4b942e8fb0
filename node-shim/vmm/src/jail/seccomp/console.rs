//! The thread that writes what the guest prints to stdout and to clients of the control socket.

use super::{Rules, is_long};

pub(super) fn add(rules: &mut Rules) {
    rules.allow(&[libc::SYS_ppoll, libc::SYS_poll]);
    // To a connected socket: without an address.
    rules.allow_if(libc::SYS_sendto, [is_long(4, 0)]);
}
