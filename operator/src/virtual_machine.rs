//! The controller of VirtualMachines: observe, validate, desired, apply, status.
//!
//! ```text
//! observe ──► validate ──► (history, decide) ──► desired ──► apply ──► status
//!   IO          pure             pure              pure        IO       pure, then one write if it changed
//!                                 │ the pod runs, and stays              ▲
//!                                 └──► (changes, resize, hotplug) ──► apply ──┘
//!                                            pure              IO
//! ```
//!
//! `spec` and `metadata` of a VirtualMachine are never written. At most one write per VM and step of its life goes to `status`, by
//! server-side apply under one field manager and without `status.guest` and `status.acknowledgedTarget`, which are the node agent's.

mod announce;
mod apply;
mod changes;
mod desired;
mod eviction;
mod hotplug;
mod instance_type;
mod interfaces;
mod lifecycle;
mod live;
mod observe;
mod pod_state;
mod resize;
mod run_history;
mod status;
mod trouble;
mod validate;
mod volume_pods;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use crds::{RunPolicy, VirtualMachine, VirtualMachineStatus, conditions::Reason};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::controller::Action,
};
use serde_json::json;
use thiserror::Error;

pub(crate) use desired::{MANAGED_BY_LABEL, VM_LABEL, VOLUME_OF_LABEL};

use self::{
    apply::Applied,
    eviction::Protection,
    lifecycle::{Decision, Facts, StallCause, WaitCause},
    live::Live,
    observe::Observed,
    pod_state::{LOST_AFTER_SECONDS, Phase},
    resize::Step,
    run_history::History,
    status::Verdict,
    validate::{Invalid, ValidatedVm},
};
use crate::context::Context;

/// A VM as the watch delivers it: one that cannot be read must not keep the others from being seen.
pub(crate) type Guarded = DeserializeGuard<VirtualMachine>;

/// Look again after this, even if nothing seems to happen.
const RESYNC: Duration = Duration::from_mins(10);
/// Look again after this at a pod that should start, or later at one that should have long ago.
const STARTING_PERIOD: Duration = Duration::from_secs(10);
/// Ask again after this for a size or a budget that the API server did not admit.
const REJECTED_PERIOD: Duration = Duration::from_mins(1);
/// Look again after this at somebody else's pod or budget.
const FOREIGN_PERIOD: Duration = Duration::from_secs(20);
/// The scheduler usually answers within this; a status before that would be one write more and tell nothing.
const SCHEDULER_SECONDS: i64 = 2;

/// Why a reconciliation failed; it is tried again.
#[derive(Debug, Error)]
pub(crate) enum ReconcileError {
    #[error("failed to read {what} {name:?}")]
    Read {
        what: &'static str,
        name: String,
        source: kube::Error,
    },
    #[error("failed to {verb} {what} {name:?}")]
    Write {
        verb: &'static str,
        what: &'static str,
        name: String,
        source: kube::Error,
    },
    #[error("the API server did not admit pod {name:?}: {message}")]
    Rejected { name: String, message: String },
}

/// Brings one VM a step closer to its spec.
pub(crate) async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let started = std::time::Instant::now();
    let result = match &object.0 {
        Ok(vm) => Box::pin(reconcile_vm(vm, &context)).await,
        Err(invalid) => report_unreadable(invalid, &context).await,
    };
    context.metrics.reconciled(result.is_ok(), started.elapsed());
    if result.is_ok() {
        context.forget_failures(object.as_ref());
    }
    result
}

/// When a failed reconciliation is tried again: sooner at first, later when it keeps failing.
#[allow(clippy::needless_pass_by_value)] // the controller calls it so
pub(crate) fn error_policy(object: Arc<Guarded>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let delay = context.next_failure_delay(object.as_ref());
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    tracing::warn!(
        vm = object.name_any(),
        namespace = object.namespace(),
        retry_seconds = delay.as_secs(),
        cause,
        "{error}"
    );
    Action::requeue(delay)
}

async fn reconcile_vm(vm: &VirtualMachine, context: &Context) -> Result<Action, ReconcileError> {
    let observed = observe::observe(vm, context).await?;
    // Before its pod, so that no pod runs without it.
    let protection = apply::keep_budget(vm, &observed, context).await?;
    let old_history = History::from_status(vm.status.as_ref().and_then(|status| status.restarts.as_ref()));
    let history = old_history.with_pod(&observed.state, observed.now);
    let planned = plan(vm, &observed, &history, context);
    let (valid, decision, pod) = match planned {
        Ok(planned) => planned,
        Err((reason, message)) => {
            let verdict = Verdict::Invalid { reason, message };
            let status = status_of(vm, &verdict, &observed, &protection, &history, None);
            write_status(vm, status, &verdict, context).await?;
            let namespace = vm.namespace().unwrap_or_default();
            let stopped = match halted(vm, &observed, &history) {
                Some(decision) => apply::apply(decision, &namespace, None, &observed, context).await?,
                None => Applied::Nothing,
            };
            return Ok(Action::requeue(match stopped {
                Applied::Outdated => Duration::from_secs(1),
                Applied::Nothing | Applied::Created | Applied::Deleted | Applied::Rejected { .. } => RESYNC,
            }));
        }
    };
    // How a run ended is written down before its pod, which alone knows it, is removed.
    let ended_now = history.last_termination() != old_history.last_termination();
    let written;
    let vm = if ended_now && decision == Decision::Remove {
        let verdict = Verdict::Done(decision, Applied::Nothing);
        written = write_status(
            vm,
            status_of(vm, &verdict, &observed, &protection, &history, None),
            &verdict,
            context,
        )
        .await?;
        written.as_ref().unwrap_or(vm)
    } else {
        vm
    };
    let applied = apply::apply(decision, &valid.namespace, pod.as_ref(), &observed, context).await?;
    tracing::debug!(
        vm = valid.name,
        namespace = valid.namespace,
        ?decision,
        ?applied,
        "reconciled"
    );
    if applied == Applied::Outdated {
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    volume_pods::delete(
        hotplug::leftovers(&observed.state, observed.pod.as_ref(), &observed.volumes),
        &valid.namespace,
        context,
    )
    .await?;
    let (pod, volumes) = (observed.pod.as_ref(), &observed.volumes);
    let mut live =
        Live::of(vm, &valid, &observed.state, pod, volumes, observed.now).filter(|_| decision == Decision::Keep);
    if let Some(live) = &mut live {
        if apply_live(live, &valid, &observed, context).await? == apply::Changed::Gone {
            return Ok(Action::requeue(Duration::from_secs(1)));
        }
        volume_pods::plug(live, &valid, &observed, context).await?;
    }
    let rejected = match &applied {
        Applied::Rejected { message, .. } => Some(ReconcileError::Rejected {
            name: valid.name.clone(),
            message: message.clone(),
        }),
        Applied::Nothing | Applied::Created | Applied::Deleted | Applied::Outdated => None,
    };
    let refused = live
        .as_ref()
        .is_some_and(|live| live.rejected.is_some() || live.metadata_rejected.is_some());
    let wait = if refused {
        REJECTED_PERIOD
    } else {
        next_look(decision, &applied, &observed).min(next_look_at_budget(&protection))
    };
    let disks = live.as_ref().and_then(|live| live.disks.as_ref()?.look_again);
    let wait = disks.map_or(wait, |disks| wait.min(disks.unsigned_abs()));
    let too_early = too_early(decision, &applied, &observed);
    if decision != Decision::Leave && !too_early {
        let verdict = Verdict::Done(decision, applied);
        let status = status_of(vm, &verdict, &observed, &protection, &history, live.as_ref());
        write_status(vm, status, &verdict, context).await?;
    }
    rejected.map_or(Ok(Action::requeue(wait)), Err)
}

/// Brings a pod that runs a step closer to the spec, and notes in `live` what the API server does not admit.
async fn apply_live(
    live: &mut Live,
    valid: &ValidatedVm,
    observed: &Observed,
    context: &Context,
) -> Result<apply::Changed, ReconcileError> {
    let Some(pod) = &observed.pod else {
        return Ok(apply::Changed::Gone);
    };
    if live.changes.pod_metadata
        && let Ok(desired) = desired::pod::pod(valid, &context.settings.shim_image)
        && let Some(patch) = live::metadata_patch(pod, &desired)
    {
        match apply::change_metadata(pod, &patch, context).await? {
            apply::Changed::Done => {}
            apply::Changed::Gone => return Ok(apply::Changed::Gone),
            apply::Changed::Rejected(message) => live.metadata_rejected = Some(message),
        }
    }
    match live.step {
        Some(Step::ResizePod(size)) => {
            let changed = apply::resize(pod, &live.changes.frame, size, context).await?;
            if let apply::Changed::Rejected(message) = &changed {
                live.rejected = Some(message.clone());
            }
            Ok(changed)
        }
        // The guest's target is written with the status.
        Some(
            Step::Settled | Step::AskGuest(_) | Step::AwaitKubelet(_) | Step::AwaitGuest { .. } | Step::Refused { .. },
        )
        | None => Ok(apply::Changed::Done),
    }
}

/// Validate, decide, and make the pod if one is to be created: pure. The error is a reason and a message for the VM's owner.
fn plan(
    vm: &VirtualMachine,
    observed: &Observed,
    history: &History,
    context: &Context,
) -> Result<(ValidatedVm, Decision, Option<Pod>), (Reason, String)> {
    let invalid = |invalid: Invalid| (invalid.reason(), invalid.to_string());
    let resolved = instance_type::resolved(vm, observed.instance_type.as_deref()).map_err(invalid)?;
    let valid = validate::validate(&resolved).map_err(invalid)?;
    let restarted_at = valid.restarted_at.as_ref().map(|(_, time)| *time);
    let decision = decide(vm, restarted_at, observed, history);
    let pod = match decision {
        Decision::Create => {
            let pod = desired::pod::pod(&valid, &context.settings.shim_image);
            Some(pod.map_err(|error| (Reason::InvalidSpec, error.to_string()))?)
        }
        Decision::Keep
        | Decision::Stop(_)
        | Decision::Remove
        | Decision::Wait(_)
        | Decision::Rest(_)
        | Decision::Stall(_)
        | Decision::Leave => None,
    };
    Ok((valid, decision, pod))
}

/// What ends a VM that is to be halted, whatever else its spec says: nothing of that is needed to stop it.
fn halted(vm: &VirtualMachine, observed: &Observed, history: &History) -> Option<Decision> {
    let decision = decide(vm, None, observed, history);
    (vm.spec.run_policy() == RunPolicy::Halted && matches!(decision, Decision::Stop(_) | Decision::Remove))
        .then_some(decision)
}

fn decide(vm: &VirtualMachine, restarted_at: Option<Timestamp>, observed: &Observed, history: &History) -> Decision {
    lifecycle::decide(&Facts {
        vm_is_deleted: vm.metadata.deletion_timestamp.is_some(),
        run_policy: vm.spec.run_policy(),
        generation: vm.metadata.generation,
        restarted_at,
        pod: &observed.state,
        volume_pods: !observed.volumes.is_empty(),
        history,
        now: observed.now,
    })
}

fn status_of(
    vm: &VirtualMachine,
    verdict: &Verdict,
    observed: &Observed,
    protection: &Protection,
    history: &History,
    live: Option<&Live>,
) -> VirtualMachineStatus {
    status::compute(&status::Input {
        vm,
        verdict: verdict.clone(),
        pod: &observed.state,
        protection,
        history,
        trouble: observed.trouble.as_ref(),
        live,
        now: observed.now,
    })
}

/// Whether a status written now would be outdated at once.
fn too_early(decision: Decision, applied: &Applied, observed: &Observed) -> bool {
    let waits_for_scheduler = observed
        .state
        .own()
        .is_some_and(|pod| pod.phase == Phase::Unscheduled { message: None } && is_young(observed));
    *applied == Applied::Created || (decision == Decision::Keep && waits_for_scheduler)
}

/// Whether the scheduler cannot be expected to have seen the pod yet.
fn is_young(observed: &Observed) -> bool {
    observed
        .state
        .own()
        .is_some_and(|pod| observed.now.as_second() - pod.created.as_second() < SCHEDULER_SECONDS)
}

/// When to look again if no watch says so earlier.
fn next_look(decision: Decision, applied: &Applied, observed: &Observed) -> Duration {
    let seconds_until = |second: i64| {
        Duration::from_secs(u64::try_from(second - observed.now.as_second()).unwrap_or(0).max(1)).min(RESYNC)
    };
    let pod = observed.state.own();
    match decision {
        Decision::Create => Duration::from_secs(1),
        Decision::Keep => match pod.map(|pod| &pod.phase) {
            Some(Phase::Unscheduled { message: None }) if is_young(observed) => Duration::from_secs(1),
            Some(Phase::Starting { .. }) => {
                pod.map_or(STARTING_PERIOD, |pod| starting_period(pod.created, observed.now))
            }
            Some(Phase::Unscheduled { .. } | Phase::Running { .. } | Phase::Ended(_) | Phase::Unknown) | None => RESYNC,
        },
        Decision::Wait(WaitCause::Backoff { until }) => seconds_until(until.as_second() + 1),
        Decision::Wait(WaitCause::OwnPodGone { lost: false, .. }) => {
            let end = pod.and_then(|pod| pod.deletion).unwrap_or(observed.now);
            seconds_until(end.as_second() + LOST_AFTER_SECONDS + 1)
        }
        Decision::Wait(WaitCause::OtherPodGone | WaitCause::VolumePodsGone)
        | Decision::Stall(StallCause::PodNameTaken) => FOREIGN_PERIOD,
        Decision::Wait(WaitCause::OwnPodGone { lost: true, .. })
        | Decision::Stop(_)
        | Decision::Remove
        | Decision::Rest(_)
        | Decision::Stall(StallCause::Hopeless)
        | Decision::Leave => match applied {
            Applied::Outdated => Duration::from_secs(1),
            Applied::Nothing | Applied::Created | Applied::Deleted | Applied::Rejected { .. } => RESYNC,
        },
    }
}

/// A pod's events are asked for at each look, so what has not started for an hour is not looked at as often as what has not for a minute.
fn starting_period(created: Timestamp, now: Timestamp) -> Duration {
    let age = Duration::try_from(now.duration_since(created)).unwrap_or_default();
    (age / 6).clamp(STARTING_PERIOD, RESYNC)
}

/// When to look again at a budget that no watch tells of.
const fn next_look_at_budget(protection: &Protection) -> Duration {
    match protection {
        Protection::NotAsked | Protection::InPlace { .. } => RESYNC,
        Protection::NameTaken => FOREIGN_PERIOD,
        Protection::Rejected(_) => REJECTED_PERIOD,
    }
}

/// Writes a status if it differs from the VM's; returns the VM as it is then.
async fn write_status(
    vm: &VirtualMachine,
    status: VirtualMachineStatus,
    verdict: &Verdict,
    context: &Context,
) -> Result<Option<VirtualMachine>, ReconcileError> {
    let mut old = vm.status.clone().unwrap_or_default();
    (old.guest, old.acknowledged_target) = (None, None);
    if vm.status.is_some() && old == status {
        return Ok(None);
    }
    let events = announce::events(&old, &status, verdict);
    let (name, namespace) = (vm.name_any(), vm.namespace().unwrap_or_default());
    let status = serde_json::to_value(status).unwrap_or_default();
    let Some(written) = patch_status(&name, &namespace, vm.uid(), status, Extent::Whole, context).await? else {
        return Ok(None);
    };
    let reference = vm.object_ref(&());
    for event in events {
        if let Err(error) = context.recorder.publish(&event, &reference).await {
            // An event only explains; the status says the same.
            tracing::warn!(vm = name, namespace, %error, "failed to write an event");
        }
    }
    Ok(written.0.ok())
}

/// How much of a status is written.
#[derive(Clone, Copy)]
enum Extent {
    /// All that is Tandem's: what is not said goes.
    Whole,
    /// What is said; the rest stays.
    Part,
}

/// Writes a status; `None` when the VM has gone or been replaced by another one.
async fn patch_status(
    name: &str,
    namespace: &str,
    uid: Option<String>,
    status: serde_json::Value,
    extent: Extent,
    context: &Context,
) -> Result<Option<Guarded>, ReconcileError> {
    let vms: Api<Guarded> = Api::namespaced(context.client.clone(), namespace);
    let patch = json!({
        "apiVersion": VirtualMachine::api_version(&()),
        "kind": VirtualMachine::kind(&()),
        // With its UID a status never lands on another VM of the same name.
        "metadata": { "name": name, "uid": uid },
        "status": status,
    });
    let parameters = PatchParams::apply(crds::status::FIELD_MANAGER);
    let (parameters, patch) = match extent {
        Extent::Whole => (parameters.force(), Patch::Apply(patch)),
        Extent::Part => (parameters, Patch::Merge(patch)),
    };
    match vms.patch_status(name, &parameters, &patch).await {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(source) => Err(ReconcileError::Write {
            verb: "write the status of",
            what: "VirtualMachine",
            name: name.to_owned(),
            source,
        }),
    }
}

/// Says in the status of an object that this operator cannot read it.
async fn report_unreadable(invalid: &InvalidObject, context: &Context) -> Result<Action, ReconcileError> {
    let metadata = &invalid.metadata;
    let (name, namespace) = (
        metadata.name.clone().unwrap_or_default(),
        metadata.namespace.clone().unwrap_or_default(),
    );
    let message = format!("this version of Tandem cannot read the object: {}", invalid.error);
    let status = status::unreadable(metadata.generation, &message, jiff::Timestamp::now());
    // What the guest was asked for stays: an object that can be read again needs it.
    patch_status(&name, &namespace, metadata.uid.clone(), status, Extent::Part, context).await?;
    Ok(Action::await_change())
}
