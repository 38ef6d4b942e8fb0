//! The shim's side of the conversation with the node agent: see `node_shim_protocol::agent`.
//!
//! [`negotiate`] asks for the VM's descriptors before there is a VM. Afterwards [`Link`] keeps the connection, in the event loop: when
//! the agent restarts, the guest does not notice.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node_shim_protocol::agent::{
    AttachDisk, GrantedNetwork, GuestStatus, InterfaceBinding, InterfaceGrant, InterfaceRequest, Plugged, Request,
    Resize, Resized, Response, VERSION,
};
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::log;
use crate::packet::{self, PacketError};
use crate::poll::{Poll, Source, Token};
use crate::signals::Signals;

pub(crate) mod lend;

/// How long the agent may take to be there and to grant what is asked for: it may just be starting, on a node that is too.
const NEGOTIATION_MAX: Duration = Duration::from_mins(1);
/// How long it may take to answer one `Hello`.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// First and longest wait before another try.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Why the agent gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// It said no.
    #[error("the node agent refused: {0}")]
    Refused(String),
    /// It was not there, or not able to, for as long as we waited.
    #[error("the node agent at {socket} did not help within {} s: {last}; see that the node-agent DaemonSet runs on this node", NEGOTIATION_MAX.as_secs())]
    TimedOut {
        /// Where it should be.
        socket: PathBuf,
        /// What the last try ended with.
        last: String,
    },
    /// It answered something that is no answer.
    #[error("the node agent's answer is unusable: {0}; its version and the shim's must match")]
    Unusable(String),
    /// Our own network namespace cannot be opened.
    #[error("failed to open the network namespace: {0}")]
    Namespace(std::io::Error),
    /// SIGTERM came first.
    #[error("stopped before the guest was started")]
    Stopped,
}

/// Where the agent is, and who calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// Its socket.
    pub(crate) socket: PathBuf,
    /// UID of our pod.
    pub(crate) pod_uid: String,
}

/// What the agent gave.
pub(crate) struct Grant {
    /// `/dev/kvm`.
    pub(crate) kvm: OwnedFd,
    /// One for each interface that was asked for, in that order, with the queues of its tap.
    pub(crate) interfaces: Vec<(InterfaceGrant, Vec<OwnedFd>)>,
    /// The connection.
    pub(crate) link: Link,
}

/// Asks for `/dev/kvm` and taps until they are granted, refused for good, or too late.
pub(crate) fn negotiate(
    address: &Address,
    interfaces: &[InterfaceRequest],
    signals: &Signals,
) -> Result<Grant, AgentError> {
    let namespace = std::fs::File::open("/proc/self/ns/net").map_err(AgentError::Namespace)?;
    let hello = Request::Hello {
        version: VERSION,
        pod_uid: address.pod_uid.clone(),
        interfaces: interfaces.to_vec(),
    };
    let deadline = Instant::now() + NEGOTIATION_MAX;
    let mut backoff = Backoff::new();
    loop {
        let last = match ask(&address.socket, &hello, &namespace, signals)? {
            Answer::Granted {
                connection,
                response,
                descriptors,
            } => {
                return granted(address, connection, interfaces, response, descriptors);
            }
            Answer::Refused {
                reason,
                retryable: false,
            } => return Err(AgentError::Refused(reason)),
            Answer::Refused {
                reason,
                retryable: true,
            } => reason,
            Answer::Failed(why) => why,
        };
        let pause = backoff.next();
        if Instant::now() + pause >= deadline {
            return Err(AgentError::TimedOut {
                socket: address.socket.clone(),
                last,
            });
        }
        if backoff.is_first() {
            log::line(format_args!("waiting for the node agent: {last}"));
        }
        wait(signals, None, pause)?;
    }
}

/// Waits that grow.
struct Backoff(Duration);

impl Backoff {
    const fn new() -> Self {
        Self(Duration::ZERO)
    }

    /// The next wait.
    fn next(&mut self) -> Duration {
        self.0 = if self.0.is_zero() {
            RETRY_FIRST
        } else {
            (self.0 * 2).min(RETRY_MAX)
        };
        self.0
    }

    /// Whether one wait was taken since the start.
    fn is_first(&self) -> bool {
        self.0 == RETRY_FIRST
    }
}

const NOT_A_LENDER: &str = "it takes this VM for a volume pod";

/// What the agent asks for.
#[derive(Debug)]
pub(crate) enum Order {
    /// Another size.
    Resize(Resize),
    /// Another disk, with what came with it.
    Attach(AttachDisk, Vec<OwnedFd>),
    /// That the guest gives a disk up.
    Detach(String),
}

/// How one try ended.
enum Answer {
    Granted {
        connection: OwnedFd,
        response: Vec<InterfaceGrant>,
        descriptors: Vec<OwnedFd>,
    },
    Refused {
        reason: String,
        retryable: bool,
    },
    Failed(String),
}

fn ask(socket: &Path, hello: &Request, namespace: &std::fs::File, signals: &Signals) -> Result<Answer, AgentError> {
    let failed = |error: PacketError| Ok(Answer::Failed(error.to_string()));
    let connection = match packet::connect(socket) {
        Ok(connection) => connection,
        Err(error) => return failed(error),
    };
    if let Err(error) = packet::send(&connection, hello, &[namespace.as_fd()]) {
        return failed(error);
    }
    if !wait(signals, Some(&connection), ANSWER_MAX)? {
        return Ok(Answer::Failed("it did not answer in time".to_owned()));
    }
    match packet::receive(&connection) {
        Ok(Some((Response::Granted { interfaces }, descriptors))) => Ok(Answer::Granted {
            connection,
            response: interfaces,
            descriptors,
        }),
        Ok(Some((Response::Refused { reason, retryable }, _))) => Ok(Answer::Refused { reason, retryable }),
        Ok(Some((Response::Resize(_) | Response::AttachDisk(_) | Response::DetachDisk { .. }, _))) => {
            Err(AgentError::Unusable("something is asked for before Granted".to_owned()))
        }
        Ok(Some((Response::Lent | Response::Returned, _))) => Err(AgentError::Unusable(NOT_A_LENDER.to_owned())),
        Ok(None) => Ok(Answer::Failed(
            "it closed the connection without an answer, as an agent of an older release does".to_owned(),
        )),
        Err(PacketError::Unusable(what)) => Err(AgentError::Unusable(what)),
        Err(error) => failed(error),
    }
}

/// Waits until the connection is readable; `false` when the time is over.
fn wait(signals: &Signals, connection: Option<&OwnedFd>, limit: Duration) -> Result<bool, AgentError> {
    let deadline = Instant::now() + limit;
    let (signals_fd, connection_fd) = (signals.as_fd(), connection.map(AsFd::as_fd));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut set = vec![PollFd::new(&signals_fd, PollFlags::IN)];
        set.extend(connection_fd.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        // A failing poll is a passing interruption; the deadline ends the loop in any case.
        let _ = rustix::event::poll(&mut set, Some(&timeout));
        if !set[0].revents().is_empty() && signals.take().stop {
            return Err(AgentError::Stopped);
        }
        if set.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// Matches descriptors to what was asked for.
fn granted(
    address: &Address,
    connection: OwnedFd,
    asked: &[InterfaceRequest],
    response: Vec<InterfaceGrant>,
    descriptors: Vec<OwnedFd>,
) -> Result<Grant, AgentError> {
    let names_match = asked
        .iter()
        .map(|interface| &interface.name)
        .eq(response.iter().map(|grant| &grant.name));
    // Fewer queues than asked for do as well.
    let queues_match = asked
        .iter()
        .zip(&response)
        .all(|(interface, grant)| (1..=interface.queues).contains(&grant.queues));
    let queues: usize = response.iter().map(|grant| usize::from(grant.queues)).sum();
    if !names_match || !queues_match || descriptors.len() != queues + 1 {
        return Err(AgentError::Unusable(format!(
            "{} interfaces and {} descriptors for {} interfaces",
            response.len(),
            descriptors.len(),
            asked.len()
        )));
    }
    for (interface, grant) in asked.iter().zip(&response) {
        let field = format!("interface {}", grant.name);
        let checked = match (interface.binding, &grant.network) {
            (InterfaceBinding::Masquerade, GrantedNetwork::Masquerade(network)) => {
                crate::config::check_network(&field, network)
            }
            (InterfaceBinding::Bridge, GrantedNetwork::Bridge(network)) => {
                crate::config::check_bridged(&field, network)
            }
            _ => {
                return Err(AgentError::Unusable(format!(
                    "{field} has another binding than asked for"
                )));
            }
        };
        checked.map_err(|error| AgentError::Unusable(error.to_string()))?;
    }
    let mut descriptors = descriptors.into_iter();
    let kvm = descriptors
        .next()
        .ok_or_else(|| AgentError::Unusable("no descriptor of /dev/kvm".to_owned()))?;
    Ok(Grant {
        kvm,
        interfaces: response
            .into_iter()
            .map(|grant| {
                let queues = descriptors.by_ref().take(usize::from(grant.queues)).collect();
                (grant, queues)
            })
            .collect(),
        link: Link {
            address: address.clone(),
            state: LinkState::Connected {
                connection,
                token: None,
            },
            backoff: Backoff::new(),
            newest: None,
        },
    })
}

/// The connection while the VM runs.
pub(crate) struct Link {
    address: Address,
    state: LinkState,
    backoff: Backoff,
    /// Greatest `sequence` of a [`Resize`], from whichever agent.
    newest: Option<u64>,
}

enum LinkState {
    Connected {
        connection: OwnedFd,
        /// In the epoll set.
        token: Option<Token>,
    },
    /// Lost: when to try again.
    Lost { retry_at: Instant },
    /// The agent no longer wants to hear of this VM.
    GivenUp,
}

impl Link {
    /// Joins the event loop.
    pub(crate) fn watch(&mut self, poll: &Poll) -> std::io::Result<()> {
        if let LinkState::Connected { connection, token } = &mut self.state {
            *token = Some(poll.add(connection.as_fd(), EventFlags::IN, Source::Agent)?);
        }
        Ok(())
    }

    /// When [`Self::on_time`] has something to do.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match self.state {
            LinkState::Lost { retry_at } => Some(retry_at),
            LinkState::Connected { .. } | LinkState::GivenUp => None,
        }
    }

    /// Tells the agent what the guest does.
    pub(crate) fn report(&mut self, poll: &Poll, status: &GuestStatus) {
        self.say(poll, &Request::Status(status.clone()));
    }

    /// Tells the agent what became of a size that it asked for.
    pub(crate) fn answer(&mut self, poll: &Poll, resized: Resized) {
        self.say(poll, &Request::Resized(resized));
    }

    /// Tells the agent what became of a disk that it asked for.
    pub(crate) fn answer_disk(&mut self, poll: &Poll, plugged: Plugged) {
        self.say(poll, &Request::Plugged(plugged));
    }

    fn say(&mut self, poll: &Poll, request: &Request) {
        if let LinkState::Connected { connection, .. } = &self.state
            && let Err(error) = packet::send(connection, request, &[])
        {
            self.lose(poll, &error.to_string());
        }
    }

    /// The agent said something, or went away. What it asks for is returned, unless something newer was asked for before.
    pub(crate) fn on_readable(&mut self, poll: &Poll) -> Option<Order> {
        let LinkState::Connected { connection, .. } = &self.state else {
            return None;
        };
        match packet::receive(connection) {
            Ok(Some((Response::Granted { .. }, _))) => {}
            Ok(Some((Response::Resize(resize), _))) => {
                if self.newest.is_none_or(|newest| newest <= resize.sequence) {
                    self.newest = Some(resize.sequence);
                    return Some(Order::Resize(resize));
                }
                log::line(format_args!(
                    "the node agent asked for size {} after a newer one; left as it is",
                    resize.sequence
                ));
            }
            Ok(Some((Response::AttachDisk(disk), descriptors))) => return Some(Order::Attach(disk, descriptors)),
            Ok(Some((Response::DetachDisk { name }, _))) => return Some(Order::Detach(name)),
            Ok(Some((Response::Lent | Response::Returned, _))) => self.lose(poll, NOT_A_LENDER),
            Ok(Some((
                Response::Refused {
                    reason,
                    retryable: true,
                },
                _,
            ))) => self.lose(poll, &reason),
            Ok(Some((
                Response::Refused {
                    reason,
                    retryable: false,
                },
                _,
            ))) => {
                log::line(format_args!("the node agent no longer reports this VM: {reason}"));
                self.close(poll);
                self.state = LinkState::GivenUp;
            }
            Ok(None) => self.lose(poll, "it closed the connection"),
            Err(error) => self.lose(poll, &error.to_string()),
        }
        None
    }

    /// Connects again; [`Self::wake_at`] says when.
    pub(crate) fn on_time(&mut self, now: Instant, poll: &Poll, status: &GuestStatus) {
        match self.resume(poll, status) {
            Ok(()) => {
                self.backoff = Backoff::new();
                log::line(format_args!("the node agent is back"));
            }
            Err(_) => {
                self.state = LinkState::Lost {
                    retry_at: now + self.backoff.next(),
                };
            }
        }
    }

    fn resume(&mut self, poll: &Poll, status: &GuestStatus) -> Result<(), PacketError> {
        let connection = packet::connect(&self.address.socket)?;
        let resume = Request::Resume {
            version: VERSION,
            pod_uid: self.address.pod_uid.clone(),
            status: status.clone(),
        };
        packet::send(&connection, &resume, &[])?;
        let token = poll
            .add(connection.as_fd(), EventFlags::IN, Source::Agent)
            .map_err(PacketError::Io)?;
        self.state = LinkState::Connected {
            connection,
            token: Some(token),
        };
        Ok(())
    }

    fn lose(&mut self, poll: &Poll, why: &str) {
        log::line(format_args!("lost the node agent: {why}; the guest goes on"));
        self.close(poll);
        self.state = LinkState::Lost {
            retry_at: Instant::now() + self.backoff.next(),
        };
    }

    fn close(&self, poll: &Poll) {
        if let LinkState::Connected {
            connection,
            token: Some(token),
        } = &self.state
        {
            poll.remove(connection.as_fd(), *token);
        }
    }
}

#[cfg(test)]
mod tests;
