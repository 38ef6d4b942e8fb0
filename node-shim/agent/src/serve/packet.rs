//! Packets of the conversation with a shim, over a `SOCK_SEQPACKET` socket. The peer is hostile: every length and count is bounded, and
//! descriptors are closed on every path.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use node_shim_protocol::agent::{MAX_DESCRIPTORS, MAX_PACKET_BYTES, Request, Response, VERSION};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use tokio::io::unix::AsyncFd;

use crate::event_loop;

/// What is wrong with a packet or its connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum PacketError {
    /// Too long.
    #[error("a packet has more than {MAX_PACKET_BYTES} bytes")]
    TooLong,
    /// Too many.
    #[error("a packet has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// No request.
    #[error("a packet is no request: {0}")]
    Malformed(serde_json::Error),
    /// No response.
    #[error("a response is no JSON: {0}")]
    Encode(serde_json::Error),
    /// The socket.
    #[error("the connection failed: {0}")]
    Socket(io::Error),
}

/// A request and what came with it.
#[derive(Debug)]
pub(super) struct Received {
    /// What is said.
    pub(super) request: Request,
    /// In the order in which they were sent.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// One end of a connection.
pub(super) struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    /// Takes a nonblocking `SOCK_SEQPACKET` socket.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(event_loop::watch(socket)?))
    }

    /// The next request, or nothing when the peer has hung up. Cancel safe.
    pub(super) async fn receive(&self) -> Result<Option<Received>, PacketError> {
        loop {
            let mut guard = self.0.readable().await.map_err(PacketError::Socket)?;
            match receive_now(guard.get_inner()) {
                Err(PacketError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                result => return result,
            }
        }
    }

    /// Waits until the peer has hung up, but no longer than `patience`, and drops what it says. A socket that is closed with packets
    /// unread makes the peer's next read fail, and with it hides the answer.
    pub(super) async fn linger(&self, patience: std::time::Duration) {
        let hung_up = async { while !matches!(self.receive().await, Ok(None) | Err(PacketError::Socket(_))) {} };
        let _ = tokio::time::timeout(patience, hung_up).await;
    }

    /// Sends a response with its descriptors.
    pub(super) async fn send(&self, response: &Response, descriptors: &[BorrowedFd<'_>]) -> Result<(), PacketError> {
        let packet = serde_json::to_vec(response).map_err(PacketError::Encode)?;
        loop {
            let mut guard = self.0.writable().await.map_err(PacketError::Socket)?;
            match send_now(guard.get_inner(), &packet, descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                result => return result.map_err(PacketError::Socket),
            }
        }
    }
}

fn receive_now(socket: &OwnedFd) -> Result<Option<Received>, PacketError> {
    // One byte more than a packet may have shows that it has too many.
    let mut bytes = vec![0; MAX_PACKET_BYTES + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags);
    let message = message.map_err(|error| PacketError::Socket(error.into()))?;
    // Taken out first: what is not returned is closed.
    let descriptors = received_descriptors(&mut ancillary);
    if message.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
        return Err(PacketError::TooManyDescriptors);
    }
    if message.flags.contains(ReturnFlags::TRUNC) || message.bytes > MAX_PACKET_BYTES {
        return Err(PacketError::TooLong);
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    let request = parse(bytes.get(..message.bytes).unwrap_or_default())?;
    Ok(Some(Received { request, descriptors }))
}

fn received_descriptors(ancillary: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        RecvAncillaryMessage::ScmCredentials(_) | _ => None,
    });
    rights.flatten().collect()
}

fn send_now(socket: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one packet",
        ));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut ancillary,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(())
}

/// The request in a packet. What only says a version that is not ours is a `Hello` of that version, so that it is refused for it.
fn parse(packet: &[u8]) -> Result<Request, PacketError> {
    serde_json::from_slice(packet).or_else(|error| match serde_json::from_slice(packet) {
        Ok(AnyFirst::Hello { version } | AnyFirst::Resume { version } | AnyFirst::Lend { version })
            if version != VERSION =>
        {
            Ok(Request::Hello {
                version,
                pod_uid: String::new(),
                interfaces: Vec::new(),
            })
        }
        Ok(AnyFirst::Hello { .. } | AnyFirst::Resume { .. } | AnyFirst::Lend { .. }) | Err(_) => {
            Err(PacketError::Malformed(error))
        }
    })
}

/// What the first packets of all versions have in common.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
enum AnyFirst {
    Hello { version: u32 },
    Resume { version: u32 },
    Lend { version: u32 },
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use node_shim_protocol::agent::{
        DiskOptions, GuestState, GuestStatus, InterfaceBinding, InterfaceRequest, Plugged, PluggedDisk, Resized,
    };
    use node_shim_protocol::control::{Failure, FailureKind};
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    fn pair() -> (OwnedFd, Connection) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (theirs, ours) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (theirs, Connection::new(ours).unwrap())
    }

    fn send_with(socket: &OwnedFd, packet: &[u8], count: usize) {
        let file = File::open("/dev/null").unwrap();
        let descriptors = vec![file.as_fd(); count];
        let mut space = vec![MaybeUninit::uninit(); 4096];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(count == 0 || ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::empty()).unwrap();
    }

    fn hello() -> Vec<u8> {
        serde_json::to_vec(&Request::Hello {
            version: VERSION,
            pod_uid: "p1".to_owned(),
            interfaces: Vec::new(),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn a_request_comes_with_its_descriptors() {
        let (theirs, ours) = pair();
        send_with(&theirs, &hello(), MAX_DESCRIPTORS);
        let received = ours.receive().await.unwrap().unwrap();
        assert_eq!(received.descriptors.len(), MAX_DESCRIPTORS);
        drop(theirs);
        assert!(ours.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn more_than_the_limits_is_refused() {
        let (theirs, ours) = pair();
        send_with(&theirs, &hello(), MAX_DESCRIPTORS + 1);
        assert!(matches!(ours.receive().await, Err(PacketError::TooManyDescriptors)));
        send_with(&theirs, &hello(), 200);
        assert!(matches!(ours.receive().await, Err(PacketError::TooManyDescriptors)));
        send_with(&theirs, &vec![b' '; MAX_PACKET_BYTES + 1], 0);
        assert!(matches!(ours.receive().await, Err(PacketError::TooLong)));
        send_with(&theirs, b"\"Hello\"", 0);
        assert!(matches!(ours.receive().await, Err(PacketError::Malformed(_))));
    }

    #[tokio::test]
    async fn descriptors_of_refused_packets_are_closed() {
        let (theirs, ours) = pair();
        let (mut read, write) = std::io::pipe().unwrap();
        let descriptors = [write.as_fd()];
        let mut space = [MaybeUninit::uninit(); 64];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        rustix::net::sendmsg(&theirs, &[IoSlice::new(b"{}")], &mut ancillary, SendFlags::empty()).unwrap();
        drop(write);
        assert!(ours.receive().await.is_err());
        // The last writer is gone, so the pipe is at its end.
        assert_eq!(read.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_shim_of_another_release_is_understood_as_far_as_its_version() {
        let old = br#"{"hello":{"version":1,"interfaces":[{"name":"a","mac":"02:00:00:00:00:01"}]}}"#;
        assert!(matches!(parse(old), Ok(Request::Hello { version: 1, .. })));
        let new = br#"{"resume":{"version":9,"mood":"good"}}"#;
        assert!(matches!(parse(new), Ok(Request::Hello { version: 9, .. })));
        let ours = format!(r#"{{"hello":{{"version":{VERSION},"mood":"good"}}}}"#);
        assert!(matches!(parse(ours.as_bytes()), Err(PacketError::Malformed(_))));
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let interface = ("\\PC{0,20}", "\\PC{0,20}", any::<u16>());
        let interface = interface.prop_map(|(name, mac, queues)| InterfaceRequest {
            name,
            mac,
            queues,
            binding: InterfaceBinding::Bridge,
            pod_interface: None,
        });
        let state = prop_oneof![
            Just(GuestState::Booting),
            Just(GuestState::Running),
            Just(GuestState::PoweringOff)
        ];
        let texts = any::<(Option<String>, Option<String>, Vec<(String, String)>)>();
        let status = (state, any::<(u64, u32, u64, u64)>(), texts).prop_map(
            |(state, (boot_time_ms, vcpus, memory_bytes, resets), (kernel, hindrance, disks))| GuestStatus {
                state,
                boot_time_ms,
                vcpus,
                memory_bytes,
                resets,
                kernel,
                hindrance,
                disks: disks
                    .into_iter()
                    .map(|(name, lender)| PluggedDisk { name, lender })
                    .collect(),
            },
        );
        let failure = any::<Option<String>>().prop_map(|message| {
            message.map(|message| Failure {
                kind: FailureKind::Failed,
                message,
            })
        });
        prop_oneof![
            (any::<u32>(), any::<String>(), prop::collection::vec(interface, 0..10)).prop_map(
                |(version, pod_uid, interfaces)| Request::Hello {
                    version,
                    pod_uid,
                    interfaces
                }
            ),
            (any::<u32>(), any::<String>(), status.clone()).prop_map(|(version, pod_uid, status)| Request::Resume {
                version,
                pod_uid,
                status
            }),
            (any::<u64>(), failure, status.clone()).prop_map(|(sequence, failure, status)| Request::Resized(Resized {
                sequence,
                failure,
                status
            })),
            (any::<String>(), any::<Option<String>>(), status.clone()).prop_map(|(name, message, status)| {
                let kind = FailureKind::Invalid;
                let failure = message.map(|message| Failure { kind, message });
                Request::Plugged(Plugged { name, failure, status })
            }),
            (any::<u32>(), any::<String>(), any::<Option<String>>()).prop_map(|(version, pod_uid, serial)| {
                let disk = DiskOptions {
                    serial,
                    ..DiskOptions::default()
                };
                Request::Lend { version, pod_uid, disk }
            }),
            Just(Request::Withdraw),
            status.prop_map(Request::Status),
        ]
    }

    proptest! {
        #[test]
        fn parsing_never_panics(packet in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&packet);
        }

        #[test]
        fn what_is_sent_is_understood(request in any_request()) {
            prop_assert_eq!(parse(&serde_json::to_vec(&request).unwrap()).unwrap(), request);
        }

        #[test]
        fn a_damaged_request_never_panics(request in any_request(), at: prop::sample::Index, byte: u8) {
            let mut packet = serde_json::to_vec(&request).unwrap();
            let at = at.index(packet.len());
            packet[at] = byte;
            let _ = parse(&packet);
        }
    }
}
