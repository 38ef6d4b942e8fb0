//! The vsock port: who may connect, and how many at a time.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use node_shim_protocol::guest::PORT;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::agent::Agent;
use crate::log;
use crate::session;

/// Every context id of this guest (`VMADDR_CID_ANY`, vsock(7)).
const ANY_CID: u32 = u32::MAX;
/// The host's context id (`VMADDR_CID_HOST`). Guests of this guest's own have others, and so have its own processes.
const HOST_CID: u32 = 2;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;
/// Most connections at a time. Each has a thread, and one more for a command.
const SESSIONS_MAX: usize = 16;
/// Stack of a session's thread in bytes.
const STACK_BYTES: usize = 256 * 1024;
/// How long to wait before the next connection is taken, when none could be: for want of descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(200);

/// The agent cannot listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to listen on vsock port {PORT}: {source}; see that the kernel has vsock (modprobe vmw_vsock_virtio_transport), that no other \
     agent runs, and that this one is started by root"
)]
pub struct ListenError {
    source: io::Error,
}

/// Listens for the host.
///
/// # Errors
/// When the kernel has no vsock, or the port is taken.
pub fn listen() -> Result<Socket, ListenError> {
    let bound = Socket::new(Domain::VSOCK, Type::STREAM, None).and_then(|socket| {
        socket.bind(&SockAddr::vsock(ANY_CID, PORT))?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    });
    bound.map_err(|source| ListenError { source })
}

/// Serves every connection of the host in a thread of its own. It does not return while there is a socket to listen on.
pub fn serve(listener: &Socket, agent: &Arc<Agent>) -> ExitCode {
    let sessions = Arc::new(AtomicUsize::new(0));
    loop {
        match listener.accept() {
            Ok((socket, address)) if is_host(&address) => start(socket, agent, &sessions),
            Ok((_, address)) => log::line(format_args!(
                "somebody was turned away who is not the host: context id {:?}",
                address.as_vsock_address().map(|(cid, _)| cid)
            )),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.raw_os_error(), Some(EBADF | EINVAL | ENOTSOCK)) => {
                log::line(format_args!("the vsock port is gone: {error}"));
                return ExitCode::FAILURE;
            }
            // There is no event for a descriptor that becomes free.
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Errors of accept(2) that no later call can be without.
const EBADF: i32 = 9;
const EINVAL: i32 = 22;
const ENOTSOCK: i32 = 88;

fn is_host(address: &SockAddr) -> bool {
    address.as_vsock_address().is_some_and(|(cid, _)| cid == HOST_CID)
}

/// Counts a session for as long as it lives.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(sessions: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < SESSIONS_MAX).then_some(count + 1)
        });
        taken.ok().map(|_| Self(Arc::clone(sessions)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One too many is closed at once, which its client sees.
fn start(socket: Socket, agent: &Arc<Agent>, sessions: &Arc<AtomicUsize>) {
    let Some(place) = Place::take(sessions) else {
        log::line(format_args!(
            "the host was turned away: it has {SESSIONS_MAX} connections already"
        ));
        return;
    };
    let agent = Arc::clone(agent);
    let thread = thread::Builder::new().name("session".into()).stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        let _place = place;
        session::serve(&agent, socket.into());
    });
    if let Err(error) = started {
        log::line(format_args!("failed to start a thread for the host: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_is_heard() {
        for (cid, heard) in [(0, false), (1, false), (2, true), (3, false), (u32::MAX, false)] {
            assert_eq!(is_host(&SockAddr::vsock(cid, 1024)), heard, "{cid}");
        }
        assert!(!is_host(&std::net::SocketAddr::from(([127, 0, 0, 1], 2)).into()));
    }

    #[test]
    fn sessions_are_bounded_and_a_place_becomes_free() {
        let sessions = Arc::default();
        let mut places: Vec<Place> = (0..SESSIONS_MAX).filter_map(|_| Place::take(&sessions)).collect();
        assert_eq!(places.len(), SESSIONS_MAX);
        assert!(Place::take(&sessions).is_none());
        places.pop();
        assert!(Place::take(&sessions).is_some());
    }

    /// Where this machine is a guest itself, its own processes are not the host.
    #[test]
    fn the_port_is_roots() {
        match listen() {
            Ok(socket) => {
                let (cid, port) = socket.local_addr().unwrap().as_vsock_address().unwrap();
                assert_eq!((cid, port), (ANY_CID, PORT));
                assert!(listen().unwrap_err().to_string().contains("no other agent"));
            }
            Err(error) => eprintln!("SKIPPED: no vsock here: {error}"),
        }
    }
}
