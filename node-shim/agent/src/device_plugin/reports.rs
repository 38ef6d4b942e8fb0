//! Receives the reports of `node-agent serve`. The socket is for root only and is mounted into no pod but the agent's.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::kvm_report::{MAX_LINE_BYTES, Report};
use crate::unix_socket;

/// What is heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReportEvent {
    /// A report came.
    Said(Result<(), String>),
    /// The connection ended.
    Lost,
}

/// Failure to hear anything.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportsError {
    /// The socket cannot be made.
    #[error("failed to listen on {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: unix_socket::UnixSocketError,
    },
    /// The socket does not work any more.
    #[error("failed to accept a connection on plugin.sock")]
    Accept(#[source] io::Error),
}

/// Listens for one connection at a time; a newer one replaces it.
pub(super) struct ReportListener {
    listener: UnixListener,
    current: Option<BufReader<UnixStream>>,
    line: Vec<u8>,
}

impl ReportListener {
    /// Listens on `path`, in place of a predecessor.
    pub(super) fn bind(path: &Path) -> Result<Self, ReportsError> {
        let listener = unix_socket::bind_stream(path, 0o600).map_err(|source| ReportsError::Bind {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            current: None,
            line: Vec::new(),
        })
    }

    /// Waits for the next event. Cancel safe: a partial line is kept.
    pub(super) async fn next(&mut self) -> Result<ReportEvent, ReportsError> {
        loop {
            let Self {
                listener,
                current,
                line,
            } = self;
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.map_err(ReportsError::Accept)?;
                    *current = Some(BufReader::new(stream));
                    line.clear();
                }
                read = read_line(current, line), if current.is_some() => {
                    let event = read.then(|| serde_json::from_slice::<Report>(line).ok()).flatten();
                    line.clear();
                    if let Some(report) = event {
                        return Ok(ReportEvent::Said(report.into_probe()));
                    }
                    *current = None;
                    return Ok(ReportEvent::Lost);
                }
            }
        }
    }
}

/// Reads up to the end of a line into `line`, which may hold its beginning. Whether it is a whole line within the limit.
async fn read_line(current: &mut Option<BufReader<UnixStream>>, line: &mut Vec<u8>) -> bool {
    let Some(reader) = current else { return false };
    let room = (MAX_LINE_BYTES + 1).saturating_sub(line.len() as u64);
    let read = reader.take(room).read_until(b'\n', line).await;
    read.is_ok() && line.ends_with(b"\n")
}
