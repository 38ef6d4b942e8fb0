//! A connection of the host: frames in, frames out, and never longer than until a deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use node_shim_protocol::guest::{Kind, Question, QuestionError, Questions, Request, Response, encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// Most bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// Why there is nobody to answer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The host has closed the connection.
    #[error("the host is gone")]
    Gone,
    /// The host takes or says nothing.
    #[error("the host was waited for in vain")]
    Late,
    /// The host says what it may not.
    #[error(transparent)]
    Wrong(QuestionError),
    /// The kernel failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

impl From<Errno> for ConnectionError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Gone,
            other => Self::Io(other.into()),
        }
    }
}

/// A connection.
pub struct Connection {
    socket: OwnedFd,
    questions: Questions,
}

impl Connection {
    /// A connection that was accepted.
    ///
    /// # Errors
    /// When the socket cannot be made one that does not block.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket,
            questions: Questions::default(),
        })
    }

    /// For poll(2).
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next thing that the host has said.
    pub(crate) fn next(&mut self) -> Result<Option<Question>, ConnectionError> {
        self.questions.next().map_err(ConnectionError::Wrong)
    }

    /// Reads once. [`Self::next`] is to be called afterwards until there is nothing left.
    pub(crate) fn read(&mut self) -> Result<(), ConnectionError> {
        let mut bytes = [0; READ_BYTES];
        match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::empty()) {
            Ok((0, _)) => Err(ConnectionError::Gone),
            Ok((count, _)) => {
                self.questions.push(bytes.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes once; how much the socket took.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<usize, ConnectionError> {
        match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the request.
    pub(crate) fn request(&mut self, deadline: Instant) -> Result<Request, ConnectionError> {
        loop {
            match self.next()? {
                Some(Question::Request(request)) => return Ok(request),
                // `Questions` has let none of these pass before the request.
                Some(Question::Stdin(_) | Question::EndOfStdin) => {}
                None => {
                    self.wait(PollFlags::IN, deadline)?;
                    self.read()?;
                }
            }
        }
    }

    /// Sends a frame, waiting for room.
    pub(crate) fn send(&self, kind: Kind, payload: &[u8], deadline: Instant) -> Result<(), ConnectionError> {
        let too_long = |error| ConnectionError::Io(io::Error::new(io::ErrorKind::InvalidInput, error));
        let frame = encode(kind, payload).map_err(too_long)?;
        self.send_all(&frame, deadline)
    }

    /// Sends bytes of frames, waiting for room.
    pub(crate) fn send_all(&self, mut bytes: &[u8], deadline: Instant) -> Result<(), ConnectionError> {
        while !bytes.is_empty() {
            match self.write(bytes)? {
                0 => self.wait(PollFlags::OUT, deadline)?,
                count => bytes = bytes.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Sends the response.
    pub(crate) fn respond(&self, response: &Response, deadline: Instant) -> Result<(), ConnectionError> {
        let text = serde_json::to_vec(response).map_err(|error| ConnectionError::Io(error.into()))?;
        self.send(Kind::Message, &text, deadline)
    }

    /// Waits until the host has closed the connection, which it does when it has read everything. A side that closes first leaves the VMM
    /// between them only seconds for what is still on the way.
    pub(crate) fn await_close(&self, deadline: Instant) {
        let mut bytes = [0; 1024];
        while self.wait(PollFlags::IN | PollFlags::RDHUP, deadline).is_ok() {
            match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::empty()) {
                // What it says now is of no interest.
                Ok((1.., _)) | Err(Errno::AGAIN | Errno::INTR) => {}
                Ok((0, _)) | Err(_) => return,
            }
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), ConnectionError> {
        loop {
            let left = time_left(deadline).ok_or(ConnectionError::Late)?;
            match poll(&mut [PollFd::new(&self.socket, flags)], Some(&left)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Time up to a deadline, for poll(2). `None` when it is over.
pub(crate) fn time_left(deadline: Instant) -> Option<Timespec> {
    let left = deadline
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())?;
    Some(Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    })
}
