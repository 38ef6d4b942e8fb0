//! One connection between a port of the guest and a Unix socket of the host.
//!
//! ```text
//!   host connects:  Greeting --CONNECT line--> Requested --RESPONSE--> Established
//!   guest connects:                                    REQUEST ------> Established
//!   Established --a side ends--> half-closed, until both have and the guest's data is written: RST, gone
//! ```
//!
//! Both directions are bounded: to the guest by the credit that it gives, from the guest by [`BUFFER_BYTES`].

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::packet::{Credit, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::buffers::Buffers;

/// Bytes from the guest that may wait for a slow reader on the host: the credit that the guest has.
pub(super) const BUFFER_BYTES: u32 = 64 * 1024;

/// How far a connection has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A client of the host has yet to say what it wants.
    Greeting(Vec<u8>),
    /// The guest has yet to answer.
    Requested,
    /// Data flows.
    Established,
}

/// What reading from the host gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FromHost {
    /// So many bytes.
    Data(u32),
    /// Nothing now.
    Nothing,
    /// The client sends no more.
    End,
    /// The client is gone.
    Broken,
}

/// A connection.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each direction of each side ends by itself"
)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) state: State,
    /// `None` until the client has said what it wants.
    pub(super) ports: Option<Ports>,
    /// The socket may have something to read.
    pub(super) readable: bool,
    /// When it is given up.
    pub(super) deadline: Option<Instant>,
    /// Whether it is in the list of those that have something for the guest.
    pub(super) listed: bool,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    peer: Credit,
    /// The guest was asked for credit and has not yet answered.
    pub(super) credit_asked: bool,
    /// Bytes from the guest that were written to the socket, modulo 2^32.
    forwarded: u32,
    /// What of them the guest knows.
    announced: u32,
    /// Bytes from the guest that the socket did not yet take.
    backlog: VecDeque<u8>,
    /// The guest sends no more.
    guest_ended: bool,
    /// The guest takes no more.
    guest_deaf: bool,
    /// The client sends no more, and the guest knows.
    host_ended: bool,
    /// The client takes no more.
    host_deaf: bool,
}

impl Connection {
    /// A connection in its first state.
    pub(super) fn new(stream: UnixStream, state: State, ports: Option<Ports>, deadline: Option<Instant>) -> Self {
        Self {
            stream,
            state,
            ports,
            readable: true,
            deadline,
            listed: false,
            sent: 0,
            peer: Credit::default(),
            credit_asked: false,
            forwarded: 0,
            announced: 0,
            backlog: VecDeque::new(),
            guest_ended: false,
            guest_deaf: false,
            host_ended: false,
            host_deaf: false,
        }
    }

    /// What goes into every packet to the guest, which then knows.
    pub(super) fn credit(&mut self) -> Credit {
        self.announced = self.forwarded;
        Credit {
            allocated: BUFFER_BYTES,
            forwarded: self.forwarded,
        }
    }

    /// What the guest says of its own buffer.
    pub(super) fn set_peer(&mut self, peer: Credit) {
        self.peer = peer;
        self.credit_asked = false;
    }

    /// Bytes that the guest can take. A guest that says what cannot be has none.
    pub(super) fn room(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.peer.forwarded);
        self.peer.allocated.saturating_sub(on_the_way)
    }

    /// Whether the guest would not know of so much new room that it is worth a packet.
    pub(super) fn owes_credit(&self) -> bool {
        !self.guest_ended && self.forwarded.wrapping_sub(self.announced) >= BUFFER_BYTES / 2
    }

    /// Whether there may be data for the guest.
    pub(super) fn wants_to_send(&self) -> bool {
        self.state == State::Established && self.readable && !self.host_ended && !self.guest_deaf
    }

    /// Reads data for the guest straight into its memory.
    pub(super) fn read_into(&mut self, buffers: &mut Buffers<'_>) -> FromHost {
        match buffers.read_once(self.stream.as_fd()) {
            Ok(0) => FromHost::End,
            Ok(count) => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                self.sent = self.sent.wrapping_add(count);
                FromHost::Data(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                FromHost::Nothing
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => FromHost::Nothing,
            Err(_) => FromHost::Broken,
        }
    }

    /// Takes data from the guest. `false` when it sent more than it may, or after it said that it would not, or the client is gone.
    pub(super) fn take(&mut self, mut data: Buffers<'_>) -> bool {
        let length = data.len();
        if self.guest_ended || self.backlog.len() + length > BUFFER_BYTES as usize {
            return false;
        }
        if self.host_deaf {
            self.forward(length);
            return true;
        }
        while self.backlog.is_empty() && !data.is_empty() {
            match data.write_once(self.stream.as_fd()) {
                Ok(0) => return false,
                Ok(count) => self.forward(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        let mut rest = vec![0; data.len()];
        data.copy_into(&mut rest);
        self.backlog.extend(rest);
        true
    }

    fn forward(&mut self, count: usize) {
        // At most BUFFER_BYTES.
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(count).unwrap_or_default());
    }

    /// Writes what waits. `false` when the client is gone.
    pub(super) fn flush(&mut self) -> bool {
        while !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            match self.stream.write(front) {
                Ok(0) => return false,
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.forward(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        // What a burst needed is given back.
        self.backlog = VecDeque::new();
        self.pass_on_end();
        true
    }

    /// The guest said that it sends or takes no more.
    pub(super) fn guest_shut(&mut self, flags: u32) {
        self.guest_ended |= flags & SHUTDOWN_SEND != 0;
        self.guest_deaf |= flags & SHUTDOWN_RECEIVE != 0;
        self.pass_on_end();
    }

    fn pass_on_end(&mut self) {
        if self.guest_ended && self.backlog.is_empty() {
            // A client that has gone needs no telling.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
    }

    /// The client sends no more, or is gone altogether. Returns the flags that the guest is to be told.
    pub(super) fn host_shut(&mut self, gone: bool) -> u32 {
        self.host_ended = true;
        self.host_deaf |= gone;
        SHUTDOWN_SEND | if gone { SHUTDOWN_RECEIVE } else { 0 }
    }

    /// Whether the guest was told that the client is gone.
    pub(super) fn host_gone(&self) -> bool {
        self.host_deaf
    }

    /// Whether nothing can happen any more: nobody sends, and everything that was sent is where it belongs.
    pub(super) fn is_over(&self) -> bool {
        let nothing_to_guest = self.host_ended || self.guest_deaf;
        self.state == State::Established && self.guest_ended && self.backlog.is_empty() && nothing_to_guest
    }

    /// Reads the greeting, a byte at a time: what follows it is for the guest. `None` when the client is gone.
    pub(super) fn read_greeting(&mut self) -> Option<super::greeting::Greeting> {
        use super::greeting::{Greeting, parse};
        let State::Greeting(line) = &mut self.state else {
            return Some(Greeting::Wrong);
        };
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return None,
                Ok(_) => {
                    line.extend_from_slice(&byte);
                    match parse(line) {
                        Greeting::More => {}
                        done @ (Greeting::Connect(_) | Greeting::Wrong) => return Some(done),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Some(Greeting::More);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Tells the client of the host that the guest took its connection.
    pub(super) fn say_ok(&mut self) -> bool {
        let Some(ports) = self.ports else { return false };
        // The socket is new and empty: so short a line always fits.
        self.stream.write_all(format!("OK {}\n", ports.host).as_bytes()).is_ok()
    }
}
