//! A child process whose end can be waited for by poll(2), also on kernels without pidfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::connection::time_left;

/// How long the kernel may take to end a process that was killed: one in a system call that cannot be interrupted takes longer.
const DEATH: Duration = Duration::from_secs(5);
/// Stack in bytes of a thread that only waits.
const STACK_BYTES: usize = 64 * 1024;

/// A child, the leader of a process group of its own.
pub(crate) struct Process {
    child: Child,
    pid: Pid,
    /// Readable once the child has ended. It is not yet reaped then, so nobody else has its number.
    ended: Arc<OwnedFd>,
}

impl Process {
    /// Starts a command.
    ///
    /// # Errors
    /// When it cannot be started, or the kernel has no thread or descriptor left.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let child = command.process_group(0).spawn()?;
        let pid = Pid::from_child(&child);
        let mut process = Self {
            child,
            pid,
            ended: Arc::clone(&ended),
        };
        // The agent may be one that the kernel does not kill for want of memory; what it starts is not.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
        let waiter = thread::Builder::new().name("waiter".into()).stack_size(STACK_BYTES);
        if let Err(error) = waiter.spawn(move || await_end(pid, &ended)) {
            process.kill();
            let _ = process.child.wait();
            return Err(error);
        }
        Ok(process)
    }

    /// The child's ends of pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Readable once it has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Kills it and everything that it started and that did not leave its group. Not after [`Self::reap`].
    fn kill(&mut self) {
        // It may have ended.
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Its status, once it has ended.
    pub(crate) fn reap(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Waits for its end, but not longer than until the deadline: `None`.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<Option<()>> {
        loop {
            let Some(left) = time_left(deadline) else {
                return Ok(None);
            };
            match poll(&mut [PollFd::new(&*self.ended, PollFlags::IN)], Some(&left)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(Some(())),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Kills it, and does not leave a zombie.
    pub(crate) fn end(mut self) {
        self.kill();
        if let Ok(Some(())) = self.wait(Instant::now() + DEATH) {
            let _ = self.child.wait();
        } else {
            let reaper = thread::Builder::new().name("reaper".into()).stack_size(STACK_BYTES);
            // Without it a zombie stays until the agent ends.
            let _ = reaper.spawn(move || self.child.wait());
        }
    }
}

/// Waits without reaping, and says so.
fn await_end(pid: Pid, ended: &OwnedFd) {
    while let Err(Errno::INTR) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {}
    // A counter at 0 has room.
    let _ = rustix::io::write(ended, &1_u64.to_ne_bytes());
}
