//! The end of a process one of whose threads made a system call that its list does not have: the kernel does not make it and sends
//! `SIGSYS` to that thread, which says so and ends the process.
//!
//! Whoever controls the thread cannot keep it from that: no list has `rt_sigaction`, and a blocked `SIGSYS` kills the process
//! (seccomp(2), `SECCOMP_RET_TRAP`).

use std::cell::Cell;
use std::io;

use node_shim_protocol::ExitReason;

use super::seccomp::Kind;
use crate::termination;

thread_local! {
    /// What this thread does. Without a destructor and constant, so that the handler may look.
    static KIND: Cell<Option<Kind>> = const { Cell::new(None) };
}

/// Offset of `si_syscall` in `siginfo_t` on 64-bit kernels, after `si_call_addr` (Linux include/uapi/asm-generic/siginfo.h).
const SYSCALL_OFFSET: usize = 24;

/// Says what the calling thread does.
pub(super) fn set_kind(kind: Kind) {
    KIND.set(Some(kind));
}

/// Installs the handler.
pub(super) fn install_handler() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction: an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action is complete, and the old one is not asked for.
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Does nothing that is not async-signal-safe: no allocation, no lock.
extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let at = info.wrapping_byte_add(SYSCALL_OFFSET).cast::<i32>();
    // SAFETY: with SA_SIGINFO the kernel passes a whole siginfo, of which these are four bytes.
    let call = unsafe { at.read() };
    let kind = KIND.try_with(Cell::get).ok().flatten().map_or("unknown", Kind::name);
    let mut message = Message::default();
    message.text("a ");
    message.text(kind);
    message.text(" thread of node-shim tried system call ");
    message.number(call.unsigned_abs());
    message.text(
        ", which its seccomp filter does not allow: the guest broke into it, or it is a defect; please report it",
    );
    termination::end_in_handler(ExitReason::IsolationViolated, message.as_str());
}

/// A short text without an allocation.
struct Message {
    bytes: [u8; 256],
    length: usize,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            bytes: [0; 256],
            length: 0,
        }
    }
}

impl Message {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(free) = self.bytes.get_mut(self.length) {
                *free = byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: u32) {
        let mut divisor = 1;
        while number / divisor >= 10 {
            divisor *= 10;
        }
        while divisor > 0 {
            let digit = (number / divisor % 10) as usize;
            self.text("0123456789".get(digit..=digit).unwrap_or_default());
            divisor /= 10;
        }
    }

    fn as_str(&self) -> &str {
        // Only ASCII text is put in.
        str::from_utf8(self.bytes.get(..self.length).unwrap_or_default()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use node_shim_protocol::Termination;

    use super::super::seccomp::{self, Facts, Mode};
    use super::*;

    #[test]
    fn a_violation_is_named_in_exit_code_and_message() {
        let facts = Facts {
            pid: 1,
            kick_signal: 34,
            connects: false,
        };
        let [program]: [seccompiler::BpfProgram; 1] = seccomp::filters(Kind::Vcpu, facts, Mode::Enforce)
            .unwrap()
            .try_into()
            .unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        // SAFETY: the child makes system calls only, until it ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            set_kind(Kind::Vcpu);
            // SAFETY: both descriptors are open.
            unsafe { libc::dup2(writer.as_raw_fd(), 2) };
            // SAFETY: nothing else is used any more, and locks of other tests must not be held.
            unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
            if install_handler().is_ok() && seccompiler::apply_filter(&program).is_ok() {
                // SAFETY: a call without arguments.
                unsafe { libc::syscall(libc::SYS_fork) };
            }
            // SAFETY: the end of the child.
            unsafe { libc::_exit(99) };
        }
        drop(writer);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        let mut status = 0;
        // SAFETY: waits for the child, whose status goes to `status`.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status), "{status:#x}");
        let code = ExitReason::IsolationViolated.code();
        assert_eq!(libc::WEXITSTATUS(status), i32::from(code), "{said}");
        let json = said.trim_end().strip_prefix("node-shim: ").unwrap();
        let termination: Termination = serde_json::from_str(json).unwrap();
        assert_eq!(termination.reason, ExitReason::IsolationViolated);
        let expected = format!("a vCPU thread of node-shim tried system call {},", libc::SYS_fork);
        assert!(termination.message.starts_with(&expected), "{said}");
    }

    #[test]
    fn a_message_is_put_together_without_an_allocation() {
        for number in [0, 9, 10, 59, u32::MAX] {
            let mut message = Message::default();
            message.text("call ");
            message.number(number);
            assert_eq!(message.as_str(), format!("call {number}"));
        }
        let mut message = Message::default();
        message.text(&"x".repeat(1000));
        assert_eq!(message.as_str().len(), 256);
    }
}
