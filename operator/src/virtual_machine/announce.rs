//! Events: what a person would ask about, told once, when the status changes.

use crds::{
    VirtualMachineStatus,
    conditions::{ConditionType, Reason, find, truncated},
};
use kube::runtime::events::{Event, EventType};

use super::{
    apply::Applied,
    lifecycle::{Decision, StopCause},
    status::Verdict,
};

/// Longest note of an event in bytes: `events.k8s.io/v1`, `note`.
const MAX_NOTE_BYTES: usize = 1024;

/// The events of one reconciliation: pure. `old` is the status before, `new` the one that was written.
pub(crate) fn events(old: &VirtualMachineStatus, new: &VirtualMachineStatus, verdict: &Verdict) -> Vec<Event> {
    let mut events = Vec::new();
    if let Some(last) = ended_now(old, new) {
        let message = last.message.clone().unwrap_or_default();
        let off = last.reason == "PoweredOff";
        let (type_, reason) = if off {
            (EventType::Normal, "PoweredOff")
        } else {
            (EventType::Warning, "Crashed")
        };
        // The recorder joins events of one reason and action into a series, and keeps the first note only.
        events.push(event(
            type_,
            reason,
            &last.reason,
            &format!("{}: {message}", last.reason),
        ));
    }
    match verdict {
        Verdict::Done(Decision::Stop(StopCause::Halted), Applied::Deleted) => {
            events.push(event(EventType::Normal, "Stopping", "Stop", "runPolicy is Halted"));
        }
        Verdict::Done(Decision::Stop(StopCause::Restart), Applied::Deleted) => {
            events.push(event(
                EventType::Normal,
                "Restarting",
                "Restart",
                "restartedAt is newer than the pod",
            ));
        }
        Verdict::Done(..) | Verdict::Invalid { .. } => {}
    }
    let (was, is) = (ready_reason(old), ready_reason(new));
    if was.map(|was| was.0) != is.map(|is| is.0) {
        events.extend(is.and_then(|(reason, message)| headline(reason, message, new)));
    }
    events.extend(eviction(old, new));
    events.extend(disks(old, new));
    events
}

/// That a disk cannot be plugged.
fn disks(old: &VirtualMachineStatus, new: &VirtualMachineStatus) -> Option<Event> {
    let failed = |status: &VirtualMachineStatus| {
        find(&status.conditions, ConditionType::DisksReady)
            .filter(|condition| condition.reason == Reason::HotPlugFailed.as_str())
            .map(|condition| condition.message.clone())
    };
    let message = failed(new)?;
    (failed(old).as_ref() != Some(&message)).then(|| event(EventType::Warning, "HotPlugFailed", "Plug", &message))
}

/// That a drain waits for the VM, or that evictions of it cannot be refused.
fn eviction(old: &VirtualMachineStatus, new: &VirtualMachineStatus) -> Option<Event> {
    let blocked = |status: &VirtualMachineStatus| {
        find(&status.conditions, ConditionType::EvictionBlocked)
            .map(|condition| (condition.reason.clone(), condition.message.clone()))
    };
    let (reason, message) = blocked(new)?;
    if blocked(old).is_some_and(|(before, _)| before == reason) {
        return None;
    }
    let told = [
        (Reason::NodeCordoned, "DrainBlocked"),
        (Reason::BudgetNameTaken, "EvictionsNotBlocked"),
        (Reason::BudgetRejected, "EvictionsNotBlocked"),
    ];
    let (_, name) = told.into_iter().find(|(known, _)| known.as_str() == reason)?;
    Some(event(EventType::Warning, name, "Evict", &message))
}

fn ended_now<'a>(
    old: &VirtualMachineStatus,
    new: &'a VirtualMachineStatus,
) -> Option<&'a crds::status::LastTermination> {
    let before = old
        .restarts
        .as_ref()
        .and_then(|restarts| restarts.last_termination.as_ref());
    let last = new
        .restarts
        .as_ref()
        .and_then(|restarts| restarts.last_termination.as_ref())?;
    (before.map(|before| &before.pod_uid) != Some(&last.pod_uid)).then_some(last)
}

/// Reason of the Ready condition, and its message.
fn ready_reason(status: &VirtualMachineStatus) -> Option<(&str, &str)> {
    find(&status.conditions, ConditionType::Ready).map(|ready| (ready.reason.as_str(), ready.message.as_str()))
}

fn headline(reason: &str, message: &str, new: &VirtualMachineStatus) -> Option<Event> {
    let (reason, meaning) = *Reason::ALL.iter().find(|(known, _)| known.as_str() == reason)?;
    let text = if message.is_empty() {
        meaning.trim().to_owned()
    } else {
        message.to_owned()
    };
    let (type_, name, action) = match reason {
        Reason::Running => {
            let node = new.node_name.as_deref().unwrap_or("a node");
            return Some(event(
                EventType::Normal,
                "Ready",
                "Run",
                &format!("the VM runs on {node} and is ready"),
            ));
        }
        Reason::NotReady => {
            let node = new.node_name.as_deref().unwrap_or("a node");
            return Some(event(
                EventType::Normal,
                "Started",
                "Run",
                &format!("the VM was started on {node}"),
            ));
        }
        Reason::Stopped => (EventType::Normal, "Stopped", "Stop"),
        Reason::Completed => (EventType::Normal, "Completed", "Run"),
        Reason::Failed => (EventType::Warning, "Failed", "Run"),
        Reason::Unschedulable => (EventType::Warning, "Unschedulable", "Schedule"),
        Reason::NoKvm => (EventType::Warning, "NoKvm", "Schedule"),
        Reason::NodeLost => (EventType::Warning, "NodeLost", "Run"),
        Reason::PodNameTaken => (EventType::Warning, "PodNameTaken", "Create"),
        Reason::InvalidSpec => (EventType::Warning, "InvalidSpec", "Validate"),
        Reason::InstanceTypeMissing => (EventType::Warning, "InstanceTypeMissing", "Validate"),
        Reason::InvalidConfiguration => (EventType::Warning, "InvalidConfiguration", "Run"),
        Reason::PodRejected => (EventType::Warning, "PodRejected", "Create"),
        Reason::ImagePullFailed => (EventType::Warning, "ImagePullFailed", "Pull"),
        Reason::MountFailed => (EventType::Warning, "MountFailed", "Mount"),
        Reason::NetworkFailed => (EventType::Warning, "NetworkFailed", "Start"),
        Reason::ContainerFailed => (EventType::Warning, "ContainerFailed", "Start"),
        // Not of the whole VM: see `disks`.
        Reason::HotPlugFailed
        | Reason::Starting
        | Reason::Stopping
        | Reason::Crashed
        | Reason::WaitingForOldPod
        | Reason::Succeeded
        | Reason::Waiting
        | Reason::ClaimNotReady
        | Reason::Scaling
        | Reason::VmRejected
        | Reason::ResizingPod
        | Reason::ResizingGuest
        | Reason::Deferred
        | Reason::Infeasible
        | Reason::ResizeRejected
        | Reason::ResizeRefused
        | Reason::NodeCordoned
        | Reason::BudgetNameTaken
        | Reason::BudgetRejected
        | Reason::SpecChanged
        | Reason::UpToDate => return None,
    };
    Some(event(type_, name, action, &text))
}

fn event(type_: EventType, reason: &str, action: &str, note: &str) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(truncated(note, MAX_NOTE_BYTES).to_owned()),
        action: action.to_owned(),
        secondary: None,
    }
}
