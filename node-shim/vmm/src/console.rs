//! The guest's consoles on stdout: a bounded buffer and a thread that writes it out, so that a slow reader of our stdout delays the
//! guest a little and never stops it. The serial port and the virtio console share it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use node_shim_protocol::control::CONSOLE_PACKET_BYTES;
use node_shim_virtio::console::Sink;

use crate::control;
use crate::jail;
use crate::jail::seccomp::Kind;
use node_shim_virtio::lock::lock;

/// Bytes of the serial port that wait for a slow reader; a pipe holds four times as many.
const BUFFER_BYTES: usize = 16 * 1024;
/// Bytes that wait when the virtio console has printed: it cannot wait for room, because its driver spins meanwhile.
const BUFFER_MAX_BYTES: usize = 256 * 1024;
/// Least time from one write to the next, in which output gathers: one system call for a line instead of one for each byte. What comes after
/// a silence is written at once: the echo of a key, or a guest's first sign of life.
const GATHER: Duration = Duration::from_millis(5);
/// How long one byte waits for room before output is dropped.
const STALL_MAX: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Buffer {
    bytes: VecDeque<u8>,
    /// Bytes that the writer has taken and not yet written.
    in_flight: usize,
    /// Bytes that were dropped since output was last taken.
    lost: u64,
    /// Nobody reads: the writer ended.
    closed: bool,
    /// Who printed last.
    last: Console,
}

/// The guest's consoles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Console {
    /// `ttyS0`.
    #[default]
    Serial,
    /// `hvc0`.
    Virtio,
}

/// A client of the control socket that watches.
struct Watcher {
    socket: OwnedFd,
    /// Bytes that it has missed and was not yet told of.
    missed: u64,
}

#[derive(Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    watchers: Mutex<Vec<Watcher>>,
    /// There is something to write.
    filled: Condvar,
    /// There is room again, or everything is written.
    emptied: Condvar,
}

/// The guest's end.
#[derive(Clone)]
pub(crate) struct Output(Arc<Shared>);

impl Output {
    /// Starts the thread that writes to `target`.
    pub(crate) fn start(target: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let entry = jail::thread(Kind::Console);
        thread::Builder::new()
            .name("console".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || {
                entry.enter();
                write_out(&writer, &target);
            })?;
        Ok(Self(shared))
    }

    /// Waits until everything is written, or the time is over.
    pub(crate) fn drain(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut buffer = lock(&self.0.buffer);
        while !buffer.closed && (!buffer.bytes.is_empty() || buffer.in_flight > 0) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.0.filled.notify_one();
            buffer = self
                .0
                .emptied
                .wait_timeout(buffer, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The console that printed last: input is for that one.
    pub(crate) fn last(&self) -> Console {
        lock(&self.0.buffer).last
    }

    /// Sends output to a client of the control socket too, from now on and until it goes. Who does not keep up misses some.
    pub(crate) fn watch(&self, socket: OwnedFd) {
        let mut watchers = lock(&self.0.watchers);
        // While the guest says nothing nobody else finds out who has gone.
        watchers.retain(|watcher| !watcher.is_gone());
        watchers.push(Watcher { socket, missed: 0 });
    }

    fn push(&self, byte: u8) {
        let mut buffer = lock(&self.0.buffer);
        buffer.last = Console::Serial;
        if buffer.bytes.len() >= BUFFER_BYTES && buffer.lost == 0 && !buffer.closed {
            buffer = self
                .0
                .emptied
                .wait_timeout_while(buffer, STALL_MAX, |buffer| buffer.bytes.len() >= BUFFER_BYTES)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if buffer.closed {
            return;
        }
        if buffer.bytes.len() >= BUFFER_BYTES {
            buffer.lost += 1;
            return;
        }
        let was_empty = buffer.bytes.is_empty();
        buffer.bytes.push_back(byte);
        drop(buffer);
        if was_empty {
            self.0.filled.notify_one();
        }
    }
}

impl Sink for Output {
    fn write(&mut self, bytes: &[u8]) {
        let mut buffer = lock(&self.0.buffer);
        buffer.last = Console::Virtio;
        if buffer.closed {
            return;
        }
        let room = BUFFER_MAX_BYTES.saturating_sub(buffer.bytes.len()).min(bytes.len());
        let (kept, lost) = bytes.split_at(room);
        buffer.lost += lost.len() as u64;
        buffer.bytes.extend(kept);
        drop(buffer);
        self.0.filled.notify_one();
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.push(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writer: takes what has gathered, writes it, and starts again.
fn write_out(shared: &Shared, target: &OwnedFd) {
    let mut written = None;
    loop {
        let chunk = take(shared, written);
        lock(&shared.watchers).retain_mut(|watcher| watcher.show(&chunk));
        let result = write_all(target, &chunk);
        written = Some(Instant::now());
        let mut buffer = lock(&shared.buffer);
        buffer.in_flight = 0;
        if result.is_err() {
            buffer.closed = true;
            buffer.bytes = VecDeque::new();
        }
        let closed = buffer.closed;
        drop(buffer);
        shared.emptied.notify_all();
        if closed {
            return;
        }
    }
}

impl Watcher {
    fn is_gone(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let socket = self.socket.as_fd();
        let mut set = [PollFd::new(&socket, PollFlags::empty())];
        matches!(poll(&mut set, Some(&Timespec::default())), Ok(1)) && set[0].revents().contains(PollFlags::HUP)
    }

    /// Sends output without waiting; `false` when the client is gone.
    fn show(&mut self, chunk: &[u8]) -> bool {
        if self.missed > 0 {
            let notice = format!("\r\n[node-shim: {} bytes of console output missed]\r\n", self.missed);
            match control::send_console(&self.socket, notice.as_bytes()) {
                Ok(true) => self.missed = 0,
                Ok(false) => {}
                Err(_) => return false,
            }
        }
        for packet in chunk.chunks(CONSOLE_PACKET_BYTES) {
            let sent = match self.missed {
                0 => control::send_console(&self.socket, packet),
                _ => Ok(false),
            };
            match sent {
                Ok(true) => {}
                Ok(false) => self.missed += packet.len() as u64,
                Err(_) => return false,
            }
        }
        true
    }
}

/// What is to be written, when the last of it was written at `written`.
fn take(shared: &Shared, written: Option<Instant>) -> Vec<u8> {
    let buffer = lock(&shared.buffer);
    let mut buffer = shared
        .filled
        .wait_while(buffer, |buffer| buffer.bytes.is_empty())
        .unwrap_or_else(PoisonError::into_inner);
    let left = written.map_or(Duration::ZERO, |written| GATHER.saturating_sub(written.elapsed()));
    if !left.is_zero() {
        buffer = shared
            .filled
            .wait_timeout(buffer, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
    // The allocation goes with the bytes: a burst is not paid for ever after.
    let mut chunk = Vec::from(std::mem::take(&mut buffer.bytes));
    if buffer.lost > 0 {
        chunk
            .extend_from_slice(format!("\r\n[node-shim: {} bytes of console output lost]\r\n", buffer.lost).as_bytes());
        buffer.lost = 0;
    }
    buffer.in_flight = chunk.len();
    chunk
}

fn write_all(target: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    while !bytes.is_empty() {
        match rustix::io::write(target, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            // Somebody who shares our stdout has made it non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let target = target.as_fd();
                match poll(&mut [PollFd::new(&target, PollFlags::OUT)], None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn everything_is_written_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::start(writer.into()).unwrap();
        let text = "line\r\n".repeat(1000);
        output.write_all(text.as_bytes()).unwrap();
        let mut read = vec![0; text.len()];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(read, text.as_bytes());
        output.drain(Duration::from_secs(5));
    }

    #[test]
    fn a_reader_that_does_not_read_costs_output_and_not_the_guest() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::start(writer.into()).unwrap();
        let start = Instant::now();
        output.write_all(&vec![b'x'; 16 * BUFFER_BYTES]).unwrap();
        assert!(start.elapsed() < 20 * STALL_MAX, "{:?}", start.elapsed());
        let mut read = vec![0; BUFFER_BYTES];
        reader.read_exact(&mut read).unwrap();
        let mut rest = Vec::new();
        while !String::from_utf8_lossy(&rest).contains("bytes of console output lost") {
            let mut more = [0; 4096];
            let count = reader.read(&mut more).unwrap();
            rest.extend_from_slice(&more[..count]);
        }
    }

    #[test]
    fn the_virtio_console_never_waits_and_says_what_was_lost() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::start(writer.into()).unwrap();
        assert_eq!(output.last(), Console::Serial);
        let start = Instant::now();
        for _ in 0..64 {
            Sink::write(&mut output, &[b'x'; 16 * 1024]);
        }
        assert!(start.elapsed() < 64 * STALL_MAX, "{:?}", start.elapsed());
        assert_eq!(output.last(), Console::Virtio);
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains("bytes of console output lost") {
            let mut more = [0; 4096];
            let count = reader.read(&mut more).unwrap();
            read.extend_from_slice(&more[..count]);
        }
        assert!(read.len() >= BUFFER_MAX_BYTES, "{}", read.len());
    }

    #[test]
    fn nobody_reading_at_all_is_no_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut output = Output::start(writer.into()).unwrap();
        output.write_all(&vec![b'x'; 8 * BUFFER_BYTES]).unwrap();
        output.drain(Duration::from_secs(5));
    }
}
