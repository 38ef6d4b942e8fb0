//! Pure: what to do next about a VM's pod.
//!
//! ```text
//!             Create                     the guest ends, or the VMM does
//!  no pod ─────────────► pod lives ──────────────────────────────────────► pod ended
//!    ▲                      │ Stop: Halted, or a newer restartedAt            │
//!    │                      ▼                                                 │ Remove, when runPolicy and
//!    └─────────────── pod terminates ◄────────────────────────────────────────┘ back-off say so
//! ```
//!
//! There is one pod name for a VM, and `Create` is only ever decided when nothing has that name: so there are never two pods that could
//! run the same VM, whatever the operator believes. A pod goes only when the kubelet has confirmed its end.
//!
//! No finalizer is needed. The pod is owned by the VM, so the garbage collector deletes it, with its grace period, after the VM; nothing
//! outside the API has to be cleaned up.

use crds::RunPolicy;
use jiff::Timestamp;

use super::{
    pod_state::{Outcome, Phase, PodState},
    run_history::History,
};

/// What is known when a decision is made.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    /// Whether the VirtualMachine itself is being deleted.
    pub(crate) vm_is_deleted: bool,
    pub(crate) run_policy: RunPolicy,
    pub(crate) generation: Option<i64>,
    /// `spec.restartedAt`.
    pub(crate) restarted_at: Option<Timestamp>,
    pub(crate) pod: &'a PodState,
    /// Whether volume pods of an earlier run are there: they have disks that the next pod opens itself.
    pub(crate) volume_pods: bool,
    /// The history, with the present pod's end already in it.
    pub(crate) history: &'a History,
    pub(crate) now: Timestamp,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Make the pod.
    Create,
    /// The pod lives, as it should.
    Keep,
    /// Shut the VM down: delete its pod with its grace period.
    Stop(StopCause),
    /// Delete a pod that has ended, so that the next one can be made.
    Remove,
    /// Something has to happen first.
    Wait(WaitCause),
    /// The VM is off, as it should be.
    Rest(RestCause),
    /// Nothing can be done until somebody changes something.
    Stall(StallCause),
    /// The VM is being deleted: the garbage collector does the rest.
    Leave,
}

/// Why a VM is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// `runPolicy: Halted`.
    Halted,
    /// A newer `restartedAt`.
    Restart,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitCause {
    /// The VM's own pod is terminating; `halted` says whether another one follows.
    OwnPodGone {
        /// The VM stays off afterwards.
        halted: bool,
        /// The node does not confirm the end.
        lost: bool,
    },
    /// The pod of a deleted VM of the same name.
    OtherPodGone,
    /// Volume pods of an earlier run.
    VolumePodsGone,
    /// Back-off after a failure.
    Backoff {
        /// When it ends.
        until: Timestamp,
    },
}

/// Why a VM is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestCause {
    /// `runPolicy: Halted`.
    Halted,
    /// It ran as often as its policy allows, and powered itself off.
    Completed,
    /// It ran as often as its policy allows, and failed.
    Failed,
}

/// Why nothing can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StallCause {
    /// Somebody else's pod has the VM's name.
    PodNameTaken,
    /// The same configuration can only fail again.
    Hopeless,
}

/// Decides what to do next.
pub(crate) fn decide(facts: &Facts<'_>) -> Decision {
    let decision = decide_about_pod(facts);
    if decision == Decision::Create && facts.volume_pods {
        return Decision::Wait(WaitCause::VolumePodsGone);
    }
    decision
}

fn decide_about_pod(facts: &Facts<'_>) -> Decision {
    if facts.vm_is_deleted {
        return Decision::Leave;
    }
    let halted = facts.run_policy == RunPolicy::Halted;
    match facts.pod {
        PodState::Absent | PodState::OfAnotherVm | PodState::Foreign if halted => Decision::Rest(RestCause::Halted),
        PodState::OfAnotherVm => Decision::Wait(WaitCause::OtherPodGone),
        PodState::Foreign => Decision::Stall(StallCause::PodNameTaken),
        PodState::Absent => without_pod(facts),
        PodState::Own(pod) => {
            let restart = restart_requested(facts, pod.restarted_at.as_deref(), Some(pod.created));
            if pod.deletion.is_some() {
                return Decision::Wait(WaitCause::OwnPodGone {
                    halted,
                    lost: pod.is_lost(facts.now),
                });
            }
            match (&pod.phase, halted) {
                (Phase::Ended(_), true) => Decision::Remove,
                (Phase::Ended(ended), false) => after_end(facts, ended.outcome, restart),
                (Phase::Unscheduled { .. } | Phase::Starting { .. } | Phase::Running { .. } | Phase::Unknown, true) => {
                    Decision::Stop(StopCause::Halted)
                }
                (
                    Phase::Unscheduled { .. } | Phase::Starting { .. } | Phase::Running { .. } | Phase::Unknown,
                    false,
                ) => {
                    if restart {
                        Decision::Stop(StopCause::Restart)
                    } else {
                        Decision::Keep
                    }
                }
            }
        }
    }
}

/// The pod has ended and is still there.
fn after_end(facts: &Facts<'_>, outcome: Outcome, restart: bool) -> Decision {
    if restart {
        return Decision::Remove;
    }
    let spec_changed = facts.history.ended_generation() != facts.generation;
    match (facts.run_policy, outcome) {
        (RunPolicy::Once | RunPolicy::RerunOnFailure, Outcome::PoweredOff) => Decision::Rest(RestCause::Completed),
        (RunPolicy::Always | RunPolicy::RerunOnFailure | RunPolicy::Once, Outcome::Hopeless) if !spec_changed => {
            Decision::Stall(StallCause::Hopeless)
        }
        // A run that could never have begun does not count as the one run.
        (RunPolicy::Halted, _) | (RunPolicy::Once, Outcome::Hopeless) => Decision::Remove,
        (RunPolicy::Once, Outcome::Failed) => Decision::Rest(RestCause::Failed),
        (RunPolicy::Always | RunPolicy::RerunOnFailure, Outcome::Failed | Outcome::Hopeless)
        | (RunPolicy::Always, Outcome::PoweredOff) => match backoff(facts, spec_changed) {
            Some(until) => Decision::Wait(WaitCause::Backoff { until }),
            None => Decision::Remove,
        },
    }
}

/// There is no pod.
fn without_pod(facts: &Facts<'_>) -> Decision {
    let history = facts.history;
    if restart_requested(facts, history.started_restarted_at(), None) && history.has_started() {
        return Decision::Create;
    }
    let spec_changed = history.ended_generation() != facts.generation;
    let last = history.last_outcome();
    match (facts.run_policy, last) {
        (RunPolicy::Halted, _) => Decision::Rest(RestCause::Halted),
        (_, Some(Outcome::Hopeless)) if spec_changed => Decision::Create,
        (_, Some(Outcome::Hopeless)) => Decision::Stall(StallCause::Hopeless),
        (RunPolicy::RerunOnFailure | RunPolicy::Once, Some(Outcome::PoweredOff)) => {
            Decision::Rest(RestCause::Completed)
        }
        (RunPolicy::Once, Some(Outcome::Failed)) => Decision::Rest(RestCause::Failed),
        // Its pod was deleted under it: the one run is over.
        (RunPolicy::Once, None) if history.has_started() => Decision::Rest(RestCause::Failed),
        (RunPolicy::Once, None)
        | (RunPolicy::RerunOnFailure, Some(Outcome::Failed) | None)
        | (RunPolicy::Always, Some(Outcome::PoweredOff | Outcome::Failed) | None) => {
            match backoff(facts, spec_changed) {
                Some(until) => Decision::Wait(WaitCause::Backoff { until }),
                None => Decision::Create,
            }
        }
    }
}

/// The end of the back-off, if it lies ahead. A changed spec deserves a try at once.
fn backoff(facts: &Facts<'_>, spec_changed: bool) -> Option<Timestamp> {
    facts
        .history
        .next_start()
        .filter(|until| !spec_changed && *until > facts.now)
}

/// Whether `spec.restartedAt` asks for a pod newer than one that was made with `served` or, without it, at `created`.
fn restart_requested(facts: &Facts<'_>, served: Option<&str>, created: Option<Timestamp>) -> bool {
    let Some(wanted) = facts.restarted_at else { return false };
    match served.and_then(|served| served.parse::<Timestamp>().ok()) {
        Some(served) => wanted > served,
        None => created.is_none_or(|created| wanted > created),
    }
}
