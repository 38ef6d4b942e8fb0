//! CPUs and memory that were plugged are taken into use: at the agent's start, when the kernel tells of them, and when the host asks.
//!
//! Memory goes to the zone that the kernel chooses with its policy `auto-movable`, which is switched on where the kernel has it (5.15) and
//! nobody has chosen otherwise: as much as can be unplugged again, but no more than a kernel that needs memory of its own can live with
//! (Documentation/admin-guide/mm/memory-hotplug.rst). An older kernel is told to make all of it movable.

mod uevent;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use node_shim_protocol::guest::Online;

use self::uevent::{Heard, Uevents};
use crate::log;

/// What can be plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cpu,
    Memory,
}

/// What is written to a CPU's `online`.
const CPU_ONLINE: &str = "1";

impl Kind {
    const ALL: [Self; 2] = [Self::Cpu, Self::Memory];

    /// Its directory in `/sys/devices/system`, which is also the beginning of its devices' names and its subsystem.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }

    const fn attribute(self) -> &'static str {
        match self {
            Self::Cpu => "online",
            Self::Memory => "state",
        }
    }

    const fn offline(self) -> &'static str {
        match self {
            Self::Cpu => "0",
            Self::Memory => "offline",
        }
    }

    /// Whether this is the name of a device and not of anything else in its directory.
    pub(crate) fn owns(self, name: &str) -> bool {
        let number = name.strip_prefix(self.word());
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

/// The kernel's view of what there is.
#[derive(Clone, Debug)]
pub struct System {
    sys: PathBuf,
    proc: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
        }
    }
}

impl System {
    /// Where sysfs is.
    pub(crate) fn sys(&self) -> &Path {
        &self.sys
    }

    /// Where procfs is.
    pub(crate) fn proc(&self) -> &Path {
        &self.proc
    }

    /// Takes everything into use that is not.
    pub(crate) fn online_all(&self) -> Online {
        let mut done = Online::default();
        for kind in Kind::ALL {
            let Ok(entries) = fs::read_dir(self.directory(kind)) else {
                continue;
            };
            for entry in entries.flatten() {
                if let Some(name) = entry.file_name().to_str().filter(|name| kind.owns(name)) {
                    self.online_one(kind, name, &mut done);
                }
            }
        }
        done
    }

    /// Takes a device into use, and counts it.
    fn online_one(&self, kind: Kind, name: &str, done: &mut Online) {
        let file = self.directory(kind).join(name).join(kind.attribute());
        // The first CPU has none, and a device may be gone again.
        let Ok(state) = fs::read_to_string(&file) else { return };
        if state.trim() != kind.offline() {
            return;
        }
        let written = match kind {
            Kind::Cpu => write(&file, CPU_ONLINE),
            Kind::Memory => self.online_memory(&file),
        };
        match (written, kind) {
            (Ok(()), Kind::Cpu) => done.cpus += 1,
            (Ok(()), Kind::Memory) => done.memory_blocks += 1,
            (Err(error), Kind::Cpu | Kind::Memory) => {
                done.failed += 1;
                log::line(format_args!("{name} does not come online: {error}"));
            }
        }
    }

    fn online_memory(&self, file: &Path) -> io::Result<()> {
        let policy = fs::read_to_string(self.policy()).ok();
        match memory_word(policy.as_deref()) {
            ANY_ZONE => write(file, ANY_ZONE),
            // Not every block can be movable.
            word => write(file, word).or_else(|_| write(file, ANY_ZONE)),
        }
    }

    /// Has the kernel choose zones such that memory can be unplugged again.
    fn choose_policy(&self) {
        let file = self.policy();
        if fs::read_to_string(&file).is_ok_and(|policy| policy.trim() == POLICY_OF_NOBODY)
            && let Err(error) = write(&file, POLICY)
        {
            log::line(format_args!(
                "the kernel's policy for plugged memory stays {POLICY_OF_NOBODY}: {error}"
            ));
        }
    }

    fn policy(&self) -> PathBuf {
        self.sys.join("module/memory_hotplug/parameters/online_policy")
    }

    fn directory(&self, kind: Kind) -> PathBuf {
        self.sys.join("devices/system").join(kind.word())
    }
}

/// The kernel's default policy, which makes nothing movable.
const POLICY_OF_NOBODY: &str = "contig-zones";
const POLICY: &str = "auto-movable";
/// What is written to a block's `state`.
const ANY_ZONE: &str = "online";
const MOVABLE_ZONE: &str = "online_movable";

/// What a block is told: a kernel that has policies follows its own.
fn memory_word(policy: Option<&str>) -> &'static str {
    if policy.is_some() { ANY_ZONE } else { MOVABLE_ZONE }
}

/// Writes to an attribute, which is there.
fn write(file: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .write(true)
        .open(file)?
        .write_all(text.as_bytes())
}

/// Takes into use what there is and what comes, in a thread of its own.
pub fn keep(system: System) {
    system.choose_policy();
    // Listens before it looks, so that nothing comes in between.
    let events = Uevents::listen();
    let first = system.online_all();
    tell(&first);
    let events = match events {
        Ok(events) => events,
        Err(error) => {
            return log::line(format_args!(
                "CPUs and memory that are plugged are noticed only when the host asks: failed to listen to the kernel: {error}"
            ));
        }
    };
    let thread = thread::Builder::new().name("uevents".into()).stack_size(128 * 1024);
    if let Err(error) = thread.spawn(move || follow(&system, &events, &first)) {
        log::line(format_args!(
            "failed to start a thread for the kernel's events: {error}"
        ));
    }
}

fn follow(system: &System, events: &Uevents, first: &Online) {
    let mut retries = Retries::default();
    retries.tried_all(first);
    loop {
        let mut done = Online::default();
        match events.next(retries.pause()) {
            Ok(Heard::Plugged(kind, name)) => {
                system.online_one(kind, &name, &mut done);
                retries.tried_one(&done);
            }
            Ok(Heard::Other) => continue,
            Ok(Heard::Lost | Heard::Silence) => {
                done = system.online_all();
                retries.tried_all(&done);
            }
            Err(error) => {
                log::line(format_args!("failed to hear of the kernel's events: {error}"));
                // For want of memory, most likely; what was missed meanwhile is found.
                thread::sleep(Duration::from_secs(1));
                done = system.online_all();
                retries.tried_all(&done);
            }
        }
        tell(&done);
    }
}

/// When what did not come online is tried again: a CPU of a busy host may not answer for longer than the kernel waits.
#[derive(Debug, Default)]
struct Retries {
    /// Failures in a row.
    failures: u32,
}

impl Retries {
    /// Tries after a failure, with pauses that double: a minute in all.
    const MOST: u32 = 6;

    /// What is new begins anew; what failed before is still to be tried.
    fn tried_one(&mut self, done: &Online) {
        if done.failed > 0 {
            self.failures = 1;
        }
    }

    fn tried_all(&mut self, done: &Online) {
        self.failures = if done.failed > 0 {
            self.failures.saturating_add(1)
        } else {
            0
        };
    }

    /// How long until the next; `None` when there is nothing to try, or no use in it.
    fn pause(&self) -> Option<Duration> {
        (1..=Self::MOST)
            .contains(&self.failures)
            .then(|| Duration::from_secs(1 << (self.failures - 1)))
    }
}

fn tell(done: &Online) {
    let Online {
        cpus,
        memory_blocks,
        failed: _,
    } = done;
    if *cpus > 0 || *memory_blocks > 0 {
        log::line(format_args!(
            "online: {cpus} more CPUs, {memory_blocks} more blocks of memory"
        ));
    }
}

#[cfg(test)]
mod tests;
