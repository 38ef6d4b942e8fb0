//! One connection: a request, what belongs to it, and its response.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use node_shim_protocol::guest::{FailureKind, Response};

use crate::agent::Agent;
use crate::connection::{Connection, ConnectionError};
use crate::log;

/// How long the host may take to say what it wants, and to take the response.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the host may take to read what was sent, and to close the connection.
const LINGER: Duration = Duration::from_mins(1);

/// Serves a connection to its end.
pub fn serve(agent: &Agent, socket: OwnedFd) {
    let mut connection = match Connection::new(socket) {
        Ok(connection) => connection,
        Err(error) => return log::line(format_args!("failed to serve the host: {error}")),
    };
    if let Err(error) = converse(agent, &mut connection) {
        match error {
            // It may be a probe whose time was over.
            ConnectionError::Gone => {}
            ConnectionError::Late | ConnectionError::Io(_) => log::line(format_args!("{error}")),
            ConnectionError::Wrong(wrong) => {
                log::line(format_args!("{wrong}"));
                let response = Response::error(FailureKind::Invalid, &wrong.to_string());
                // Who says such things may not listen either.
                if connection.respond(&response, Instant::now() + PATIENCE).is_ok() {
                    connection.await_close(Instant::now() + LINGER);
                }
            }
        }
    }
}

fn converse(agent: &Agent, connection: &mut Connection) -> Result<(), ConnectionError> {
    let request = connection.request(Instant::now() + PATIENCE)?;
    let response = agent.answer(&request, connection)?;
    let sent = connection.respond(&response, Instant::now() + PATIENCE);
    if sent.is_err() {
        agent.take_back(&response);
    }
    sent?;
    connection.await_close(Instant::now() + LINGER);
    Ok(())
}

#[cfg(test)]
mod tests;
