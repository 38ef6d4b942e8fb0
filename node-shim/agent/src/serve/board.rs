//! What this node's guests do and shall do, which VirtualMachine says so, and what is to be written and asked for next. Pure: it is told the
//! time.
//!
//! A guest is known by the pod that the kubelet gave its device to, and by that pod's UID; a VirtualMachine by the `status.podName` and
//! `status.podUID` that the operator wrote. `status.guest` is left as it is when a VM ends: its `podUID` says which run it speaks of.

#[cfg(test)]
mod disk_tests;
mod disks;
mod fields;
mod lenders;
mod orders;
#[cfg(test)]
mod resize_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crds::VirtualMachine;
use node_shim_protocol::agent::{DISKS_VERSION, GuestState, GuestStatus, Resize};

use super::identity::PodName;
use super::report::{ConnectionId, PodId, Report, What};
use disks::Disks;
pub(super) use disks::{DiskOrder, Wanted as WantedDisk};
pub(super) use fields::Fields;
use lenders::Lenders;
use orders::{Next, Orders};

/// Least time between two writes to one VirtualMachine; what happens in between is written together.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// How long `Booting` waits for the `Running` that usually follows, which saves a write.
pub(super) const BOOTING_HOLD: Duration = Duration::from_secs(1);
/// How long the answer to a target waits until the guest has what it says, which saves a write.
pub(super) const RESIZE_HOLD: Duration = Duration::from_secs(1);
/// Least time between two writes of a guest on its way to another size: what is waited for is its end, which is written at once.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Longest pause after writes that failed; the first is [`INTERVAL`], and it doubles.
const MAX_PAUSE: Duration = Duration::from_secs(30);

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
    /// What it is to have.
    pub(super) fields: Fields,
}

/// What is due.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Due {
    /// To be written; in flight from now on.
    pub(super) writes: Vec<Write>,
    /// To be asked for; counted as asked from now on.
    pub(super) orders: Vec<(ConnectionId, Resize)>,
    /// As `orders`, of disks.
    pub(super) disks: Vec<(ConnectionId, DiskOrder)>,
    /// Lenders that are to be told that their disk is back.
    pub(super) returned: Vec<ConnectionId>,
    /// When something is due next, if nothing happens.
    pub(super) next: Option<Instant>,
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
    /// What it does, once that was said.
    status: Option<GuestStatus>,
    changed_at: Instant,
    orders: Orders,
    disks: Disks,
    /// Version of the protocol that its shim speaks.
    version: u32,
}

/// A VirtualMachine of this node.
#[derive(Debug)]
struct Vm {
    uid: String,
    pod: PodId,
    /// What its guest shall have.
    wanted: Option<Resize>,
    /// What of disks it shall have; `None` where nobody says.
    disks: Option<Vec<WantedDisk>>,
    written: Fields,
    written_at: Option<Instant>,
    in_flight: Option<Fields>,
    not_before: Option<Instant>,
    failures: u32,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Board {
    guests: BTreeMap<PodId, Guest>,
    vms: BTreeMap<VmName, Vm>,
    lenders: Lenders,
}

impl Board {
    /// Of an agent that has just started: guests that its predecessor served have yet to say what they have.
    pub(super) fn begin(now: Instant) -> Self {
        Self {
            lenders: Lenders::begin(now),
            ..Self::default()
        }
    }

    /// A conversation said something. An older one of the same pod is not listened to any more.
    pub(super) fn report(&mut self, report: Report, now: Instant) {
        let Report { pod, connection, what } = report;
        let known = self.guests.get_mut(&pod).filter(|known| known.connection == connection);
        match (what, known) {
            (What::Connected(link), _) => self.connect(pod, connection, link.version, now),
            (What::Lent(_), _) => self.lenders.lend(pod, connection),
            (What::Withdrawn, _) => self.lenders.withdraw(&pod, connection),
            (What::Guest(status), Some(known)) => known.says(status, now),
            (What::Resized(resized), Some(known)) => {
                known.orders.answered(&resized, now);
                known.says(resized.status, now);
            }
            (What::Plugged(plugged), Some(known)) => {
                known.disks.answered(&plugged, now);
                known.says(plugged.status, now);
            }
            (What::HungUp, Some(_)) => {
                if let Some(guest) = self.guests.remove(&pod) {
                    let had = guest.status.map(|status| status.disks).unwrap_or_default();
                    let may_have = had.into_iter().chain(guest.disks.asked());
                    self.lenders.guest_left(&pod.name.namespace, may_have, now);
                }
            }
            (What::HungUp, None) => self.lenders.hang_up(&pod, connection),
            (What::Guest(_) | What::Resized(_) | What::Plugged(_), None) => {}
        }
    }

    /// What the pod's last conversation said is remembered; what it was asked for may not have arrived.
    fn connect(&mut self, pod: PodId, connection: ConnectionId, version: u32, now: Instant) {
        let guest = self.guests.entry(pod).or_insert(Guest {
            connection,
            status: None,
            changed_at: now,
            orders: Orders::default(),
            disks: Disks::default(),
            version,
        });
        if guest.connection < connection {
            guest.connection = connection;
            guest.orders = Orders::default();
            guest.disks = Disks::default();
            guest.version = version;
        }
    }

    /// A VirtualMachine of this node is new or has changed.
    pub(super) fn observe(&mut self, vm: &VirtualMachine) {
        let Some(name) = vm_name(vm) else { return };
        let status = vm.status.as_ref();
        let pod = status.and_then(|status| Some((status.pod_name.clone()?, status.pod_uid.clone()?)));
        let (Some((pod_name, pod_uid)), Some(uid)) = (pod, vm.metadata.uid.clone()) else {
            self.vms.remove(&name);
            return;
        };
        let wanted = fields::wanted(vm, &pod_uid);
        let disks = fields::wanted_disks(vm, &pod_uid);
        let pod = PodId {
            name: PodName {
                namespace: name.namespace.clone(),
                name: pod_name,
            },
            uid: pod_uid,
        };
        match self.vms.get_mut(&name) {
            Some(known) if known.uid == uid => {
                // The watch may be behind: a size that was overtaken does not come back.
                let is_newer = |known: &Resize| wanted.is_some_and(|wanted| wanted.sequence >= known.sequence);
                if known.pod != pod || known.wanted.as_ref().is_none_or(is_newer) {
                    known.wanted = wanted;
                }
                known.pod = pod;
                known.disks = disks;
                // What was written is remembered and not read, for the same reason; what this agent's predecessor wrote is read.
                if known.written_at.is_none() && known.in_flight.is_none() {
                    known.written = Fields::of(vm);
                }
            }
            Some(_) | None => {
                let vm = Vm {
                    uid,
                    pod,
                    wanted,
                    disks,
                    written: Fields::of(vm),
                    written_at: None,
                    in_flight: None,
                    not_before: None,
                    failures: 0,
                };
                self.vms.insert(name, vm);
            }
        }
    }

    /// A VirtualMachine is not of this node any more.
    pub(super) fn forget(&mut self, vm: &VirtualMachine) {
        if let Some(name) = vm_name(vm) {
            self.vms.remove(&name);
        }
    }

    /// Only these VirtualMachines are of this node: what the watch knows after it has begun again.
    pub(super) fn retain(&mut self, names: &std::collections::BTreeSet<VmName>) {
        self.vms.retain(|name, _| names.contains(name));
    }

    /// What is due, with at most `room` writes.
    pub(super) fn due(&mut self, now: Instant, room: usize) -> Due {
        let mut due = Due::default();
        for (name, vm) in &mut self.vms {
            let Some(guest) = self.guests.get_mut(&vm.pod) else {
                continue;
            };
            let mut at = |next: Instant| due.next = Some(due.next.map_or(next, |due| due.min(next)));
            if let Some(wanted) = &vm.wanted {
                match guest.orders.next(wanted, vm.written.taken(&vm.pod.uid), now) {
                    Next::Nothing => {}
                    Next::AskAt(next) => at(next),
                    Next::Ask => {
                        guest.orders.ask(wanted);
                        due.orders.push((guest.connection, *wanted));
                    }
                }
            }
            let Some(status) = &guest.status else { continue };
            let facts = disks::Facts {
                has: &status.disks,
                wanted: vm.disks.as_deref(),
                can: guest.version >= DISKS_VERSION,
            };
            match guest.disks.next(facts, |lender| self.lenders.lends(lender), now) {
                disks::Next::Nothing => {}
                disks::Next::AskAt(next) => at(next),
                disks::Next::Ask(order) => {
                    guest.disks.ask(order.clone());
                    due.disks.push((guest.connection, order));
                }
            }
            guest.disks.forget(facts);
            let refused = guest.disks.refused(facts);
            let fields = Fields::new(status, &vm.pod.uid, &vm.written, guest.orders.answer(), refused);
            if vm.in_flight.is_some() || vm.written == fields {
                continue;
            }
            let next = write_at(vm, guest, status, &fields, now);
            if next > now {
                at(next);
            } else if due.writes.len() < room {
                vm.in_flight = Some(fields.clone());
                due.writes.push(Write {
                    vm: name.clone(),
                    uid: vm.uid.clone(),
                    fields,
                });
            }
            // Else the end of a write makes room.
        }
        let guests = &self.guests;
        let has = |lender: &PodId| guests.iter().any(|(pod, guest)| guest.may_have(pod, lender));
        let (returned, next) = self.lenders.returned(has, now);
        due.returned = returned;
        due.next = due.next.into_iter().chain(next).min();
        due
    }

    /// A write has ended.
    pub(super) fn ended(&mut self, vm: &VmName, uid: &str, outcome: Outcome, now: Instant) {
        let Some(known) = self.vms.get_mut(vm).filter(|known| known.uid == uid) else {
            return;
        };
        let sent = known.in_flight.take();
        match outcome {
            Outcome::Done => {
                known.written = sent.unwrap_or_default();
                known.written_at = Some(now);
                known.failures = 0;
                known.not_before = Some(now + INTERVAL);
            }
            Outcome::Gone => {
                self.vms.remove(vm);
            }
            Outcome::Failed => {
                let pause = INTERVAL * 2u32.saturating_pow(known.failures.min(16));
                known.failures = known.failures.saturating_add(1);
                known.not_before = Some(now + pause.min(MAX_PAUSE));
            }
        }
    }
}

impl Guest {
    /// Whether the guest of `pod` has what a volume pod lends, or may have it by now.
    fn may_have(&self, pod: &PodId, lender: &PodId) -> bool {
        let has = self.status.iter().flat_map(|status| &status.disks);
        let has = has.filter(|_| pod.name.namespace == lender.name.namespace);
        has.into_iter().any(|disk| disk.lender == lender.uid) || self.disks.may_have(lender)
    }

    fn says(&mut self, status: GuestStatus, now: Instant) {
        if self.status.as_ref() != Some(&status) {
            self.status = Some(status);
            self.changed_at = now;
        }
    }
}

/// When something new of a guest is written.
fn write_at(vm: &Vm, guest: &Guest, status: &GuestStatus, fields: &Fields, now: Instant) -> Instant {
    let state = match status.state {
        GuestState::Booting => guest.changed_at + BOOTING_HOLD,
        GuestState::Running | GuestState::PoweringOff => guest.changed_at,
    };
    let has_it = vm
        .wanted
        .is_none_or(|wanted| (wanted.vcpus, wanted.memory_bytes) == (status.vcpus, status.memory_bytes));
    let size = if has_it || !fields.is_same_but_for_size(&vm.written) {
        None
    } else if fields.acknowledged == vm.written.acknowledged {
        vm.written_at.map(|at| at + PROGRESS_INTERVAL)
    } else {
        guest.orders.answer().map(|answer| answer.at + RESIZE_HOLD)
    };
    let bounds = [Some(state), size, vm.not_before];
    bounds.into_iter().flatten().max().unwrap_or(now)
}

/// The name of an object that is in a namespace.
pub(super) fn vm_name(vm: &VirtualMachine) -> Option<VmName> {
    Some(VmName {
        namespace: vm.metadata.namespace.clone()?,
        name: vm.metadata.name.clone()?,
    })
}
