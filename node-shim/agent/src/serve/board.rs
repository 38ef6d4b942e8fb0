//! What this node's guests do, which VirtualMachine says so, and what is to be written next. Pure: it is told the time.
//!
//! A guest is known by the pod that the kubelet gave its device to; a VirtualMachine by the `status.podName` that the operator wrote.
//! `status.guest` is left as it is when a VM ends: its `podUID` says which run it speaks of.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crds::VirtualMachine;
use crds::guest;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use node_shim_protocol::agent::{GuestState, GuestStatus, KERNEL_MAX_BYTES};

use super::identity::PodName;

/// Least time between two writes to one VirtualMachine; what happens in between is written together.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// How long `Booting` waits for the `Running` that usually follows, which saves a write.
pub(super) const BOOTING_HOLD: Duration = Duration::from_secs(1);
/// Longest pause after writes that failed; the first is [`INTERVAL`], and it doubles.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Which conversation a report comes from; a later one has a greater id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnectionId(u64);

impl ConnectionId {
    /// An id that was not there before.
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a conversation says.
#[derive(Clone, Debug)]
pub(super) enum Report {
    /// What the guest does.
    Guest {
        /// The caller.
        pod: PodName,
        /// The conversation.
        connection: ConnectionId,
        /// What the guest does.
        status: GuestStatus,
    },
    /// The conversation is over.
    HungUp {
        /// The caller.
        pod: PodName,
        /// The conversation.
        connection: ConnectionId,
    },
}

/// A VirtualMachine's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VmName {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
}

/// A write that is due.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Write {
    /// The VirtualMachine.
    pub(super) vm: VmName,
    /// Its UID: another VM of the same name is not written to.
    pub(super) uid: String,
    /// The new `status.guest`.
    pub(super) guest: guest::GuestStatus,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Written.
    Done,
    /// The VirtualMachine is not there any more, or is another.
    Gone,
    /// Anything else: it is tried again.
    Failed,
}

/// A guest that is connected.
#[derive(Debug)]
struct Guest {
    connection: ConnectionId,
    status: GuestStatus,
    changed_at: Instant,
}

/// A VirtualMachine of this node.
#[derive(Debug)]
struct Target {
    uid: String,
    pod: PodName,
    pod_uid: String,
    written: Option<guest::GuestStatus>,
    in_flight: Option<guest::GuestStatus>,
    not_before: Option<Instant>,
    failures: u32,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Board {
    guests: BTreeMap<PodName, Guest>,
    targets: BTreeMap<VmName, Target>,
}

impl Board {
    /// A conversation said something.
    pub(super) fn report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Guest {
                pod,
                connection,
                status,
            } => {
                let known = self.guests.get(&pod);
                let newer = known.is_none_or(|known| known.connection <= connection);
                if newer && known.is_none_or(|known| known.status != status) {
                    self.guests.insert(
                        pod,
                        Guest {
                            connection,
                            status,
                            changed_at: now,
                        },
                    );
                } else if let (true, Some(known)) = (newer, self.guests.get_mut(&pod)) {
                    known.connection = connection;
                }
            }
            Report::HungUp { pod, connection } => {
                if self
                    .guests
                    .get(&pod)
                    .is_some_and(|known| known.connection == connection)
                {
                    self.guests.remove(&pod);
                }
            }
        }
    }

    /// A VirtualMachine of this node is new or has changed.
    pub(super) fn observe(&mut self, vm: &VirtualMachine) {
        let Some(name) = vm_name(vm) else { return };
        let status = vm.status.as_ref();
        let pod = status.and_then(|status| Some((status.pod_name.clone()?, status.pod_uid.clone()?)));
        let (Some((pod_name, pod_uid)), Some(uid)) = (pod, vm.metadata.uid.clone()) else {
            self.targets.remove(&name);
            return;
        };
        let pod = PodName {
            namespace: name.namespace.clone(),
            name: pod_name,
        };
        match self.targets.get_mut(&name) {
            Some(target) if target.uid == uid => {
                // What was written is remembered and not read: the watch may be behind.
                target.pod = pod;
                target.pod_uid = pod_uid;
            }
            Some(_) | None => {
                let written = status.and_then(|status| status.guest.clone());
                let target = Target {
                    uid,
                    pod,
                    pod_uid,
                    written,
                    in_flight: None,
                    not_before: None,
                    failures: 0,
                };
                self.targets.insert(name, target);
            }
        }
    }

    /// A VirtualMachine is not of this node any more.
    pub(super) fn forget(&mut self, vm: &VirtualMachine) {
        if let Some(name) = vm_name(vm) {
            self.targets.remove(&name);
        }
    }

    /// Only these VirtualMachines are of this node: what the watch knows after it has begun again.
    pub(super) fn retain(&mut self, names: &std::collections::BTreeSet<VmName>) {
        self.targets.retain(|name, _| names.contains(name));
    }

    /// At most `room` writes that are due, which are in flight from now on, and when the next will be.
    pub(super) fn due(&mut self, now: Instant, room: usize) -> (Vec<Write>, Option<Instant>) {
        let mut writes = Vec::new();
        let mut next: Option<Instant> = None;
        for (name, target) in &mut self.targets {
            let Some(guest) = self.guests.get(&target.pod) else {
                continue;
            };
            let wanted = render(&guest.status, &target.pod_uid);
            if target.in_flight.is_some() || target.written.as_ref() == Some(&wanted) {
                continue;
            }
            let at = guest.due_at().max(target.not_before.unwrap_or(now));
            if at <= now && writes.len() == room {
                // The end of a write makes room.
            } else if at <= now {
                target.in_flight = Some(wanted.clone());
                writes.push(Write {
                    vm: name.clone(),
                    uid: target.uid.clone(),
                    guest: wanted,
                });
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        (writes, next)
    }

    /// A write has ended.
    pub(super) fn ended(&mut self, vm: &VmName, uid: &str, outcome: Outcome, now: Instant) {
        let Some(target) = self.targets.get_mut(vm).filter(|target| target.uid == uid) else {
            return;
        };
        let sent = target.in_flight.take();
        match outcome {
            Outcome::Done => {
                target.written = sent;
                target.failures = 0;
                target.not_before = Some(now + INTERVAL);
            }
            Outcome::Gone => {
                self.targets.remove(vm);
            }
            Outcome::Failed => {
                let pause = INTERVAL * 2u32.saturating_pow(target.failures.min(16));
                target.failures = target.failures.saturating_add(1);
                target.not_before = Some(now + pause.min(MAX_PAUSE));
            }
        }
    }
}

impl Guest {
    fn due_at(&self) -> Instant {
        match self.status.state {
            GuestState::Booting => self.changed_at + BOOTING_HOLD,
            GuestState::Running | GuestState::PoweringOff => self.changed_at,
        }
    }
}

/// The name of an object that is in a namespace.
pub(super) fn vm_name(vm: &VirtualMachine) -> Option<VmName> {
    Some(VmName {
        namespace: vm.metadata.namespace.clone()?,
        name: vm.metadata.name.clone()?,
    })
}

/// Whether a shim's status fits into the API's fields.
pub(super) fn is_plausible(status: &GuestStatus) -> bool {
    let GuestStatus {
        state: _,
        boot_time_ms,
        vcpus,
        memory_bytes,
        resets,
        kernel,
    } = status;
    boot_time(*boot_time_ms).is_some()
        && i32::try_from(*vcpus).is_ok()
        && i64::try_from(*memory_bytes).is_ok()
        && i64::try_from(*resets).is_ok()
        && kernel
            .as_ref()
            .is_none_or(|kernel| kernel.len() <= KERNEL_MAX_BYTES && !kernel.chars().any(char::is_control))
}

/// Whole seconds, as Kubernetes writes times: what is read back is what was written.
fn boot_time(milliseconds: u64) -> Option<Time> {
    let seconds = i64::try_from(milliseconds / 1000).ok()?;
    Timestamp::from_second(seconds).ok().map(Time)
}

fn render(status: &GuestStatus, pod_uid: &str) -> guest::GuestStatus {
    let state = match status.state {
        GuestState::Booting => guest::GuestState::Booting,
        GuestState::Running => guest::GuestState::Running,
        GuestState::PoweringOff => guest::GuestState::PoweringOff,
    };
    guest::GuestStatus {
        pod_uid: Some(pod_uid.to_owned()),
        state: Some(state),
        boot_time: boot_time(status.boot_time_ms),
        vcpus: i32::try_from(status.vcpus).ok(),
        memory: Some(quantity(status.memory_bytes)),
        resets: i64::try_from(status.resets).ok(),
        kernel: status.kernel.clone(),
    }
}

/// Bytes in the largest binary unit that divides them, as Kubernetes writes quantities.
fn quantity(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    let unit = UNITS
        .into_iter()
        .find(|(size, _)| bytes > 0 && bytes.is_multiple_of(*size));
    unit.map_or_else(
        || bytes.to_string(),
        |(size, suffix)| format!("{}{suffix}", bytes / size),
    )
}

#[cfg(test)]
mod tests;
