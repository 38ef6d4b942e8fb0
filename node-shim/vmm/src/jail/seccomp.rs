//! The system calls that each kind of thread may make. One file for each kind; this one makes filters of them.
//!
//! A thread that a confined thread starts has both filters, so what the main thread may do includes what all those need that it starts later:
//! see [`main`]. Threads share their memory: whoever controls one can make another do what that one may. The lists are narrow for
//! each kind all the same, because the first step of a break-out happens on a thread that faces the guest.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

mod any;
mod console;
mod disk;
mod disk_io;
mod ioctl;
mod main;
mod net;
mod numbers;
mod snapshot;
mod start;
mod vcpu;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The event loop.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// Serves a disk's queues.
    Disk,
    /// Carries out requests of a disk.
    DiskIo,
    /// Serves a queue pair of an interface.
    Net,
    /// Writes the guest's consoles to stdout.
    Console,
    /// Writes a snapshot.
    Snapshot,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 7] = [
        Self::Main,
        Self::Vcpu,
        Self::Disk,
        Self::DiskIo,
        Self::Net,
        Self::Console,
        Self::Snapshot,
    ];

    /// What it does, for a message.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vCPU",
            Self::Disk => "disk",
            Self::DiskIo => "disk IO",
            Self::Net => "network",
            Self::Console => "console",
            Self::Snapshot => "snapshot",
        }
    }
}

/// What the lists depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// This process.
    pub(crate) pid: u32,
    /// The signal that takes a vCPU out of the guest.
    pub(crate) kick_signal: libc::c_int,
    /// The main thread connects to Unix sockets: the node agent's, or those of the guest's vsock ports.
    pub(crate) connects: bool,
}

/// What happens to a system call that is not in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is not made, and the process ends: see [`super::violation`].
    Enforce,
    /// It is made, and the kernel notes it in its audit log.
    Log,
}

impl Mode {
    fn action(self) -> SeccompAction {
        match self {
            Self::Enforce => SeccompAction::Trap,
            Self::Log => SeccompAction::Log,
        }
    }
}

/// Makes the filters of a kind of threads, in the order in which they are installed. The last is that of its list.
pub(crate) fn filters(kind: Kind, facts: Facts, mode: Mode) -> Result<Vec<BpfProgram>, BackendError> {
    let rules = rules(kind, facts);
    let first = (kind == Kind::Main).then(|| first(&rules, mode));
    let own = SeccompFilter::new(rules.0, mode.action(), SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(first.into_iter().chain([own.try_into()?]).collect())
}

/// Makes the filter of the main thread that comes before that of its list; of two filters the sterner one counts. It refuses `clone3` as kernels
/// do that lack it, so that the C library falls back to `clone`, whose flags a filter can see. Otherwise it allows the calls that the list has
/// rules for: see [`numbers`].
fn first(rules: &Rules, mode: Mode) -> BpfProgram {
    let mut actions: BTreeMap<u32, u32> = rules
        .0
        .keys()
        .filter_map(|number| Some((u32::try_from(*number).ok()?, libc::SECCOMP_RET_ALLOW)))
        .collect();
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    actions.extend(u32::try_from(libc::SYS_clone3).map(|number| (number, refused.into())));
    numbers::program(&actions, mode.action().into())
}

fn rules(kind: Kind, facts: Facts) -> Rules {
    let mut rules = Rules::default();
    match kind {
        Kind::Main => main::add(&mut rules, facts),
        Kind::Vcpu => vcpu::add(&mut rules, facts),
        Kind::Disk => disk::add(&mut rules),
        Kind::DiskIo => disk_io::add(&mut rules),
        Kind::Net => net::add(&mut rules),
        Kind::Console => console::add(&mut rules),
        Kind::Snapshot => snapshot::add(&mut rules),
    }
    any::add(&mut rules, facts);
    rules
}

/// A test of one argument.
struct Argument {
    index: u8,
    bits: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
}

/// The low 32 bits of an argument that the kernel takes as an int are this.
fn is(index: u8, value: u32) -> Argument {
    Argument {
        index,
        bits: SeccompCmpArgLen::Dword,
        operator: SeccompCmpOp::Eq,
        value: u64::from(value),
    }
}

/// All 64 bits of an argument are this.
fn is_long(index: u8, value: u64) -> Argument {
    Argument {
        index,
        bits: SeccompCmpArgLen::Qword,
        operator: SeccompCmpOp::Eq,
        value,
    }
}

/// An argument has none of these bits.
fn lacks(index: u8, bits: u32) -> Argument {
    Argument {
        index,
        bits: SeccompCmpArgLen::Qword,
        operator: SeccompCmpOp::MaskedEq(u64::from(bits)),
        value: 0,
    }
}

/// A list. No rules for a call: it is allowed whatever its arguments.
#[derive(Clone, Debug, Default)]
struct Rules(BTreeMap<i64, Vec<SeccompRule>>);

impl Rules {
    /// Allows calls whatever their arguments.
    fn allow(&mut self, calls: &[i64]) {
        for call in calls {
            self.0.insert(*call, Vec::new());
        }
    }

    /// Allows a call whose arguments pass every test, beside what else of it is allowed.
    fn allow_if(&mut self, call: i64, tests: impl IntoIterator<Item = Argument>) {
        let conditions = tests.into_iter().map(|test| {
            let Argument {
                index,
                bits,
                operator,
                value,
            } = test;
            // A call has six arguments, and the lists name no seventh.
            SeccompCondition::new(index, bits, operator, value).expect("an argument of a system call")
        });
        let rule = SeccompRule::new(conditions.collect()).expect("a test in every rule");
        match self.0.get_mut(&call) {
            Some(rules) if rules.is_empty() => {}
            Some(rules) if rules.contains(&rule) => {}
            Some(rules) => rules.push(rule),
            None => {
                self.0.insert(call, vec![rule]);
            }
        }
    }

    /// Allows `ioctl` with these requests.
    fn allow_ioctls(&mut self, requests: &[u32]) {
        for request in requests {
            self.allow_if(libc::SYS_ioctl, [is(1, *request)]);
        }
    }
}

#[cfg(test)]
mod tests;
