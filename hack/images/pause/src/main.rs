//! `pause` holds a pod's namespaces: it waits, reaps the processes that are left to it where containers share a PID namespace, and ends
//! on SIGTERM or SIGINT.
//!
//! Signals are taken by `sigwait`, never by a handler, so there is nothing that a handler could do wrong.

use std::process::ExitCode;
use std::{io, mem, ptr};

fn main() -> ExitCode {
    match wait_for_the_end() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pause: failed to wait for signals: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wait_for_the_end() -> io::Result<()> {
    // SAFETY: a signal set is plain data, for which all zeros is a valid value; `sigemptyset` sets it up.
    let mut signals: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `signals` is ours, and nothing else is written to.
    unsafe { libc::sigemptyset(&raw mut signals) };
    for signal in [libc::SIGCHLD, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: `signals` is set up, and nothing else is written to.
        unsafe { libc::sigaddset(&raw mut signals, signal) };
    }
    // As process 1 of its namespace it gets no signal that is neither handled nor blocked (pid_namespaces(7)).
    // SAFETY: `signals` is set up, and the old mask is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    loop {
        let mut signal = 0;
        // SAFETY: both pointers are to our own variables.
        let error = unsafe { libc::sigwait(&raw const signals, &raw mut signal) };
        match (error, signal) {
            (0, libc::SIGCHLD) => reap(),
            (0, _) => return Ok(()),
            (error, _) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Reaps every process that has ended: signals of one kind merge.
fn reap() {
    // SAFETY: no status is asked for, so nothing is written.
    while unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) } > 0 {}
}
