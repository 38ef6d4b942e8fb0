//! The controller of `VirtualMachineSet`s: observe, plan, apply, status. [`plan`] decides, [`member`] says what a VM of the set is, [`status`] what came of it.
//!
//! `spec` and `metadata` of a set are never written. Its VMs are made and deleted, never changed.

mod announce;
mod claim_work;
mod claims;
pub(crate) mod controller;
mod member;
mod plan;
mod set_member;
mod status;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crds::{VirtualMachine, VirtualMachineSet};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        controller::Action,
        events::{Event, Recorder},
        reflector::Store,
    },
};
use thiserror::Error;

use self::{
    claim_work::ClaimWork,
    plan::{Plan, Readiness},
    set_member::GuardedMember,
};

/// A set as the watch delivers it: one that cannot be read must not keep the others from being seen.
pub(crate) type GuardedSet = DeserializeGuard<VirtualMachineSet>;

/// Look again after this, even if nothing seems to happen.
const RESYNC: Duration = Duration::from_mins(10);
/// Look again after this when the watch is behind.
const OUTDATED_PERIOD: Duration = Duration::from_secs(1);
/// Look again after this when the API server did not admit a VM.
const REJECTED_PERIOD: Duration = Duration::from_secs(30);
/// Most VMs that are made or deleted in one step, so that one large set does not keep the others waiting.
const MAX_WRITES: usize = 50;

/// What every reconciliation of a set uses.
pub(crate) struct SetContext {
    client: Client,
    recorder: Recorder,
    /// The VMs of all sets, from the watch.
    members: Store<GuardedMember>,
    /// What is to be known of the claims of all sets, from the watch.
    claims: Store<PartialObjectMeta<PersistentVolumeClaim>>,
    /// Whether each of the two has been listed once.
    listed: [Arc<AtomicBool>; 2],
}

/// Why a reconciliation failed; it is tried again.
#[derive(Debug, Error)]
pub(crate) enum SetError {
    #[error("failed to {verb} {what} {name:?}")]
    Write {
        verb: &'static str,
        what: &'static str,
        name: String,
        source: kube::Error,
    },
}

/// What came of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Names of the VMs that were made.
    made: Vec<String>,
    /// Names of the VMs that were deleted.
    deleted: Vec<String>,
    /// The watch is behind: look again soon.
    outdated: bool,
    /// What is wrong with a VM or a claim that the API server did not admit.
    rejected: Option<String>,
    /// What a VM that is missing waits for.
    waits: Option<String>,
}

/// Brings one set a step closer to its spec.
async fn reconcile(object: Arc<GuardedSet>, context: Arc<SetContext>) -> Result<Action, SetError> {
    let set = match &object.0 {
        Ok(set) if set.metadata.deletion_timestamp.is_none() => set,
        // The garbage collector deletes the VMs of a set that is deleted.
        Ok(_) => return Ok(Action::await_change()),
        Err(invalid) => {
            tracing::warn!(set = object.name_any(), namespace = object.namespace(), %invalid, "this version of Tandem cannot read the set");
            return Ok(Action::await_change());
        }
    };
    if !context.listed.iter().all(|listed| listed.load(Ordering::Acquire)) {
        // A VM must not go whose claims are not known yet.
        return Ok(Action::requeue(OUTDATED_PERIOD));
    }
    let objects = members(set, &context);
    let (min_ready, now) = (set.spec.min_ready(), jiff::Timestamp::now());
    let members: Vec<plan::Member> = objects.iter().map(|vm| member::read(vm, min_ready, now)).collect();
    let wanted = member::wanted(set);
    let plan = plan::plan(&wanted, &members);
    let mut claims = ClaimWork::of(set, &wanted, &objects, &members, &context);
    let mut applied = claims.apply().await?;
    apply(
        set,
        &claims.without_later(&plan),
        &objects,
        &wanted.revision,
        &mut applied,
        &context,
    )
    .await?;
    let new = status::compute(set, &wanted, &members, &plan, &applied, now);
    write_status(set, new, &context).await?;
    publish(set, announce::events(set, &applied), &context).await;
    Ok(Action::requeue(match (&applied.rejected, applied.outdated) {
        (Some(_), _) => REJECTED_PERIOD,
        (None, true) => OUTDATED_PERIOD,
        (None, false) if plan.create.len() + plan.delete.len() > MAX_WRITES => OUTDATED_PERIOD,
        (None, false) => next_available(&members).unwrap_or(RESYNC),
    }))
}

/// When the next VM will have been ready for long enough: no watch says so.
fn next_available(members: &[plan::Member]) -> Option<Duration> {
    let waits = members.iter().filter_map(|member| match member.readiness {
        Readiness::Ready { available_in } => Some(available_in),
        Readiness::NotReady | Readiness::Available => None,
    });
    waits.min()
}

/// The VMs that belong to a set.
fn members(set: &VirtualMachineSet, context: &SetContext) -> Vec<Arc<GuardedMember>> {
    let all = context.members.state().into_iter();
    all.filter(|vm| {
        let owner = vm
            .meta()
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true));
        vm.namespace() == set.namespace() && owner.is_some_and(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
    })
    .collect()
}

async fn apply(
    set: &VirtualMachineSet,
    plan: &Plan,
    objects: &[Arc<GuardedMember>],
    revision: &str,
    applied: &mut Applied,
    context: &SetContext,
) -> Result<(), SetError> {
    let vms: Api<VirtualMachine> = Api::namespaced(context.client.clone(), &set.namespace().unwrap_or_default());
    for name in plan.delete.iter().take(MAX_WRITES) {
        let Some(vm) = objects.iter().find(|vm| vm.name_any() == *name) else {
            continue;
        };
        let parameters = delete_parameters(vm.uid());
        match vms.delete(name, &parameters).await {
            Ok(_) => applied.deleted.push(name.clone()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => applied.outdated = true,
            Err(source) => return Err(write_error("delete", "VirtualMachine", name, source)),
        }
    }
    let parameters = post_parameters();
    for name in plan.create.iter().take(MAX_WRITES) {
        match vms.create(&parameters, &member::vm(set, name, revision)).await {
            Ok(_) => applied.made.push(name.clone()),
            Err(kube::Error::Api(status)) => match status.code {
                409 if is_of_somebody_else(&vms, set, name).await? => {
                    let message = format!(
                        "a VM of the name {name} is there, which is not of this set: give it another name, or the set"
                    );
                    applied.rejected.get_or_insert(message);
                }
                409 => applied.outdated = true,
                400 | 403 | 422 => {
                    // The others would not be admitted either.
                    let message = format!("the API server did not admit a VM of the set: {}", status.message);
                    applied.rejected.get_or_insert(message);
                    break;
                }
                _ => return Err(write_error("create", "VirtualMachine", name, kube::Error::Api(status))),
            },
            Err(source) => return Err(write_error("create", "VirtualMachine", name, source)),
        }
    }
    Ok(())
}

/// Whether a VM that is there already has another controller than the set, or none.
async fn is_of_somebody_else(vms: &Api<VirtualMachine>, set: &VirtualMachineSet, name: &str) -> Result<bool, SetError> {
    let vm = vms.get_metadata_opt(name).await;
    let vm = vm.map_err(|source| write_error("look at", "VirtualMachine", name, source))?;
    Ok(vm.is_some_and(|vm| {
        let mut owners = vm.owner_references().iter();
        let ours = owners.any(|owner| owner.controller == Some(true) && Some(&owner.uid) == set.metadata.uid.as_ref());
        vm.metadata.deletion_timestamp.is_none() && !ours
    }))
}

fn post_parameters() -> PostParams {
    PostParams {
        field_manager: Some(crds::status::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Deletes the object with this UID, and no other of its name.
fn delete_parameters(uid: Option<String>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

/// Writes events. They only explain: the status says the same.
async fn publish(set: &VirtualMachineSet, events: Vec<Event>, context: &SetContext) {
    let reference = set.object_ref(&());
    for event in events {
        if let Err(error) = context.recorder.publish(&event, &reference).await {
            tracing::warn!(set = set.name_any(), namespace = set.namespace(), %error, "failed to write an event");
        }
    }
}

/// Writes a status if it differs from the set's.
async fn write_status(
    set: &VirtualMachineSet,
    status: crds::VirtualMachineSetStatus,
    context: &SetContext,
) -> Result<(), SetError> {
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let name = set.name_any();
    let sets: Api<VirtualMachineSet> = Api::namespaced(context.client.clone(), &set.namespace().unwrap_or_default());
    let patch = serde_json::json!({
        "apiVersion": VirtualMachineSet::api_version(&()),
        "kind": VirtualMachineSet::kind(&()),
        // With its UID a status never lands on another set of the same name.
        "metadata": { "name": name, "uid": set.uid() },
        "status": status,
    });
    let parameters = PatchParams::apply(crds::status::FIELD_MANAGER).force();
    match sets.patch_status(&name, &parameters, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(source) => Err(write_error("write the status of", "VirtualMachineSet", &name, source)),
    }
}

fn write_error(verb: &'static str, what: &'static str, name: &str, source: kube::Error) -> SetError {
    SetError::Write {
        verb,
        what,
        name: name.to_owned(),
        source,
    }
}
