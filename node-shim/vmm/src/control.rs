//! The control socket: see `node_shim_protocol::control`. Here is what listens and what a client is; what requests do is the event loop's.
//!
//! Nothing on these sockets blocks. There are at most [`CLIENTS_MAX`] clients; each has one packet read at a time, and its next when this
//! one is answered; one that does not read its answers is disconnected.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use node_shim_protocol::control::{
    CLIENTS_MAX, CONSOLE_PACKET_BYTES, FailureKind, MAX_PACKET_BYTES, Request, Response,
};
use rustix::event::epoll::EventFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::log;
use crate::packet::{self, PacketError};
use crate::poll::{Poll, Source, Token};

pub(crate) mod command;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The socket cannot be made.
    #[error("failed to make the control socket {path}: {source}; name a path in a writable directory with --control")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("another node-shim listens at {0}; give each VM a control socket of its own")]
    InUse(PathBuf),
}

/// A client for as long as it is connected. Never given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(u64);

/// What a client's packets are.
enum Mode {
    Requests,
    /// Input for the guest's console that it has not yet taken.
    Console(Vec<u8>),
}

struct Client {
    socket: OwnedFd,
    /// In the epoll set; not while its last packet is being dealt with.
    token: Option<Token>,
    mode: Mode,
}

/// What a client sent.
pub(crate) enum Received {
    /// A request, with its descriptors.
    Request(Request, Vec<OwnedFd>),
    /// Input for the guest's console waits in [`Server::console_input`].
    Console,
    /// Nothing that anybody has to do something about.
    Nothing,
}

/// The socket and its clients.
pub(crate) struct Server {
    listener: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file, so that only our own is removed.
    file: Option<(u64, u64)>,
    clients: BTreeMap<ClientId, Client>,
    next: u64,
}

impl Server {
    /// Listens at `path`, where a socket that nobody listens at any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source: io::Error| ControlError::Bind {
            path: path.to_owned(),
            source,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|error| failed(error.into()))?;
        let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        let bound = match rustix::net::bind(&listener, &address) {
            Err(rustix::io::Errno::ADDRINUSE) => {
                remove_stale(path)?;
                rustix::net::bind(&listener, &address)
            }
            result => result,
        };
        bound.map_err(|error| failed(error.into()))?;
        // Who may connect is decided by who it is; this keeps others from trying.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
        let file = std::fs::symlink_metadata(path).ok();
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: file.map(|file| (file.dev(), file.ino())),
            clients: BTreeMap::new(),
            next: 0,
        })
    }

    /// Joins the event loop.
    pub(crate) fn watch(&self, poll: &Poll) -> io::Result<()> {
        poll.add(self.listener.as_fd(), EventFlags::IN, Source::ControlListener)?;
        Ok(())
    }

    /// Takes a new client in, or turns it away.
    pub(crate) fn accept(&mut self, poll: &Poll) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // It may have gone again.
        let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else {
            return;
        };
        let refusal = match rustix::net::sockopt::socket_peercred(&socket) {
            Ok(peer) if is_welcome(peer.uid.as_raw(), rustix::process::geteuid().as_raw()) => {
                (self.clients.len() >= CLIENTS_MAX).then(|| format!("there are {CLIENTS_MAX} clients already"))
            }
            Ok(peer) => Some(format!(
                "user {} may not control this VM; be its own user or root",
                peer.uid.as_raw()
            )),
            Err(error) => Some(format!("failed to learn who you are: {error}")),
        };
        if let Some(why) = refusal {
            log::line(format_args!("control: a client was turned away: {why}"));
            // If even this cannot be sent, the closed connection says enough.
            let _ = packet::send(&socket, &Response::error(FailureKind::Refused, why), &[]);
            return;
        }
        let id = ClientId(self.next);
        self.next += 1;
        self.clients.insert(
            id,
            Client {
                socket,
                token: None,
                mode: Mode::Requests,
            },
        );
        self.listen_to(poll, id);
    }

    /// Waits for the client's next packet.
    fn listen_to(&mut self, poll: &Poll, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.token.is_some() {
            return;
        }
        match poll.add(client.socket.as_fd(), EventFlags::IN, Source::ControlClient(id)) {
            Ok(token) => client.token = Some(token),
            Err(error) => {
                log::line(format_args!("control: failed to wait for a client: {error}"));
                self.clients.remove(&id);
            }
        }
    }

    /// Stops waiting for the client's next packet.
    fn ignore(&mut self, poll: &Poll, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id)
            && let Some(token) = client.token.take()
        {
            poll.remove(client.socket.as_fd(), token);
        }
    }

    fn disconnect(&mut self, poll: &Poll, id: ClientId) {
        self.ignore(poll, id);
        if let Some(client) = self.clients.remove(&id) {
            // The console may have another descriptor of it.
            let _ = rustix::net::shutdown(&client.socket, rustix::net::Shutdown::Both);
        }
    }

    /// Reads one packet. The client is not heard again until [`Self::answer`], or until its console input is taken.
    pub(crate) fn receive(&mut self, poll: &Poll, id: ClientId) -> Received {
        let Some(client) = self.clients.get_mut(&id) else {
            return Received::Nothing;
        };
        match &mut client.mode {
            Mode::Requests => match packet::receive(&client.socket) {
                Ok(Some((request, descriptors))) => {
                    self.ignore(poll, id);
                    return Received::Request(request, descriptors);
                }
                Err(PacketError::Unusable(what)) => {
                    let message = format!("that is no request: {what}");
                    self.answer(poll, id, &Response::error(FailureKind::Invalid, message));
                }
                Err(PacketError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(PacketError::Io(_)) => self.disconnect(poll, id),
            },
            Mode::Console(input) => {
                let mut bytes = [0; CONSOLE_PACKET_BYTES];
                match rustix::net::recv(&client.socket, &mut bytes, RecvFlags::TRUNC) {
                    Ok((count, length)) if count > 0 && length == count => {
                        input.extend_from_slice(bytes.get(..count).unwrap_or_default());
                        self.ignore(poll, id);
                        return Received::Console;
                    }
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Ok(_) | Err(_) => self.disconnect(poll, id),
                }
            }
        }
        Received::Nothing
    }

    /// Answers a request, and waits for the client's next.
    pub(crate) fn answer(&mut self, poll: &Poll, id: ClientId, response: &Response) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        match packet::send(&client.socket, response, &[]) {
            Ok(()) => self.listen_to(poll, id),
            Err(error) => {
                log::line(format_args!("control: failed to answer a client: {error}"));
                self.disconnect(poll, id);
            }
        }
    }

    /// Makes a client one of the console, and returns another descriptor of its socket, for output.
    pub(crate) fn make_console(&mut self, id: ClientId) -> io::Result<OwnedFd> {
        let client = self.clients.get_mut(&id).ok_or(io::ErrorKind::NotConnected)?;
        let socket = client.socket.try_clone()?;
        client.mode = Mode::Console(Vec::new());
        Ok(socket)
    }

    /// Gives console clients' input to `take`, which returns how many bytes it has taken; who has none left is heard again.
    pub(crate) fn console_input(&mut self, poll: &Poll, mut take: impl FnMut(&[u8]) -> usize) {
        let mut heard = Vec::new();
        for (id, client) in &mut self.clients {
            if let Mode::Console(input) = &mut client.mode
                && !input.is_empty()
            {
                let taken = take(input).min(input.len());
                input.drain(..taken);
                if input.is_empty() {
                    heard.push(*id);
                }
            }
        }
        for id in heard {
            self.listen_to(poll, id);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|file| self.file == Some((file.dev(), file.ino())));
        if ours {
            // What is left is replaced by the next process.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether a client's user may control a VM of user `own`.
const fn is_welcome(user: u32, own: u32) -> bool {
    user == own || user == 0
}

/// Removes a socket that nobody listens at. Anything else that is in the way stays there.
fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let failed = |source| ControlError::Bind {
        path: path.to_owned(),
        source,
    };
    let is_socket = std::fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket();
    if !is_socket {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    match packet::connect(path) {
        Err(PacketError::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Ok(_) | Err(_) => Err(ControlError::InUse(path.to_owned())),
    }
}

/// Sends console output without waiting. `false` when there is no room for it now.
pub(crate) fn send_console(socket: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<bool> {
    match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

const _: () = assert!(CONSOLE_PACKET_BYTES <= MAX_PACKET_BYTES);

#[cfg(test)]
mod tests;
