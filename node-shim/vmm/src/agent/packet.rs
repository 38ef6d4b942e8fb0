//! Packets of the agent's protocol on a `SOCK_SEQPACKET` socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use node_shim_protocol::agent::{MAX_DESCRIPTORS, MAX_PACKET_BYTES, Request, Response};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Why a packet was not sent or received.
#[derive(Debug, thiserror::Error)]
pub(super) enum PacketError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The packet is none of the protocol's.
    #[error("{0}")]
    Unusable(String),
}

impl From<rustix::io::Errno> for PacketError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// Connects. Nothing on such a socket blocks.
pub(super) fn connect(path: &Path) -> Result<OwnedFd, PacketError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends a request with descriptors.
pub(super) fn send(socket: &OwnedFd, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), PacketError> {
    let text = serde_json::to_vec(request).map_err(|error| PacketError::Unusable(error.to_string()))?;
    if text.len() > MAX_PACKET_BYTES {
        return Err(PacketError::Unusable(format!("a packet of {} bytes", text.len())));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(PacketError::Unusable("too many descriptors".to_owned()));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a response with its descriptors; `None` at the end of the connection.
pub(super) fn receive(socket: &OwnedFd) -> Result<Option<(Response, Vec<OwnedFd>)>, PacketError> {
    let mut text = vec![0; MAX_PACKET_BYTES + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || message.bytes > MAX_PACKET_BYTES {
        return Err(PacketError::Unusable("a packet that is too long".to_owned()));
    }
    let response = serde_json::from_slice(text.get(..message.bytes).unwrap_or_default())
        .map_err(|error| PacketError::Unusable(error.to_string()))?;
    Ok(Some((response, descriptors)))
}
