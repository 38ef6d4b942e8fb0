//! `freeze` and `thaw`: all writes to file systems on block devices are held up, so that what is on the disks is whole.
//!
//! ```text
//! Idle --freeze--> Freezing --all of them stand still--> Frozen --thaw--> Idle
//!                     |  ^ one fails: all are thawed        |
//!                     v                                     v
//!                   the deadline: all are thawed, and the next `thaw` is told that it came too late
//! ```
//!
//! The deadline is the agent's own, so a host that is lost leaves no guest frozen. An agent that is killed leaves a marker in `/run`, and its
//! next process thaws what that speaks of ([`recover`]). File systems freeze in the reverse order of their mounts, so that one that lies in
//! a file of another freezes before that; they thaw the other way round.

mod control;
mod mounts;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use node_shim_protocol::guest::{FailureKind, Frozen, LIST_MAX, Response, TEXT_MAX_BYTES, Thawed, printable};

pub use self::mounts::{FileSystem, Mount, plan};
use crate::lock::lock;
use crate::log;

/// Says that file systems are frozen. On a file system without a device, which never is.
pub const MARKER: &str = "/run/tandem-guest-agent.frozen";
/// What is mounted, in the namespace of the agent's first thread.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Why file systems are not frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// They are frozen, or about to be.
    #[error("the file systems are frozen already; thaw them first")]
    Already,
    /// They are about to be.
    #[error("the file systems are about to be frozen; wait until they are")]
    Busy,
    /// Nobody froze them.
    #[error("no file system is frozen; freeze them first")]
    NotFrozen,
    /// The deadline was before the thaw.
    #[error(
        "the file systems were thawed when their time was over, so what was copied meanwhile may not be whole; freeze for longer"
    )]
    Expired,
    /// What is mounted is not to be learned.
    #[error("failed to read {MOUNTS}: {0}")]
    Mounts(io::Error),
    /// The marker cannot be written.
    #[error("failed to write {path}, without which a restart of the agent would not thaw: {source}")]
    Marker {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no thread to thaw at the deadline.
    #[error("failed to start the thread that thaws at the deadline: {0}")]
    Thread(io::Error),
    /// One of them does not freeze.
    #[error("failed to freeze {mount}: {source}; nothing is frozen")]
    Freeze {
        /// Where it is mounted.
        mount: String,
        /// Why not.
        source: io::Error,
    },
}

enum State {
    /// Nothing is frozen. `expired` until the thaw that came too late.
    Idle { expired: bool },
    /// Those that stand still so far.
    Freezing(Vec<OwnedFd>),
    /// All of them stand still.
    Frozen(Vec<OwnedFd>),
}

/// What is frozen, and until when.
pub struct Freezer {
    state: Mutex<(State, u64)>,
    changed: Condvar,
    marker: PathBuf,
}

impl Freezer {
    /// Nothing is frozen.
    pub fn new(marker: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new((State::Idle { expired: false }, 0)),
            changed: Condvar::new(),
            marker,
        })
    }

    /// Whether file systems are frozen or about to be.
    pub fn is_frozen(&self) -> bool {
        match lock(&self.state).0 {
            State::Idle { .. } => false,
            State::Freezing(_) | State::Frozen(_) => true,
        }
    }

    /// Freezes these file systems, and thaws them after this time if nobody has.
    ///
    /// # Errors
    /// When one of them does not freeze, or there would be nobody to thaw them. Then none is frozen.
    pub fn freeze(self: &Arc<Self>, file_systems: &[FileSystem], timeout: Duration) -> Result<Frozen, FreezeError> {
        let generation = self.begin()?;
        let result = self.freeze_all(file_systems, generation, timeout);
        let mut state = lock(&self.state);
        match (&mut state.0, result) {
            (State::Freezing(files), Ok(frozen)) => {
                state.0 = State::Frozen(std::mem::take(files));
                Ok(frozen)
            }
            // The deadline was first, and nobody is to be told again.
            (State::Idle { expired }, Ok(_)) => {
                *expired = false;
                Err(FreezeError::Expired)
            }
            (State::Frozen(_), Ok(frozen)) => Ok(frozen),
            (State::Freezing(files) | State::Frozen(files), Err(error)) => {
                let files = std::mem::take(files);
                state.0 = State::Idle { expired: false };
                self.thaw_files(&files);
                self.changed.notify_all();
                Err(error)
            }
            (State::Idle { expired }, Err(error)) => {
                *expired = false;
                Err(error)
            }
        }
    }

    fn begin(&self) -> Result<u64, FreezeError> {
        let mut state = lock(&self.state);
        match state.0 {
            State::Idle { .. } => {
                state.0 = State::Freezing(Vec::new());
                state.1 += 1;
                Ok(state.1)
            }
            State::Freezing(_) | State::Frozen(_) => Err(FreezeError::Already),
        }
    }

    fn freeze_all(
        self: &Arc<Self>,
        file_systems: &[FileSystem],
        generation: u64,
        timeout: Duration,
    ) -> Result<Frozen, FreezeError> {
        fs::write(&self.marker, b"").map_err(|source| FreezeError::Marker {
            path: self.marker.clone(),
            source,
        })?;
        // What is written out now need not be while the others stand still already.
        rustix::fs::sync();
        log::set_mute(true);
        let freezer = Arc::clone(self);
        let deadline = Instant::now() + timeout;
        let guard = thread::Builder::new().name("thaw".into()).stack_size(128 * 1024);
        guard
            .spawn(move || freezer.thaw_at(deadline, generation))
            .map_err(FreezeError::Thread)?;
        let mut frozen = Frozen {
            file_systems: 0,
            skipped: Vec::new(),
        };
        for file_system in file_systems {
            if self.freeze_one(file_system)? {
                frozen.file_systems += 1;
            } else if frozen.skipped.len() < LIST_MAX {
                frozen.skipped.push(printable(file_system.name(), TEXT_MAX_BYTES));
            }
        }
        Ok(frozen)
    }

    /// Freezes a file system. `false` when it is of a kind that cannot be, or other mounts lie upon all of its own.
    fn freeze_one(&self, file_system: &FileSystem) -> Result<bool, FreezeError> {
        let failed = |source| FreezeError::Freeze {
            mount: file_system.name().to_owned(),
            source,
        };
        let Some(file) = control::open(file_system).map_err(failed)? else {
            return Ok(false);
        };
        let frozen = control::freeze(&file).map_err(failed)?;
        if frozen {
            self.keep(file)?;
        }
        Ok(frozen)
    }

    /// Keeps one that stands still, to be thawed; at once where the deadline is over.
    fn keep(&self, file: OwnedFd) -> Result<(), FreezeError> {
        match &mut lock(&self.state).0 {
            State::Freezing(files) | State::Frozen(files) => {
                files.push(file);
                Ok(())
            }
            State::Idle { .. } => {
                self.thaw_files(&[file]);
                Err(FreezeError::Expired)
            }
        }
    }

    /// Thaws what is frozen.
    ///
    /// # Errors
    /// When nothing is, and why not.
    pub fn thaw(&self) -> Result<Thawed, FreezeError> {
        let mut state = lock(&self.state);
        match &mut state.0 {
            State::Idle { expired } => Err(if std::mem::take(expired) {
                FreezeError::Expired
            } else {
                FreezeError::NotFrozen
            }),
            // Who freezes has yet to be told that they are.
            State::Freezing(_) => Err(FreezeError::Busy),
            State::Frozen(files) => {
                let files = std::mem::take(files);
                state.0 = State::Idle { expired: false };
                let file_systems = self.thaw_files(&files);
                self.changed.notify_all();
                Ok(Thawed { file_systems })
            }
        }
    }

    /// Thaws at the deadline what was frozen in this generation and still is.
    fn thaw_at(&self, deadline: Instant, generation: u64) {
        let mut state = lock(&self.state);
        loop {
            let (State::Freezing(files) | State::Frozen(files), current) = &mut *state else {
                return;
            };
            if *current != generation {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let files = std::mem::take(files);
                state.0 = State::Idle { expired: true };
                let count = self.thaw_files(&files);
                return log::line(format_args!(
                    "nobody thawed {count} file systems in time: it is done now"
                ));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Thaws them in the reverse order, and says how many were frozen.
    fn thaw_files(&self, files: &[OwnedFd]) -> u32 {
        let count = files.iter().rev().filter(|file| control::thaw(file).is_ok()).count();
        // One that is left makes a restart thaw once more.
        let _ = fs::remove_file(&self.marker);
        log::set_mute(false);
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// `freeze` for all file systems of this machine.
pub(crate) fn respond(freezer: &Arc<Freezer>, timeout: Duration) -> Response {
    let mounts = fs::read_to_string(MOUNTS).map_err(FreezeError::Mounts);
    response(
        mounts
            .and_then(|mounts| freezer.freeze(&plan(&mounts), timeout))
            .map(Response::Frozen),
    )
}

/// `thaw`.
pub(crate) fn respond_to_thaw(freezer: &Freezer) -> Response {
    response(freezer.thaw().map(Response::Thawed))
}

fn response(result: Result<Response, FreezeError>) -> Response {
    result.unwrap_or_else(|error| {
        let kind = match error {
            FreezeError::Already | FreezeError::Busy | FreezeError::NotFrozen | FreezeError::Expired => {
                FailureKind::Refused
            }
            FreezeError::Mounts(_)
            | FreezeError::Marker { .. }
            | FreezeError::Thread(_)
            | FreezeError::Freeze { .. } => FailureKind::Failed,
        };
        Response::error(kind, &error.to_string())
    })
}

/// Thaws what a process has frozen that was killed, of which the marker tells. How many; `None` when there is no marker.
///
/// # Errors
/// When what is mounted is not to be learned.
pub fn recover(marker: &Path) -> Result<Option<usize>, FreezeError> {
    if !marker.exists() {
        return Ok(None);
    }
    let mounts = fs::read_to_string(MOUNTS).map_err(FreezeError::Mounts)?;
    let count = recover_all(&plan(&mounts));
    let _ = fs::remove_file(marker);
    Ok(Some(count))
}

fn recover_all(file_systems: &[FileSystem]) -> usize {
    let thawed = |file_system: &&FileSystem| {
        let file = control::open(file_system).ok().flatten();
        file.is_some_and(|file| control::thaw(&file).is_ok())
    };
    file_systems.iter().rev().filter(thawed).count()
}

#[cfg(test)]
mod tests;
