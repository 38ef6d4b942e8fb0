//! The socket of one device: at most one conversation at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use node_shim_protocol::agent::Response;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::identity::{self, PodName};
use super::pace::Pace;
use super::packet::Connection;
use super::session::{Services, Session};
use crate::event_loop;
use crate::node_paths::RunDir;
use crate::unix_socket;

/// How long a connection that came while another lives waits for the end of that one, and how long a refused one may stay. It slows
/// down only the one pod that calls.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceSocketError {
    /// No socket.
    #[error("failed to listen on {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: unix_socket::UnixSocketError,
    },
    /// The socket does not work with the event loop.
    #[error("failed to watch {}", path.display())]
    Watch {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A conversation that lives.
struct Current {
    /// The task, alone: dropped, it ends.
    task: JoinSet<()>,
    /// Who talks, once that is known.
    caller: Arc<OnceLock<PodName>>,
}

/// The socket of one device.
pub(super) struct DeviceSocket {
    device: String,
    path: PathBuf,
    listener: AsyncFd<OwnedFd>,
    services: Services,
}

impl DeviceSocket {
    /// Listens on the socket of `device`, in place of a predecessor.
    pub(super) fn bind(run_dir: &RunDir, device: &str, services: Services) -> Result<Self, DeviceSocketError> {
        let path = run_dir.device_socket(device);
        // Every user: the pod's is not known, and only the one pod that was given the directory sees it.
        let listener = unix_socket::bind_seqpacket(&path, 0o666).map_err(|source| DeviceSocketError::Bind {
            path: path.clone(),
            source,
        })?;
        let listener = event_loop::watch(listener).map_err(|source| DeviceSocketError::Watch {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            device: device.to_owned(),
            path,
            listener,
            services,
        })
    }

    /// Serves for ever.
    pub(super) async fn serve(self) -> Result<(), DeviceSocketError> {
        let mut current: Option<Current> = None;
        // Each connection is worth a question to the kubelet.
        let mut pace = Pace::new(Instant::now());
        let mut turn = Instant::now();
        loop {
            let accepted = tokio::select! {
                accepted = self.accept_after(turn) => accepted?,
                () = ended(&mut current) => {
                    current = None;
                    continue;
                }
            };
            turn = pace.next(Instant::now());
            if let Some(live) = &mut current
                && !self.is_over(live).await
            {
                refuse(accepted).await;
            } else {
                current = Some(self.begin(accepted));
            }
        }
    }

    fn begin(&self, connection: Connection) -> Current {
        let caller = Arc::new(OnceLock::new());
        let session = Session::new(connection, self.device.clone(), self.services.clone(), caller.clone());
        let mut task = JoinSet::new();
        task.spawn(session.run());
        Current { task, caller }
    }

    /// Whether a conversation must make way: it has ended, or the kubelet has given the device to another pod since.
    async fn is_over(&self, live: &mut Current) -> bool {
        if tokio::time::timeout(PAUSE, live.task.join_next()).await.is_ok() {
            return true;
        }
        let Some(caller) = live.caller.get() else { return false };
        match identity::of_device(&self.services.pod_resources, &self.device).await {
            Ok(pod) => pod != *caller,
            Err(_) => false,
        }
    }

    async fn accept_after(&self, turn: Instant) -> Result<Connection, DeviceSocketError> {
        tokio::time::sleep_until(turn).await;
        self.accept().await
    }

    async fn accept(&self) -> Result<Connection, DeviceSocketError> {
        loop {
            let watch = |source| DeviceSocketError::Watch {
                path: self.path.clone(),
                source,
            };
            let mut guard = self.listener.readable().await.map_err(watch)?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(guard.get_inner(), flags) {
                Ok(socket) => return Connection::new(socket).map_err(watch),
                Err(Errno::WOULDBLOCK) => guard.clear_ready(),
                Err(error) => {
                    tracing::warn!(device = %self.device, "failed to accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Ends when the current conversation does; never without one.
async fn ended(current: &mut Option<Current>) {
    match current {
        Some(current) => {
            if let Some(Err(error)) = current.task.join_next().await {
                tracing::error!("a conversation with a VM failed: {error}");
            }
        }
        None => std::future::pending().await,
    }
}

async fn refuse(connection: Connection) {
    let reason = "another connection of this VM is being served: close it, or try again when it has ended".to_owned();
    // One packet fits into the socket's buffer; a peer that is gone needs no answer.
    let _ = tokio::time::timeout(
        PAUSE,
        connection.send(
            &Response::Refused {
                reason,
                retryable: true,
            },
            &[],
        ),
    )
    .await;
    connection.linger(PAUSE).await;
}
