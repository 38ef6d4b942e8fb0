//! Pure: interfaces that come and go while their VM runs. Each is one more tap of its pod, which the node agent makes: there is no pod for it, and nothing to undo.
//!
//! ```text
//! added:   named in status.targetInterfaces, with a number ─► status.guest.interfaces has it: done
//! removed: named no more ─► status.guest.interfaces lacks it: done, and its number is free
//! ```

use std::collections::BTreeMap;

use crds::{
    guest::GuestStatus,
    status::{TargetInterface, TargetInterfaces},
};
use node_shim_protocol::{
    VmConfig,
    agent::MAX_INTERFACES,
    config::{Binding, Interface},
};

use super::{
    desired::identity,
    hotplug::Pending,
    validate::{ValidBinding, ValidInterface, ValidLimits},
};

/// What is known when a decision is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// UID of the VM, from which MAC addresses follow.
    pub(crate) vm: &'a str,
    /// UID of the VM's pod, which runs.
    pub(crate) run: &'a str,
    /// How many interfaces it was started with: they have the first numbers.
    pub(crate) configured: usize,
    /// Names of the interfaces that are to be plugged.
    pub(crate) wanted: &'a [String],
    /// What was last asked for this run.
    pub(crate) target: Option<&'a TargetInterfaces>,
    /// What the node agent says of this run.
    pub(crate) guest: Option<&'a GuestStatus>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// What the guest should be given; `None` where it has never been anything.
    pub(crate) target: Option<TargetInterfaces>,
    /// The interfaces that are not as the spec says, by their names.
    pub(crate) pending: Vec<Pending>,
}

/// Whether an interface can be given to a VM that was started with this configuration: behind the pod's own address, where another is already, which goes on
/// being the one that is reached by it.
pub(crate) fn can_be_plugged(interface: &ValidInterface, running: &VmConfig) -> bool {
    let behind_pod = |other: &Interface| other.pod_interface.is_none() && other.binding == Binding::Masquerade;
    let unlimited = ValidLimits::default();
    interface.binding == ValidBinding::Masquerade
        && interface.network.is_none()
        && (interface.receive_limits, interface.transmit_limits) == (unlimited, unlimited)
        && running.interfaces.iter().any(behind_pod)
}

/// Names of the interfaces that a guest was given, or is about to be.
pub(crate) fn given(target: Option<&TargetInterfaces>, guest: Option<&GuestStatus>) -> Vec<String> {
    let target = target.into_iter().flat_map(|target| &target.interfaces);
    let had = guest.into_iter().flat_map(|guest| &guest.interfaces);
    let mut names: Vec<String> = target
        .map(|interface| interface.name.clone())
        .chain(had.map(|interface| interface.name.clone()))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Decides about the interfaces of a VM that runs, and stays.
pub(crate) fn plan(facts: &Facts<'_>) -> Plan {
    let asked = facts.target.into_iter().flat_map(|target| &target.interfaces);
    let had: Vec<(&str, i32)> = facts
        .guest
        .into_iter()
        .flat_map(|guest| &guest.interfaces)
        .map(|interface| (interface.name.as_str(), interface.number))
        .collect();
    // What the guest has counts for more: its network has that number.
    let known: BTreeMap<&str, i32> = asked
        .map(|interface| (interface.name.as_str(), interface.number))
        .chain(had.iter().copied())
        .collect();
    let configured = i32::try_from(facts.configured).unwrap_or(i32::MAX);
    let kept = |name: &String| known.get(name.as_str()).copied();
    // That of one that is on its way out may still be in the guest.
    let mut taken: Vec<i32> = known.values().copied().collect();
    let mut plan = Plan::default();
    let mut target = Vec::new();
    for name in facts.wanted {
        let free = (configured..i32::try_from(MAX_INTERFACES).unwrap_or(0)).find(|number| !taken.contains(number));
        let Some(number) = kept(name).or(free) else {
            plan.note(name, true, NO_NUMBER);
            continue;
        };
        taken.push(number);
        if !had.contains(&(name.as_str(), number)) {
            match refusal(facts, name, number) {
                Some(message) => plan.note(name, true, message),
                None => plan.note(name, false, "the guest is given it"),
            }
        }
        target.push(TargetInterface {
            name: name.clone(),
            number,
            mac: identity::mac(facts.vm, name),
        });
    }
    for (name, _) in &had {
        if !facts.wanted.iter().any(|wanted| wanted == name) {
            plan.note(name, false, "the guest is asked to give it up");
        }
    }
    if facts.target.is_some() || !had.is_empty() || !target.is_empty() {
        plan.target = Some(TargetInterfaces {
            pod_uid: facts.run.to_owned(),
            interfaces: target,
        });
    }
    plan.pending.sort_by(|one, other| one.name.cmp(&other.name));
    plan
}

const NO_NUMBER: &str = "the guest has as many interfaces as it can have; it is given this one when it has given up another, or when the VM is restarted";

/// Why the guest could not be given it.
fn refusal<'a>(facts: &Facts<'a>, name: &str, number: i32) -> Option<&'a str> {
    let mut refused = facts.guest?.refused_interfaces.iter();
    let refused = refused.find(|refused| refused.name == name && refused.number == number);
    refused.map(|refused| refused.message.as_str())
}

impl Plan {
    fn note(&mut self, name: &str, failed: bool, message: &str) {
        self.pending.push(Pending {
            name: name.to_owned(),
            message: message.to_owned(),
            failed,
        });
    }
}
