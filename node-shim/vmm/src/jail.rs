//! What this process and its threads may do once there is a guest: see docs/isolation.md.
//!
//! ```text
//! main: no_new_privs ── files, sockets, taps, /dev/kvm opened ── Landlock ── main's filter ── every other thread has its own ── first instruction
//!                          │                                                     │
//!                          └─ threads of disks, interfaces, console              └─ threads of vCPUs, snapshots, what is plugged
//!                             each installs its filter before anything else         the same, beside main's
//! ```

use std::io;
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use node_shim_protocol::control::{Isolation, SeccompMode};
use node_shim_virtio::threads::ThreadKind;
use seccompiler::BpfProgram;

use self::seccomp::{Facts, Kind, Mode};
use crate::{log, signals, termination};
use node_shim_virtio::lock::lock;

pub(crate) mod paths;
pub(crate) mod seccomp;
mod violation;

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JailError {
    /// Privileges could come back.
    #[error("failed to set no_new_privs: {0}")]
    Privileges(io::Error),
    /// The handler that names violations cannot be installed.
    #[error("failed to install the handler of SIGSYS: {0}")]
    Handler(io::Error),
    /// A list makes no filter: a defect.
    #[error("failed to make the seccomp filter of {kind} threads: {source}")]
    Compile {
        /// Whose.
        kind: &'static str,
        /// Why.
        source: seccompiler::BackendError,
    },
    /// The kernel does not take it.
    #[error(
        "failed to install the seccomp filter of a {kind} thread: {source}; this needs a kernel with CONFIG_SECCOMP_FILTER, and a sandbox that \
         allows seccomp(2)"
    )]
    Install {
        /// Whose.
        kind: &'static str,
        /// Why.
        source: seccompiler::Error,
    },
    /// A directory that may be used cannot be opened.
    #[error(transparent)]
    Paths(paths::PathsError),
}

/// How threads are confined from now on.
struct Jail {
    facts: Facts,
    mode: Mode,
    /// By [`Kind`], made when the first thread of it is started.
    filters: [OnceLock<Arc<[BpfProgram]>>; Kind::ALL.len()],
    /// Threads that were started and have no filter yet.
    pending: Mutex<usize>,
    entered: Condvar,
}

/// Set once, before the first thread. Not in unit tests, whose threads stay as they are.
static JAIL: OnceLock<Jail> = OnceLock::new();

/// Closes what whoever started this process left open for it, but for the standard descriptors: nothing of that is ours. To be called before
/// anything is opened.
pub(crate) fn close_inherited() {
    // SAFETY: nothing in this process owns a descriptor yet but the standard ones. Kernels before 5.9 lack the call; there they stay.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// Takes away what no later step needs, and says how threads are confined.
pub(crate) fn prepare(mode: Mode, connects: bool) -> Result<(), JailError> {
    rustix::thread::set_no_new_privs(true).map_err(|error| JailError::Privileges(error.into()))?;
    violation::install_handler().map_err(JailError::Handler)?;
    keep_allocator_from_files();
    let jail = Jail {
        facts: Facts {
            pid: std::process::id(),
            kick_signal: signals::kick_signal(),
            connects,
        },
        mode,
        filters: Default::default(),
        pending: Mutex::default(),
        entered: Condvar::new(),
    };
    // Set once, from main.
    let _ = JAIL.set(jail);
    Ok(())
}

/// glibc's arenas. It makes as many without looking at the number of CPUs (`arena_test` on 64 bits).
const ARENAS_MAX: libc::c_int = 8;

/// glibc's allocator opens files at odd moments, on whatever thread it is: `/sys/devices/system/cpu/online` when it has made its eighth arena,
/// `/proc/sys/vm/overcommit_memory` when it first shrinks one (malloc/arena.c, `arena_get2` and `heap_trim`). With these limits it has no need to.
fn keep_allocator_from_files() {
    for (parameter, value) in [
        (libc::M_ARENA_MAX, ARENAS_MAX),
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
    ] {
        // SAFETY: only sets limits of the allocator. One that does not know a limit has none.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Makes the filters that every VM needs, for whoever installs them later.
pub(crate) fn make_filters() {
    let Some(jail) = JAIL.get() else { return };
    for kind in [Kind::Main, Kind::Vcpu] {
        // Who needs it finds out why there is none.
        let _ = jail.filters(kind);
    }
}

/// Confines the main thread and waits until every other one is. What is not open by now stays shut but for `paths`.
pub(crate) fn enter(paths: &paths::Paths) -> Result<Isolation, JailError> {
    let landlock_abi = paths.restrict().map_err(JailError::Paths)?;
    let Some(jail) = JAIL.get() else {
        return Ok(Isolation::default());
    };
    jail.enter(Kind::Main)?;
    let mut pending = lock(&jail.pending);
    while *pending > 0 {
        pending = jail
            .entered
            .wait(pending)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
    }
    Ok(Isolation {
        no_new_privs: true,
        seccomp: match jail.mode {
            Mode::Enforce => SeccompMode::Enforced,
            Mode::Log => SeccompMode::Logged,
        },
        landlock_abi,
    })
}

impl Jail {
    fn filters(&self, kind: Kind) -> Result<Arc<[BpfProgram]>, JailError> {
        let slot = &self.filters[kind as usize];
        if let Some(filters) = slot.get() {
            return Ok(Arc::clone(filters));
        }
        let filters = seccomp::filters(kind, self.facts, self.mode).map_err(|source| JailError::Compile {
            kind: kind.name(),
            source,
        })?;
        Ok(Arc::clone(slot.get_or_init(|| filters.into())))
    }

    /// Confines the calling thread.
    fn enter(&self, kind: Kind) -> Result<(), JailError> {
        let filters = self.filters(kind)?;
        violation::set_kind(kind);
        for filter in filters.iter() {
            seccompiler::apply_filter(filter).map_err(|source| JailError::Install {
                kind: kind.name(),
                source,
            })?;
        }
        Ok(())
    }
}

/// A thread that has been announced, and is confined when it enters.
pub(crate) struct Entry(Option<(&'static Jail, Kind)>);

impl Entry {
    /// Confines the calling thread. Where that fails the process ends.
    pub(crate) fn enter(self) {
        if let Some((jail, kind)) = self.0
            && let Err(error) = jail.enter(kind)
        {
            termination::end(node_shim_protocol::ExitReason::HostUnavailable, &error.to_string());
        }
    }
}

impl Drop for Entry {
    /// It has entered or ended, or there is no such thread.
    fn drop(&mut self) {
        if let Some((jail, _)) = self.0 {
            *lock(&jail.pending) -= 1;
            jail.entered.notify_all();
        }
    }
}

/// Announces a thread: called by who starts it.
pub(crate) fn thread(kind: Kind) -> Entry {
    let jail = JAIL.get();
    if let Some(jail) = jail {
        *lock(&jail.pending) += 1;
    }
    Entry(jail.map(|jail| (jail, kind)))
}

/// [`thread`], for those of devices.
pub(crate) fn device_thread(kind: ThreadKind) -> Box<dyn FnOnce() + Send> {
    let entry = thread(match kind {
        ThreadKind::Disk => Kind::Disk,
        ThreadKind::DiskIo => Kind::DiskIo,
        ThreadKind::Net => Kind::Net,
    });
    Box::new(move || entry.enter())
}

/// Says what is in effect.
pub(crate) fn report(isolation: Isolation) {
    let seccomp = match isolation.seccomp {
        SeccompMode::Enforced => "enforced",
        SeccompMode::Logged => "violations are only logged",
        SeccompMode::Off => "off",
    };
    let landlock = match isolation.landlock_abi {
        0 => "not offered by this kernel".to_owned(),
        abi => format!("ABI {abi}"),
    };
    log::line(format_args!(
        "isolation: no new privileges; seccomp {seccomp}; Landlock {landlock}"
    ));
}

#[cfg(test)]
mod tests;
