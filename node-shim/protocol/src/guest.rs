//! What the host and the agent in a guest say to each other, over a vsock stream to port [`PORT`] of the guest: see docs/guest-agent.md.
//!
//! ```text
//! host                                   guest agent
//!  | Message: Request                       |   one connection, one request
//!  |--------------------------------------->|
//!  | Stdin ..., an empty one ends it        |   of `exec` with `stdin` only
//!  |--------------------------------------->|
//!  |              Stdout ..., Stderr ...    |   of `exec` only
//!  |<---------------------------------------|
//!  |                   Message: Response    |   then the connection is closed
//!  |<---------------------------------------|
//! ```
//!
//! A host that closes the connection takes its request back: the command that runs for it is killed. Neither side trusts the other: every
//! length, count and time is bounded here, and [`Answers`] and [`Questions`] let nothing pass that is not. Agents live in disk images for
//! years: a response may have fields that a host does not know, but a request has none that an agent does not know, because what they
//! ask for would silently not happen.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

mod answers;
mod check;
mod frame;
mod questions;

pub use self::answers::{Answer, AnswerError, Answers};
pub use self::check::{Excess, printable};
pub use self::frame::{DATA_MAX_BYTES, Decoder, Frame, FrameError, HEADER_BYTES, Kind, MESSAGE_MAX_BYTES, encode};
pub use self::questions::{Question, QuestionError, Questions};

/// Version of this conversation.
pub const VERSION: u32 = 1;
/// The guest's vsock port that its agent listens on. Below 1024, so that only root of the guest can take its place
/// (`LAST_RESERVED_PORT` of Linux's `net/vmw_vsock/af_vsock.c`).
pub const PORT: u32 = 847;

/// Most words of a command.
pub const ARGUMENTS_MAX: usize = 1024;
/// Most variables that a command is given.
pub const VARIABLES_MAX: usize = 256;
/// How long a command may run.
pub const EXEC_MAX_MS: u64 = 24 * 60 * 60 * 1000;
/// Most bytes of each of a command's stdout and stderr that a host may ask for.
pub const OUTPUT_MAX_BYTES: u64 = 64 << 20;
/// How long file systems may stay frozen.
pub const FREEZE_MAX_MS: u64 = 5 * 60 * 1000;
/// Longest text in a response, in bytes.
pub const TEXT_MAX_BYTES: usize = 256;
/// Longest explanation of a failure, in bytes.
pub const EXPLANATION_MAX_BYTES: usize = 1024;
/// Most entries of a list in a response.
pub const LIST_MAX: usize = 64;

/// What the host asks for. Closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Who is there: [`Response::Pong`].
    Ping,
    /// What the guest says of itself: [`Response::Info`].
    Info,
    /// Runs a command: its output, then [`Response::Exited`].
    Exec(Exec),
    /// Has the guest's own init end all services and the machine: [`Response::Done`] once it was told.
    Shutdown(Shutdown),
    /// Holds up all writes to the file systems on block devices: [`Response::Frozen`].
    Freeze(Freeze),
    /// Lets them go on: [`Response::Thawed`].
    Thaw,
    /// Takes CPUs and memory into use that were plugged: [`Response::Online`]. The agent does so by itself when they come.
    Online,
}

/// A command to run, as the user and in the environment that the agent has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exec {
    /// The program, by its path or a name in `PATH`, and its arguments: 1 to [`ARGUMENTS_MAX`] words.
    pub command: Vec<String>,
    /// Variables to set besides the agent's own, at most [`VARIABLES_MAX`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Where to run it; `/` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Whether its stdin follows. Otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// After how long it is killed, in milliseconds: 1 to [`EXEC_MAX_MS`].
    pub timeout_ms: u64,
    /// Bytes of its stdout to send, and as many of its stderr; the rest is read and dropped. At most [`OUTPUT_MAX_BYTES`].
    pub output_limit_bytes: u64,
}

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Shutdown {
    /// The machine is switched off.
    PowerOff,
    /// The guest starts again.
    Reboot,
}

/// How file systems are frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Freeze {
    /// How long after the first file system froze the agent thaws all of them if nobody has, in milliseconds: 1 to [`FREEZE_MAX_MS`].
    pub timeout_ms: u64,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// Answer to [`Request::Ping`].
    Pong(Pong),
    /// Answer to [`Request::Info`].
    Info(Box<Info>),
    /// Answer to [`Request::Exec`], when the command has ended.
    Exited(Exited),
    /// It is done.
    Done,
    /// Answer to [`Request::Freeze`]. Everything that is not in it stands still.
    Frozen(Frozen),
    /// Answer to [`Request::Thaw`].
    Thawed(Thawed),
    /// Answer to [`Request::Online`].
    Online(Online),
    /// It is not done.
    Error(Failure),
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pong {
    /// [`VERSION`] of the agent.
    pub protocol: u32,
    /// Version of the agent.
    pub agent: String,
    /// What it does, by the names of requests. Its owner may have switched some off.
    pub capabilities: Vec<String>,
    /// Whether file systems are frozen.
    pub frozen: bool,
}

/// What a guest says of itself. All of it is hearsay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// Its host name.
    pub hostname: String,
    /// Release of its kernel.
    pub kernel: String,
    /// Its distribution, as os-release(5) has it.
    pub os: Os,
    /// Another one after each boot: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Its network interfaces in the kernel's order, without the loopback one; those that are backed by a device come first.
    pub interfaces: Vec<Interface>,
    /// How many more it has.
    #[serde(default)]
    pub interfaces_omitted: u32,
    /// CPUs that it uses.
    pub cpus: u32,
    /// Bytes of memory that it uses, without what its kernel took for itself.
    pub memory_bytes: u64,
    /// Bytes of it that could be had without swapping.
    pub memory_available_bytes: u64,
}

/// A distribution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Os {
    /// `ID`.
    pub id: String,
    /// `VERSION_ID`; a rolling distribution has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// `PRETTY_NAME`.
    pub name: String,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name in the guest.
    pub name: String,
    /// Its hardware address, where it has one: what tells which of the VM's interfaces it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its addresses, at most [`LIST_MAX`].
    pub addresses: Vec<Address>,
}

/// An address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix.
    pub prefix_length: u8,
}

/// A command that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exited {
    /// How.
    pub how: Ending,
    /// Bytes of stdout and stderr that were over the limit.
    #[serde(default)]
    pub dropped_bytes: u64,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ending {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// It was killed when its time was over.
    TimedOut,
}

/// File systems that stand still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frozen {
    /// How many.
    pub file_systems: u32,
    /// Where those are mounted that cannot be frozen, at most [`LIST_MAX`].
    pub skipped: Vec<String>,
}

/// File systems that go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Thawed {
    /// How many.
    pub file_systems: u32,
}

/// What was taken into use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Online {
    /// CPUs.
    pub cpus: u32,
    /// Blocks of memory.
    pub memory_blocks: u32,
    /// CPUs and blocks that the kernel did not take.
    pub failed: u32,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// For a program.
    pub kind: FailureKind,
    /// One sentence for a person: what is wrong and what to do about it. At most [`EXPLANATION_MAX_BYTES`].
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// The request is none, or asks for something impossible.
    Invalid,
    /// The guest's owner has switched it off.
    Disabled,
    /// Not now; another time it may work.
    Refused,
    /// The command is there and cannot be run.
    NotExecutable,
    /// There is no such command.
    NotFound,
    /// The guest's kernel or a program of it failed.
    #[serde(other)]
    Failed,
}

impl Request {
    /// Its name, as it is written and as [`Pong::capabilities`] has it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Info => "info",
            Self::Exec(_) => "exec",
            Self::Shutdown(_) => "shutdown",
            Self::Freeze(_) => "freeze",
            Self::Thaw => "thaw",
            Self::Online => "online",
        }
    }

    /// Whether this response is one to it.
    pub const fn is_answered_by(&self, response: &Response) -> bool {
        matches!(
            (self, response),
            (Self::Ping, Response::Pong(_))
                | (Self::Info, Response::Info(_))
                | (Self::Exec(_), Response::Exited(_))
                | (Self::Shutdown(_), Response::Done)
                | (Self::Freeze(_), Response::Frozen(_))
                | (Self::Thaw, Response::Thawed(_))
                | (Self::Online, Response::Online(_))
                | (_, Response::Error(_))
        )
    }
}

impl Response {
    /// An error, with as much of the explanation as it may have.
    pub fn error(kind: FailureKind, message: &str) -> Self {
        Self::Error(Failure {
            kind,
            message: printable(message, EXPLANATION_MAX_BYTES),
        })
    }
}

#[cfg(test)]
mod tests;
