//! What of an edited spec the running VM does not have yet: `status.pendingChanges`, `Resizing` and `RestartRequired`.

use crds::{
    conditions::{Claim, ConditionStatus, ConditionType, Reason},
    status::{MAX_PENDING_CHANGES, MAX_PENDING_MESSAGE, PendingChange, WaitsFor},
};

use crate::virtual_machine::{
    desired::resources::GuestSize,
    live::{Live, Progress},
    resize::{Kubelet, Step},
};

/// The fields that wait, and what for.
pub(super) fn changes(live: Option<&Live>) -> Vec<PendingChange> {
    let Some(live) = live else { return Vec::new() };
    let change = |field: &String, waits_for| PendingChange {
        field: format!("spec.{field}"),
        waits_for,
        message: None,
    };
    let refused = live.metadata_rejected.iter().map(|message| PendingChange {
        field: "spec.podMetadata".to_owned(),
        waits_for: WaitsFor::Admission,
        message: Some(message.chars().take(MAX_PENDING_MESSAGE).collect()),
    });
    let resize: &[String] = match live.progress() {
        Progress::Settled | Progress::Impossible => &[],
        Progress::UnderWay => &live.changes.by_resize,
    };
    let waiting = resize.iter().map(|field| change(field, WaitsFor::Resize));
    let disks = live.disks.iter().flat_map(|plan| &plan.pending);
    let disks = disks.map(|disk| PendingChange {
        message: Some(disk.message.chars().take(MAX_PENDING_MESSAGE).collect()),
        ..change(&format!("disks[{}]", disk.disk), WaitsFor::HotPlug)
    });
    let mut changes: Vec<PendingChange> = restart(live)
        .map(|field| change(field, WaitsFor::Restart))
        .chain(waiting)
        .chain(refused)
        .collect();
    // A field is there once: what only a restart applies, that does.
    let named = |disk: &PendingChange| changes.iter().any(|change| change.field == disk.field);
    let disks: Vec<PendingChange> = disks.filter(|disk| !named(disk)).collect();
    changes.extend(disks);
    changes.truncate(MAX_PENDING_CHANGES);
    changes
}

/// Fields that only a restart applies: also those that this node can never give by a resize.
fn restart(live: &Live) -> impl Iterator<Item = &String> {
    let resize: &[String] = match live.progress() {
        Progress::Settled | Progress::UnderWay => &[],
        Progress::Impossible => &live.changes.by_resize,
    };
    live.changes.by_restart.iter().chain(resize)
}

/// The condition `RestartRequired`.
pub(super) fn restart_required(live: Option<&Live>) -> Claim {
    let fields: Vec<String> = live
        .into_iter()
        .flat_map(restart)
        .map(|field| format!("spec.{field}"))
        .collect();
    if fields.is_empty() {
        return up_to_date();
    }
    Claim {
        condition: ConditionType::RestartRequired,
        status: ConditionStatus::True,
        reason: Reason::SpecChanged,
        message: format!(
            "{} changed since the VM was started: set spec.restartedAt to the present time to apply it",
            fields.join(", ")
        ),
    }
}

/// `DisksReady` of a VM that runs, where a disk cannot be plugged.
pub(super) fn disks_not_ready(live: Option<&Live>) -> Option<Claim> {
    let failed = live?.disks.as_ref()?.pending.iter().filter(|disk| disk.failed);
    let messages: Vec<String> = failed
        .map(|disk| format!("disk {:?}: {}", disk.disk, disk.message))
        .collect();
    (!messages.is_empty()).then(|| Claim {
        condition: ConditionType::DisksReady,
        status: ConditionStatus::False,
        reason: Reason::HotPlugFailed,
        message: messages.join("; "),
    })
}

/// `RestartRequired` of a VM that is as its spec says.
pub(super) fn up_to_date() -> Claim {
    no(ConditionType::RestartRequired)
}

/// `Resizing` of a VM that is not being resized.
pub(super) fn not_resizing() -> Claim {
    no(ConditionType::Resizing)
}

fn no(condition: ConditionType) -> Claim {
    Claim {
        condition,
        status: ConditionStatus::False,
        reason: Reason::UpToDate,
        message: String::new(),
    }
}

/// The condition `Resizing`.
pub(super) fn resizing(live: Option<&Live>) -> Claim {
    let Some(step) = live.and_then(|live| live.step.as_ref()) else {
        return not_resizing();
    };
    let yes = |reason, message: String| Claim {
        condition: ConditionType::Resizing,
        status: ConditionStatus::True,
        reason,
        message,
    };
    if let Some(message) = live.and_then(|live| live.rejected.as_ref()) {
        return yes(
            Reason::ResizeRejected,
            format!("the API server did not admit the pod's new size: {message}"),
        );
    }
    match step {
        Step::Settled => not_resizing(),
        Step::ResizePod(_) | Step::AwaitKubelet(Kubelet::Quiet | Kubelet::InProgress) => {
            yes(Reason::ResizingPod, "the node resizes the VM's pod".to_owned())
        }
        Step::AwaitKubelet(Kubelet::Failed { message }) => yes(
            Reason::ResizingPod,
            format!("the node failed to resize the VM's pod and tries again: {message}"),
        ),
        Step::AwaitKubelet(Kubelet::Deferred { message }) => yes(
            Reason::Deferred,
            format!("the node has no room for the VM's new size now: {message}"),
        ),
        Step::AwaitKubelet(Kubelet::Infeasible { message }) => yes(
            Reason::Infeasible,
            format!(
                "the node can never give the VM its new size: {message}; a restart lets the scheduler look for another node"
            ),
        ),
        Step::AskGuest(target) | Step::AwaitGuest { has: None, target, .. } => yes(
            Reason::ResizingGuest,
            format!("the guest is asked to have {}", shown(*target)),
        ),
        Step::AwaitGuest {
            has: Some(has),
            target,
            hindrance,
        } => {
            let asked = format!("the guest has {} and is asked to have {}", shown(*has), shown(*target));
            let message = match hindrance {
                Some(hindrance) => format!("{asked}; {hindrance}"),
                None => asked,
            };
            yes(Reason::ResizingGuest, message)
        }
        Step::Refused { target, why } => yes(
            Reason::ResizeRefused,
            format!("the VMM cannot give the guest {}: {why}", shown(*target)),
        ),
    }
}

fn shown(size: GuestSize) -> String {
    let plural = if size.vcpus == 1 { "" } else { "s" };
    format!("{} CPU{plural} and {} MiB", size.vcpus, size.memory_bytes >> 20)
}
