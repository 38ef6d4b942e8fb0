//! Makes listening Unix sockets in the place of those that a predecessor left behind.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Connections that wait for `accept`.
const BACKLOG: i32 = 16;

/// Failure to make a socket.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} the socket {}", path.display())]
pub(crate) struct UnixSocketError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A nonblocking stream socket that listens on `path` with the file mode `mode`.
pub(crate) fn bind_stream(path: &Path, mode: u32) -> Result<UnixListener, UnixSocketError> {
    let socket = bind(path, SocketType::STREAM, mode)?;
    UnixListener::from_std(socket.into()).map_err(|source| UnixSocketError {
        action: "watch",
        path: path.to_owned(),
        source,
    })
}

/// A nonblocking `SOCK_SEQPACKET` socket that listens on `path` with the file mode `mode`.
pub(crate) fn bind_seqpacket(path: &Path, mode: u32) -> Result<OwnedFd, UnixSocketError> {
    bind(path, SocketType::SEQPACKET, mode)
}

/// The new socket takes its final name by `rename`, with its mode set and listening, so that nobody finds it half made.
fn bind(path: &Path, socket_type: SocketType, mode: u32) -> Result<OwnedFd, UnixSocketError> {
    let fail = |action| {
        move |source: io::Error| UnixSocketError {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("remove the remains of")(error)),
        Ok(()) | Err(_) => {}
    }
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let open = || {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, socket_type, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&new)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    let socket = open().map_err(|error| fail("make")(error.into()))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).map_err(fail("set the mode of"))?;
    std::fs::rename(&new, path).map_err(fail("name"))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_socket_replaces_its_predecessor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let old = bind_stream(&path, 0o600).unwrap();
        let new = bind_stream(&path, 0o666).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o666);
        drop(old);
        let _client = UnixStream::connect(&path).unwrap();
        new.accept().await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
