//! Whole VMs in a folder: written by a thread of its own while vCPUs stand still, restored without reading the memory.
//!
//! ```text
//! save:     vCPUs and devices at rest -> Machine::save -> state bytes -> Writer: disks, memory, state, fsync, rename -> SnapshotEnded
//! restore:  folder::open -> config -> devices opened -> memory mapped from the file -> Machine::restore -> vCPUs run
//! ```

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use node_shim_protocol::ExitReason;
use node_shim_virtio::device::Memory;

use self::state::FormatError;
use crate::jail;
use crate::jail::paths::Paths;
use crate::jail::seccomp::Kind;
use crate::lifecycle::Event;
use crate::mailbox::Mailbox;

pub(crate) mod cpu;
pub(crate) mod folder;
mod pages;
pub(crate) mod state;

/// Why there is no snapshot, or none that can be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// The host said no.
    #[error("failed to {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder cannot be one.
    #[error("{0} is no absolute path of a folder; write one such as /scratch/snapshot")]
    Name(PathBuf),
    /// The folder is where this process may not write.
    #[error("{folder} is not below {allowed}; write a folder that is, or start node-shim with --snapshots")]
    Outside {
        /// The folder.
        folder: PathBuf,
        /// Where it may be.
        allowed: String,
    },
    /// There is something already.
    #[error("{0} is there already; name a folder that is not, or remove it")]
    Exists(PathBuf),
    /// The scratch directory has a disk's file already.
    #[error("{0} is there already; restore with an empty directory as --scratch")]
    DiskExists(PathBuf),
    /// A file is not what it should be.
    #[error("{path} {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// The state and its own configuration disagree.
    #[error("the snapshot is damaged: its {what} {problem}; use another snapshot")]
    Inconsistent {
        /// What.
        what: &'static str,
        /// With what.
        problem: String,
    },
}

impl SnapshotError {
    /// For the exit code.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Io { .. } | Self::Outside { .. } | Self::Exists(_) | Self::DiskExists(_) => {
                ExitReason::HostUnavailable
            }
            Self::Name(_) | Self::Format { .. } | Self::Inconsistent { .. } => ExitReason::InvalidConfig,
        }
    }
}

/// What a [`Writer`] writes.
pub(crate) struct Job {
    /// Where to.
    pub(crate) folder: PathBuf,
    /// Where it may go.
    pub(crate) allowed: Paths,
    /// The `state` file's bytes.
    pub(crate) state: Vec<u8>,
    /// Guest memory, which nobody changes.
    pub(crate) memory: Arc<Memory>,
    /// Whether the memory is a private mapping of another snapshot's file.
    pub(crate) mapped_file: bool,
    /// /proc/self/pagemap: what of the memory was ever touched.
    pub(crate) pagemap: Option<Arc<File>>,
    /// Where the files of the disks are.
    pub(crate) scratch: PathBuf,
    /// Files of disks.
    pub(crate) disks: Vec<String>,
}

/// The thread that writes a snapshot. At its end it sends [`Event::SnapshotEnded`].
pub(crate) struct Writer(JoinHandle<Result<u64, SnapshotError>>);

impl Writer {
    /// Starts writing.
    pub(crate) fn start(job: Job, mailbox: Arc<Mailbox>) -> io::Result<Self> {
        let entry = jail::thread(Kind::Snapshot);
        let thread = thread::Builder::new()
            .name("snapshot".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || {
                entry.enter();
                let contents = folder::Contents {
                    state: &job.state,
                    memory: &job.memory,
                    mapped_file: job.mapped_file,
                    pagemap: job.pagemap.as_deref(),
                    scratch: &job.scratch,
                    disks: &job.disks,
                };
                let result = if job.allowed.may_write(&job.folder) {
                    folder::write(&job.folder, &contents)
                } else {
                    Err(SnapshotError::Outside {
                        folder: job.folder,
                        allowed: job.allowed.to_string(),
                    })
                };
                mailbox.send(Event::SnapshotEnded);
                result
            })?;
        Ok(Self(thread))
    }

    /// The bytes of memory that were written, once the thread has ended.
    pub(crate) fn join(self) -> Result<u64, SnapshotError> {
        self.0.join().unwrap_or_else(|_| {
            Err(SnapshotError::Inconsistent {
                what: "writer",
                problem: "panicked".to_owned(),
            })
        })
    }
}
