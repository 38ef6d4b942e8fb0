//! The socket device: its Unix socket in a directory of the configuration.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use node_shim_virtio::vsock::Vsock;

use crate::config;

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("vsock: failed to listen on {path}: {source}; name a socket in a directory that this process may write to")]
pub(crate) struct VsockError {
    path: PathBuf,
    source: io::Error,
}

/// Listens, and makes the device.
pub(crate) fn open(vsock: &config::Vsock) -> Result<Vsock, VsockError> {
    let failed = |source| VsockError {
        path: vsock.socket.clone(),
        source,
    };
    let listener = listen(&vsock.socket).map_err(failed)?;
    // Who may connect may ask the guest's agent for anything.
    std::fs::set_permissions(&vsock.socket, Permissions::from_mode(0o600)).map_err(failed)?;
    Vsock::new(u64::from(vsock.guest_cid), &vsock.socket, listener).map_err(failed)
}

/// A socket that an earlier process has left behind gives way; one that somebody listens on, or anything else, does not.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            let refused =
                UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !is_socket || !refused {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_vmms_own_user_may_connect() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vsock");
        let vsock = config::Vsock {
            socket: socket.clone(),
            guest_cid: 3,
        };
        let _device = open(&vsock).unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn only_a_socket_that_was_left_behind_gives_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let first = listen(&path).unwrap();
        assert!(listen(&path).is_err(), "it is in use");
        drop(first);
        drop(listen(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"a file").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
        assert!(listen(&directory.path().join("none/vsock")).is_err());
    }
}
