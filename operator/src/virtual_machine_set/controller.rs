//! Watches `VirtualMachineSet`s and their VMs, and reconciles what changed.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crds::VirtualMachineSet;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt,
        controller::{Action, Config},
        events::Recorder,
        reflector::{self, ObjectRef},
        watcher,
    },
};
use tokio::sync::watch;

use crate::controller::forget_managed_fields;

use super::{GuardedSet, SetContext, SetError, member::SET_LABEL, reconcile, set_member::GuardedMember};

/// Delay before a failed reconciliation is tried again.
const FAILURE_PERIOD: Duration = Duration::from_secs(10);

/// The set that a VM belongs to.
fn set_of(vm: &GuardedMember) -> Option<ObjectRef<GuardedSet>> {
    let namespace = vm.namespace()?;
    let owner = vm
        .meta()
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))?;
    (owner.kind == VirtualMachineSet::kind(&())).then(|| ObjectRef::new(&owner.name).within(&namespace))
}

/// The set that a claim was made for.
fn set_of_claim(claim: &PartialObjectMeta<PersistentVolumeClaim>) -> Option<ObjectRef<GuardedSet>> {
    let set = claim.labels().get(SET_LABEL)?;
    Some(ObjectRef::new(set).within(&claim.namespace()?))
}

#[allow(clippy::needless_pass_by_value)] // the controller calls it so
fn error_policy(set: Arc<GuardedSet>, error: &SetError, _: Arc<SetContext>) -> Action {
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    tracing::warn!(set = set.name_any(), namespace = set.namespace(), cause, "{error}");
    Action::requeue(FAILURE_PERIOD)
}

/// A flag, and what sets it when a watch has listed everything: reflector's `Store::wait_until_ready` wakes one waiter only.
fn listed<K>() -> (Arc<AtomicBool>, impl FnMut(&watcher::Event<K>)) {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    (flag, move |event| {
        if matches!(event, watcher::Event::InitDone) {
            set.store(true, Ordering::Release);
        }
    })
}

/// Runs the controller until `stopped` says so; what is under way is finished first.
pub(crate) async fn run(client: Client, recorder: Recorder, concurrency: u16, mut stopped: watch::Receiver<bool>) {
    let vms: Api<GuardedMember> = Api::all(client.clone());
    let (members, writer) = reflector::store();
    let (vms_listed, note) = listed();
    let vm_stream = watcher(vms, watcher::Config::default().labels(SET_LABEL))
        .default_backoff()
        .modify(forget_managed_fields)
        .reflect(writer)
        .inspect_ok(note)
        .touched_objects()
        .filter_map(async |vm| set_of(&vm.ok()?));
    let claims: Api<PartialObjectMeta<PersistentVolumeClaim>> = Api::all(client.clone());
    let (known_claims, writer) = reflector::store();
    let (claims_listed, note) = listed();
    let claim_stream = watcher(claims, watcher::Config::default().labels(SET_LABEL))
        .default_backoff()
        .modify(forget_managed_fields)
        .reflect(writer)
        .inspect_ok(note)
        .touched_objects()
        .filter_map(async |claim| set_of_claim(&claim.ok()?));
    let context = SetContext {
        client: client.clone(),
        recorder,
        members,
        claims: known_claims,
        listed: [vms_listed, claims_listed],
    };
    let sets: Api<GuardedSet> = Api::all(client.clone());
    Controller::new(sets, watcher::Config::default())
        .reconcile_on(vm_stream)
        .reconcile_on(claim_stream)
        .with_config(Config::default().concurrency(concurrency))
        .graceful_shutdown_on(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        })
        .run(reconcile, error_policy, Arc::new(context))
        .for_each(|_| ready(()))
        .await;
}
