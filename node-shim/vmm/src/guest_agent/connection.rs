//! A connection to the agent, for one request.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node_shim_protocol::guest::{
    Answer, AnswerError, Answers, DATA_MAX_BYTES, FrameError, Kind, PORT, Request, Response, encode,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

/// Longest line with which the VMM says that the guest took the connection: `OK`, a blank, ten digits, and a line end.
const LINE_MAX_BYTES: usize = 32;
/// Most bytes of the guest's that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// Nobody listens.
    #[error(
        "failed to reach the VM's vsock socket {path}: {source}; see that its configuration has `vsock` with this socket, and that it runs"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The guest has refused, or its kernel has no vsock.
    #[error(
        "nobody listens on vsock port {PORT} of the guest; see that tandem-guest-agent runs in it (docs/guest-agent.md)"
    )]
    NobodyThere,
    /// The guest says nothing.
    #[error("the guest gave no answer within {} ms; see that tandem-guest-agent runs in it (docs/guest-agent.md)", .0.as_millis())]
    Late(Duration),
    /// The agent has closed the connection, or died.
    #[error("the guest closed the connection without an answer")]
    Closed,
    /// The connection broke.
    #[error("the connection to the guest failed: {0}")]
    Connection(io::Error),
    /// The guest says what no agent would.
    #[error("{0}; what listens on vsock port {PORT} of the guest is no agent that this node-shim knows")]
    Answer(AnswerError),
    /// The request does not fit.
    #[error("the request cannot be sent: {0}; make the command and its variables shorter")]
    Request(FrameError),
    /// stdin or stdout failed.
    #[error("failed to pass the command's input or output on: {0}")]
    Pass(io::Error),
}

/// What is done with the guest's answers and where stdin comes from.
pub(crate) struct Streams<'a> {
    /// stdin for a command that was announced as having one.
    pub(crate) stdin: Option<BorrowedFd<'a>>,
    /// Takes output. What is in it is the guest's business.
    pub(crate) output: &'a mut dyn FnMut(Kind, &[u8]) -> io::Result<()>,
}

struct Connection {
    socket: OwnedFd,
    patience: Duration,
    deadline: Instant,
}

/// Makes a request through the socket, and waits for its response at most this long.
pub(crate) fn ask(
    path: &Path,
    request: &Request,
    patience: Duration,
    streams: &mut Streams<'_>,
) -> Result<Response, GuestError> {
    let mut connection = Connection::open(path, patience)?;
    // A request of ours is JSON.
    let text = serde_json::to_vec(request).map_err(|error| GuestError::Connection(error.into()))?;
    let outgoing = encode(Kind::Message, &text).map_err(GuestError::Request)?;
    connection.greet()?;
    connection.converse(request, outgoing, streams)
}

impl Connection {
    fn open(path: &Path, patience: Duration) -> Result<Self, GuestError> {
        let connect = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let socket = connect().map_err(|source| GuestError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            socket,
            patience,
            deadline: Instant::now() + patience,
        })
    }

    /// Has the VMM connect to the guest's port: see `node_shim_virtio::vsock`.
    fn greet(&mut self) -> Result<(), GuestError> {
        let mut line = format!("CONNECT {PORT}\n").into_bytes();
        while !line.is_empty() {
            let count = self.write(&line)?;
            line.drain(..count.min(line.len()));
        }
        let mut answer = Vec::new();
        loop {
            // A byte at a time: what follows the line is the guest's.
            let mut byte = [0];
            self.wait(&[(self.socket.as_fd(), PollFlags::IN)])?;
            match self.read(&mut byte)? {
                None => {}
                Some(0) => return Err(GuestError::NobodyThere),
                Some(_) if byte == *b"\n" => break,
                Some(_) => answer.extend_from_slice(&byte),
            }
            if answer.len() > LINE_MAX_BYTES {
                break;
            }
        }
        if answer.starts_with(b"OK ") && answer.len() <= LINE_MAX_BYTES {
            Ok(())
        } else {
            let what = io::Error::new(io::ErrorKind::InvalidData, "the socket is not that of a vsock device");
            Err(GuestError::Connection(what))
        }
    }

    /// Sends what there is and passes on what comes, until there is a response.
    fn converse(
        &mut self,
        request: &Request,
        mut outgoing: Vec<u8>,
        streams: &mut Streams<'_>,
    ) -> Result<Response, GuestError> {
        let mut answers = Answers::new(request);
        let mut bytes = vec![0; READ_BYTES];
        loop {
            while let Some(answer) = answers.next().map_err(GuestError::Answer)? {
                match answer {
                    Answer::Stdout(bytes) => (streams.output)(Kind::Stdout, &bytes).map_err(GuestError::Pass)?,
                    Answer::Stderr(bytes) => (streams.output)(Kind::Stderr, &bytes).map_err(GuestError::Pass)?,
                    Answer::Response(response) => return Ok(response),
                }
            }
            let [socket_ready, stdin_ready] = self.wait_for(&outgoing, streams.stdin)?;
            if !outgoing.is_empty() {
                match self.write(&outgoing) {
                    Ok(count) => drop(outgoing.drain(..count.min(outgoing.len()))),
                    // The agent may have answered what it needs no more of.
                    Err(GuestError::Closed) => {
                        outgoing.clear();
                        streams.stdin = None;
                    }
                    Err(error) => return Err(error),
                }
            }
            if socket_ready {
                match self.read(&mut bytes)? {
                    None => {}
                    Some(0) => return Err(GuestError::Closed),
                    Some(count) => answers.push(bytes.get(..count).unwrap_or_default()),
                }
            }
            if stdin_ready && let Some(stdin) = streams.stdin {
                outgoing = read_stdin(stdin)?;
                // An empty frame was its end.
                if outgoing.len() == node_shim_protocol::guest::HEADER_BYTES {
                    streams.stdin = None;
                }
            }
        }
    }

    /// Waits until the socket has something to read or takes what there is to write, or else until there is input.
    fn wait_for(&self, outgoing: &[u8], stdin: Option<BorrowedFd<'_>>) -> Result<[bool; 2], GuestError> {
        let mut wanted = PollFlags::IN;
        wanted.set(PollFlags::OUT, !outgoing.is_empty());
        let mut set = vec![(self.socket.as_fd(), wanted)];
        set.extend(
            stdin
                .filter(|_| outgoing.is_empty())
                .map(|stdin| (stdin, PollFlags::IN)),
        );
        let ready = self.wait(&set)?;
        let readable = |flags: &PollFlags| flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        Ok([ready.first().is_some_and(readable), ready.get(1).is_some_and(readable)])
    }

    fn wait(&self, set: &[(BorrowedFd<'_>, PollFlags)]) -> Result<Vec<PollFlags>, GuestError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(GuestError::Late(self.patience));
            }
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut polled: Vec<PollFd<'_>> = set.iter().map(|(fd, flags)| PollFd::new(fd, *flags)).collect();
            match poll(&mut polled, Some(&left)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(polled.iter().map(PollFd::revents).collect()),
                Err(error) => return Err(GuestError::Connection(error.into())),
            }
        }
    }

    /// How much the socket took, which may be nothing.
    fn write(&self, bytes: &[u8]) -> Result<usize, GuestError> {
        match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(GuestError::Closed),
            Err(error) => Err(GuestError::Connection(error.into())),
        }
    }

    /// How much there was; 0 at the end, `None` if it is not yet known.
    fn read(&self, bytes: &mut [u8]) -> Result<Option<usize>, GuestError> {
        match rustix::net::recv(&self.socket, bytes, RecvFlags::empty()) {
            Ok((count, _)) => Ok(Some(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(Errno::CONNRESET) => Ok(Some(0)),
            Err(error) => Err(GuestError::Connection(error.into())),
        }
    }
}

/// A frame of what is on stdin; an empty one at its end.
fn read_stdin(stdin: BorrowedFd<'_>) -> Result<Vec<u8>, GuestError> {
    let mut bytes = [0; DATA_MAX_BYTES];
    match rustix::io::read(stdin, &mut bytes) {
        Ok(count) => encode(Kind::Stdin, bytes.get(..count).unwrap_or_default()).map_err(GuestError::Request),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Vec::new()),
        Err(error) => Err(GuestError::Pass(error.into())),
    }
}
