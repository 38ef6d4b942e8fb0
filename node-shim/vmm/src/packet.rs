//! Packets on a `SOCK_SEQPACKET` socket: the agent's protocol and the control socket's. Each is one JSON value, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest packet in bytes, of both protocols.
pub(crate) const MAX_PACKET_BYTES: usize = node_shim_protocol::agent::MAX_PACKET_BYTES;
/// Most descriptors in one packet, of both protocols.
const MAX_DESCRIPTORS: usize = node_shim_protocol::agent::MAX_DESCRIPTORS;

const _: () = assert!(MAX_PACKET_BYTES >= node_shim_protocol::control::MAX_PACKET_BYTES);
const _: () = assert!(MAX_DESCRIPTORS >= node_shim_protocol::control::MAX_DESCRIPTORS);

/// Why a packet was not sent or received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PacketError {
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
pub(crate) fn connect(path: &Path) -> Result<OwnedFd, PacketError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends a value with at most one descriptor.
pub(crate) fn send<T: Serialize>(
    socket: &OwnedFd,
    value: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), PacketError> {
    let text = serde_json::to_vec(value).map_err(|error| PacketError::Unusable(error.to_string()))?;
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

/// Receives a value with its descriptors; `None` at the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> Result<Option<(T, Vec<OwnedFd>)>, PacketError> {
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
    let value = serde_json::from_slice(text.get(..message.bytes).unwrap_or_default())
        .map_err(|error| PacketError::Unusable(error.to_string()))?;
    Ok(Some((value, descriptors)))
}
