//! `exec`: a command, its stdin from the host, its output to the host.
//!
//! No more is held of either direction than one frame: what the other side does not take is not read. The command ends when it wants to, when its
//! time is over, or when the host has closed the connection. What it left running in the background is not waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use node_shim_protocol::guest::{DATA_MAX_BYTES, Ending, Exec, Exited, FailureKind, Kind, Question, Response, encode};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::connection::{Connection, ConnectionError, time_left};
use crate::process::Process;

/// Where programs are looked for when the agent was started without a `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long the host may take to read what the command said last.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a command to its end.
pub(crate) fn run(exec: &Exec, connection: &mut Connection) -> Result<Response, ConnectionError> {
    let deadline = Instant::now() + Duration::from_millis(exec.timeout_ms);
    let mut process = match start(exec) {
        Ok(process) => process,
        Err(response) => return Ok(response),
    };
    let passed = Pipes::take(&mut process, exec.output_limit_bytes).and_then(|mut pipes| {
        let how = pipes.pass(connection, process.ended(), deadline)?;
        Ok((pipes, how))
    });
    match passed {
        Ok((mut pipes, Passed::Ended)) => {
            // First: it must not stay a zombie because the host has gone.
            let status = process.reap().map_err(ConnectionError::Io)?;
            pipes.pass_rest(connection, Instant::now() + PATIENCE)?;
            Ok(exited(ending(status), pipes.dropped))
        }
        Ok((mut pipes, Passed::TimedOut)) => {
            process.end();
            pipes.finish_frame(connection, Instant::now() + PATIENCE)?;
            Ok(exited(Ending::TimedOut, pipes.dropped))
        }
        Err(error) => {
            process.end();
            Err(error)
        }
    }
}

const fn exited(how: Ending, dropped_bytes: u64) -> Response {
    Response::Exited(Exited { how, dropped_bytes })
}

fn ending(status: ExitStatus) -> Ending {
    // A code is what the child gave to exit(3), of which a parent sees eight bits; a signal is one of 64.
    let small = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code(small(code)),
        (None, signal) => Ending::Signal(small(signal.unwrap_or_default())),
    }
}

fn start(exec: &Exec) -> Result<Process, Response> {
    let (name, arguments) = exec.command.split_first().ok_or_else(|| {
        // `Exec::check` has seen one.
        Response::error(FailureKind::Invalid, "the command has no word; write a program's name")
    })?;
    let directory = exec.directory.as_deref().unwrap_or("/");
    if !std::fs::metadata(directory).is_ok_and(|metadata| metadata.is_dir()) {
        let why = format!("there is no directory {directory} in the guest to run `{name}` in; name another one");
        return Err(Response::error(FailureKind::Invalid, &why));
    }
    let mut command = Command::new(name);
    command.args(arguments).current_dir(directory);
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", PATH);
    }
    command.envs(&exec.environment);
    command.stdin(if exec.stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Process::spawn(&mut command).map_err(|error| {
        let kind = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NOTDIR) => FailureKind::NotFound,
            Some(Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR | Errno::TXTBSY) => FailureKind::NotExecutable,
            Some(_) | None => FailureKind::Failed,
        };
        Response::error(kind, &format!("failed to run `{name}` in the guest: {error}"))
    })
}

/// Why no more is passed on.
enum Passed {
    /// The command has ended.
    Ended,
    /// Its time is over.
    TimedOut,
}

/// A pipe that the command writes to.
struct Output {
    kind: Kind,
    /// `None` once it is at its end.
    pipe: Option<OwnedFd>,
    /// Bytes that may still be sent.
    left: u64,
}

struct Pipes {
    stdin: Option<ChildStdin>,
    /// What the command has not yet taken of its stdin, in the host's frames.
    input: Vec<u8>,
    stdin_ended: bool,
    outputs: [Output; 2],
    /// What the socket has not yet taken of a frame.
    frame: Vec<u8>,
    dropped: u64,
}

impl Pipes {
    fn take(process: &mut Process, limit: u64) -> Result<Self, ConnectionError> {
        let child = process.child();
        let stdin = child.stdin.take();
        let stdout: Option<OwnedFd> = child.stdout.take().map(Into::into);
        let stderr: Option<OwnedFd> = child.stderr.take().map(Into::into);
        let ours = stdin.as_ref().map(AsFd::as_fd).into_iter();
        for pipe in ours.chain([&stdout, &stderr].into_iter().flatten().map(AsFd::as_fd)) {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let output = |kind, pipe| Output {
            kind,
            pipe,
            left: limit,
        };
        Ok(Self {
            stdin,
            input: Vec::new(),
            stdin_ended: false,
            outputs: [output(Kind::Stdout, stdout), output(Kind::Stderr, stderr)],
            frame: Vec::new(),
            dropped: 0,
        })
    }

    /// Passes bytes on, both ways, until the command ends or its time does.
    fn pass(
        &mut self,
        connection: &mut Connection,
        ended: BorrowedFd<'_>,
        deadline: Instant,
    ) -> Result<Passed, ConnectionError> {
        loop {
            // Before anything is waited for: it may have come with the request.
            self.take_input(connection)?;
            let Some(left) = time_left(deadline) else {
                return Ok(Passed::TimedOut);
            };
            let ready = match self.wait(connection, ended, &left) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if ready.gone {
                return Err(ConnectionError::Gone);
            }
            if ready.socket {
                connection.read()?;
            }
            if ready.stdin {
                self.feed();
            }
            if !self.frame.is_empty() {
                let count = connection.write(&self.frame)?;
                self.frame.drain(..count.min(self.frame.len()));
            }
            for (index, ready) in ready.outputs.into_iter().enumerate() {
                if ready && self.frame.is_empty() {
                    self.read_output(index, DATA_MAX_BYTES)?;
                }
            }
            if ready.ended {
                return Ok(Passed::Ended);
            }
        }
    }

    /// Waits until something can be done.
    fn wait(
        &self,
        connection: &Connection,
        ended: BorrowedFd<'_>,
        left: &rustix::event::Timespec,
    ) -> Result<Ready, Errno> {
        let mut wanted = PollFlags::RDHUP;
        wanted.set(PollFlags::IN, self.input.is_empty());
        wanted.set(PollFlags::OUT, !self.frame.is_empty());
        let socket = connection.descriptor();
        let mut set = vec![PollFd::new(&socket, wanted), PollFd::new(&ended, PollFlags::IN)];
        let mut roles = vec![Role::Socket, Role::Ended];
        // A command that closes its stdin is noticed only when it is written to.
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            set.push(PollFd::new(stdin, PollFlags::OUT));
            roles.push(Role::Stdin);
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(pipe) = output.pipe.as_ref().filter(|_| self.frame.is_empty()) {
                set.push(PollFd::new(pipe, PollFlags::IN));
                roles.push(Role::Output(index));
            }
        }
        poll(&mut set, Some(left))?;
        let mut ready = Ready::default();
        for (role, revents) in roles.into_iter().zip(set.iter().map(PollFd::revents)) {
            let any = !revents.is_empty();
            match role {
                Role::Socket => {
                    ready.socket = revents.contains(PollFlags::IN);
                    ready.gone = revents.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR);
                }
                Role::Ended => ready.ended = any,
                Role::Stdin => ready.stdin = any,
                Role::Output(index) => {
                    if let Some(output) = ready.outputs.get_mut(index) {
                        *output = any;
                    }
                }
            }
        }
        Ok(ready)
    }

    /// Takes what the host has said for the command's stdin, a frame at a time.
    fn take_input(&mut self, connection: &mut Connection) -> Result<(), ConnectionError> {
        while self.input.is_empty() && !self.stdin_ended {
            match connection.next()? {
                // What nobody reads is dropped.
                Some(Question::Stdin(bytes)) if self.stdin.is_some() => self.input = bytes,
                Some(Question::Stdin(_)) => {}
                Some(Question::EndOfStdin) => {
                    self.stdin_ended = true;
                    self.stdin = None;
                }
                // There is one request on a connection.
                Some(Question::Request(_)) | None => return Ok(()),
            }
        }
        // After the end nothing may come.
        if self.input.is_empty() {
            connection.next().map(drop)
        } else {
            Ok(())
        }
    }

    /// Gives the command what waits for it.
    fn feed(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        match rustix::io::write(stdin, &self.input) {
            Ok(count) => drop(self.input.drain(..count.min(self.input.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // It reads no more.
            Err(_) => {
                self.input = Vec::new();
                self.stdin = None;
            }
        }
    }

    /// Reads once from a pipe, and makes a frame of it. How many bytes it was.
    fn read_output(&mut self, index: usize, most: usize) -> Result<usize, ConnectionError> {
        let Some(output) = self.outputs.get_mut(index) else {
            return Ok(0);
        };
        let Some(pipe) = &output.pipe else { return Ok(0) };
        let mut bytes = [0; DATA_MAX_BYTES];
        let room = bytes.get_mut(..most.min(DATA_MAX_BYTES)).unwrap_or_default();
        let count = match rustix::io::read(pipe, room) {
            Ok(0) => {
                output.pipe = None;
                return Ok(0);
            }
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let kept = usize::try_from(output.left).unwrap_or(usize::MAX).min(count);
        output.left -= kept as u64;
        self.dropped += (count - kept) as u64;
        if kept > 0 {
            let kind = output.kind;
            let too_long = |error| ConnectionError::Io(io::Error::new(io::ErrorKind::InvalidInput, error));
            self.frame = encode(kind, bytes.get(..kept).unwrap_or_default()).map_err(too_long)?;
        }
        Ok(count)
    }

    /// Sends what is left of a frame: half of one cannot be followed by anything.
    fn finish_frame(&mut self, connection: &Connection, deadline: Instant) -> Result<(), ConnectionError> {
        let frame = std::mem::take(&mut self.frame);
        connection.send_all(&frame, deadline)
    }

    /// Sends what the command has left in its pipes. Who else writes to them may do so for ever, so it is what is in them now.
    fn pass_rest(&mut self, connection: &Connection, deadline: Instant) -> Result<(), ConnectionError> {
        self.finish_frame(connection, deadline)?;
        for index in 0..self.outputs.len() {
            let Some(pipe) = self.outputs.get(index).and_then(|output| output.pipe.as_ref()) else {
                continue;
            };
            let mut left = rustix::io::ioctl_fionread(pipe)?;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX);
                let count = self.read_output(index, most)?;
                if count == 0 {
                    break;
                }
                left = left.saturating_sub(count as u64);
                self.finish_frame(connection, deadline)?;
            }
        }
        Ok(())
    }
}

/// Which descriptor an entry of the poll set is.
enum Role {
    Socket,
    Ended,
    Stdin,
    Output(usize),
}

/// What can be done now.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each descriptor is ready by itself")]
struct Ready {
    socket: bool,
    /// The host has closed the connection.
    gone: bool,
    ended: bool,
    stdin: bool,
    outputs: [bool; 2],
}
