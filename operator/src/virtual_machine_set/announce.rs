//! Pure: the events of a set, with the reasons that Kubernetes' own sets use.

use crds::{
    VirtualMachine, VirtualMachineSet,
    conditions::{ConditionType, Reason, find, truncated},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Resource, ResourceExt,
    runtime::events::{Event, EventType},
};

use super::Applied;

/// Longest note of an event in bytes: `events.k8s.io/v1`, `note`.
const MAX_NOTE_BYTES: usize = 1024;

/// What one reconciliation did to the VMs of a set, and what kept it from doing more, if the set's status does not say so yet.
pub(super) fn events(set: &VirtualMachineSet, applied: &Applied) -> Vec<Event> {
    let made = applied.made.iter().map(|name| {
        let note = format!("made VirtualMachine {name}");
        event(
            EventType::Normal,
            "SuccessfulCreate",
            "Create",
            &note,
            Some(vm(set, name)),
        )
    });
    let deleted = applied.deleted.iter().map(|name| {
        let note = format!("deleted VirtualMachine {name}");
        event(
            EventType::Normal,
            "SuccessfulDelete",
            "Delete",
            &note,
            Some(vm(set, name)),
        )
    });
    let rejected = applied.rejected.iter().filter(|message| !is_known(set, message));
    let rejected = rejected.map(|message| event(EventType::Warning, "FailedCreate", "Create", message, None));
    made.chain(deleted).chain(rejected).collect()
}

fn is_known(set: &VirtualMachineSet, message: &str) -> bool {
    let conditions = set.status.as_ref().map(|status| status.conditions.as_slice());
    find(conditions.unwrap_or_default(), ConditionType::Stalled)
        .is_some_and(|stalled| stalled.reason == Reason::VmRejected.as_str() && stalled.message == message)
}

/// The VM that an event speaks of. Without it the recorder would take the events of all VMs for one that was repeated.
fn vm(set: &VirtualMachineSet, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(VirtualMachine::api_version(&()).into_owned()),
        kind: Some(VirtualMachine::kind(&()).into_owned()),
        namespace: set.namespace(),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

fn event(type_: EventType, reason: &str, action: &str, note: &str, secondary: Option<ObjectReference>) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(truncated(note, MAX_NOTE_BYTES).to_owned()),
        action: action.to_owned(),
        secondary,
    }
}
