//! `node-shim lend`: what runs in a volume pod. It opens a disk as a VMM opens its own, and lends it to a VM that runs on its node.
//!
//! The VMM works with the descriptor alone. This process keeps the volume in use for as long as a guest may have the disk: a volume that the kubelet
//! takes away under a guest loses what the guest writes.

use std::path::PathBuf;

use node_shim_protocol::ExitReason;

use crate::agent::{self, Address, AgentError};
use crate::config::{self, ConfigError};
use crate::devices::disk::lent::{self, LendError};
use crate::jail::paths::{Paths, directory_of};
use crate::jail::seccomp::Mode;
use crate::jail::{self, JailError};
use crate::log;
use crate::signals::Signals;

/// What the process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// A `LendConfig` in JSON.
    pub(crate) config: PathBuf,
    /// The node agent.
    pub(crate) agent: Address,
    /// What becomes of a system call that it has no need of.
    pub(crate) seccomp: Mode,
}

/// Why a disk is not lent any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LenderError {
    /// Its configuration is none.
    #[error(transparent)]
    Config(ConfigError),
    /// It cannot be opened.
    #[error(transparent)]
    Disk(LendError),
    /// The node agent does not want it.
    #[error(transparent)]
    Agent(AgentError),
    /// The process cannot be confined.
    #[error(transparent)]
    Jail(JailError),
    /// The host refuses.
    #[error("failed to block signals: {0}")]
    Signals(std::io::Error),
}

impl LenderError {
    /// For the exit code.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Config(_) => ExitReason::InvalidConfig,
            Self::Disk(error) => error.reason(),
            Self::Agent(_) | Self::Jail(_) | Self::Signals(_) => ExitReason::HostUnavailable,
        }
    }
}

/// Lends the disk until the pod is to end and no guest has it any more.
pub(crate) fn run(options: &Options) -> Result<(), LenderError> {
    let signals = Signals::block().map_err(LenderError::Signals)?;
    let (disk, scratch, how) = config::load_lent(&options.config).map_err(LenderError::Config)?;
    jail::prepare(options.seccomp, true).map_err(LenderError::Jail)?;
    let file = lent::open(&scratch, &disk).map_err(LenderError::Disk)?;
    let paths = Paths {
        sockets: vec![directory_of(&options.agent.socket)],
        ..Paths::default()
    };
    let isolation = jail::enter(&paths).map_err(LenderError::Jail)?;
    jail::report(isolation);
    log::line(format_args!("disk `{}` is open", disk.name));
    agent::lend::lend(&options.agent, &how, &file, &signals).map_err(LenderError::Agent)
}
