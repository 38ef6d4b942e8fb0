//! Whether the agent is well: a socket that it answers on while all its parts run, and the question that an exec probe asks.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::node_paths::RunDir;
use crate::unix_socket;

/// The answer. The agent ends when one of its parts does, so that one that answers is well.
const WELL: &[u8] = b"ok\n";
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Failure to ask or answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HealthError {
    /// No socket.
    #[error("failed to listen for health probes")]
    Bind(#[source] unix_socket::UnixSocketError),
    /// A socket that does not work.
    #[error("failed to accept a health probe")]
    Accept(#[source] io::Error),
    /// Nobody there.
    #[error("node-agent serve does not answer")]
    Ask(#[source] io::Error),
    /// No answer.
    #[error("node-agent serve did not answer for {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// Makes the socket.
pub(super) fn bind(run_dir: &RunDir) -> Result<UnixListener, HealthError> {
    unix_socket::bind_stream(&run_dir.health_socket(), 0o600).map_err(HealthError::Bind)
}

/// Answers for ever.
pub(super) async fn answer(listener: UnixListener) -> Result<(), HealthError> {
    loop {
        let (mut stream, _) = listener.accept().await.map_err(HealthError::Accept)?;
        // Fits into the socket's buffer, so that nobody holds up the next one.
        let _ = stream.write_all(WELL).await;
    }
}

/// Asks.
pub(crate) async fn ask(run_dir: &RunDir) -> Result<(), HealthError> {
    let ask = async {
        let mut answer = [0; WELL.len()];
        UnixStream::connect(run_dir.health_socket())
            .await?
            .read_exact(&mut answer)
            .await
    };
    tokio::time::timeout(TIMEOUT, ask)
        .await
        .map_err(|_| HealthError::Timeout)?
        .map(drop)
        .map_err(HealthError::Ask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_that_runs_is_well_and_one_that_ended_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(directory.path());
        assert!(matches!(ask(&run_dir).await, Err(HealthError::Ask(_))));
        let agent = tokio::spawn(answer(bind(&run_dir).unwrap()));
        ask(&run_dir).await.unwrap();
        agent.abort();
        assert!(agent.await.unwrap_err().is_cancelled());
        assert!(matches!(ask(&run_dir).await, Err(HealthError::Ask(_))));
    }
}
