//! Probes.

use crds::probe::{Probe, Scheme};

use super::Invalid;

/// A probe with exactly one action.
#[derive(Clone, Debug)]
pub(crate) struct ValidProbe {
    pub(crate) action: ProbeAction,
    pub(crate) timing: Probe,
}

/// What a probe does.
#[derive(Clone, Debug)]
pub(crate) enum ProbeAction {
    HttpGet {
        port: i32,
        path: Option<String>,
        scheme: Option<Scheme>,
    },
    TcpSocket {
        port: i32,
    },
    /// A command in the guest.
    Exec {
        command: Vec<String>,
    },
    /// An answer of the guest agent.
    GuestAgentPing,
}

impl ProbeAction {
    /// Whether it goes through the guest agent.
    pub(crate) fn needs_guest_agent(&self) -> bool {
        match self {
            Self::HttpGet { .. } | Self::TcpSocket { .. } => false,
            Self::Exec { .. } | Self::GuestAgentPing => true,
        }
    }
}

/// Checks a probe.
pub(super) fn probe(field: &'static str, probe: &Probe) -> Result<ValidProbe, Invalid> {
    let action = match (&probe.http_get, &probe.tcp_socket, &probe.exec, &probe.guest_agent_ping) {
        (Some(http), None, None, None) => ProbeAction::HttpGet {
            port: http.port,
            path: http.path.clone(),
            scheme: http.scheme,
        },
        (None, Some(tcp), None, None) => ProbeAction::TcpSocket { port: tcp.port },
        (None, None, Some(exec), None) if exec.command.first().is_some_and(|program| program.starts_with('/')) => {
            ProbeAction::Exec {
                command: exec.command.clone(),
            }
        }
        (None, None, Some(_), None) => return Err(Invalid::ProbeCommand(field)),
        (None, None, None, Some(_)) => ProbeAction::GuestAgentPing,
        _ => return Err(Invalid::Probe(field)),
    };
    Ok(ValidProbe {
        action,
        timing: probe.clone(),
    })
}
