//! Watches VirtualMachines and their pods, and reconciles what changed.

use std::{
    future::ready,
    sync::{Arc, atomic::Ordering},
};

use anyhow::Context as _;
use crds::{EvictionPolicy, VirtualMachine, VirtualMachineInstanceType};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt,
        controller::Config,
        events::{Recorder, Reporter},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio::sync::watch;

use crate::{
    arguments::Arguments,
    context::{Context, Settings, Stores, VolumePods},
    http::Health,
    virtual_machine::{Guarded, MANAGED_BY_LABEL, VM_LABEL, VOLUME_OF_LABEL, error_policy, reconcile},
    virtual_machine_set,
};

/// The VM that a pod or a budget is named after. It is told of its pod's end also when the pod belonged to its predecessor of the same name.
fn vm_of(object: &impl ResourceExt) -> Option<ObjectRef<Guarded>> {
    let namespace = object.meta().namespace.as_deref()?;
    let name = object.meta().name.as_deref()?;
    Some(ObjectRef::new(name).within(namespace))
}

/// The VM that a volume pod is of.
fn vm_of_volume(pod: &Pod) -> Option<ObjectRef<Guarded>> {
    let name = pod.labels().get(VOLUME_OF_LABEL)?;
    Some(ObjectRef::new(name).within(pod.metadata.namespace.as_deref()?))
}

/// Nobody asks who wrote what, and it is most of what would be kept of an object.
pub(crate) fn forget_managed_fields(object: &mut impl ResourceExt) {
    object.managed_fields_mut().clear();
}

/// The VMs for which a predicate holds.
fn vms_where(vms: &Store<Guarded>, holds: impl Fn(&VirtualMachine) -> bool) -> Vec<ObjectRef<Guarded>> {
    let found = vms.state().into_iter().filter(|vm| vm.0.as_ref().is_ok_and(&holds));
    found.map(|vm| ObjectRef::from_obj(vm.as_ref())).collect()
}

/// The VMs that name an instance type: they wait for it, or have it.
fn vms_of(instance_type: &str, vms: &Store<Guarded>) -> Vec<ObjectRef<Guarded>> {
    vms_where(vms, |vm| {
        let named = vm.spec.instance_type.as_ref();
        named.is_some_and(|named| named.name == instance_type)
    })
}

/// The VMs that stay on a node when it is drained.
fn vms_on(node: &str, vms: &Store<Guarded>) -> Vec<ObjectRef<Guarded>> {
    vms_where(vms, |vm| {
        let on = vm.status.as_ref().and_then(|status| status.node_name.as_deref());
        on == Some(node) && vm.spec.eviction_policy() == EvictionPolicy::Block
    })
}

/// Watches everything but the VMs themselves: what is there, and the VMs that each change concerns.
fn watch_others(
    client: &Client,
    vms: &Store<Guarded>,
) -> (Stores, impl Stream<Item = ObjectRef<Guarded>> + Send + use<>) {
    let selector = format!("{VM_LABEL},{}={}", MANAGED_BY_LABEL.0, MANAGED_BY_LABEL.1);
    let made_here = watcher::Config::default().labels(&selector);
    let (pods, pod_writer) = reflector::store();
    let of_pods = watcher(Api::<Pod>::all(client.clone()), made_here.clone())
        .default_backoff()
        .modify(forget_managed_fields)
        .reflect(pod_writer)
        .touched_objects()
        .filter_map(async |pod| vm_of(&pod.ok()?));
    let (volume_pods, volume_writer) = reflector::store();
    let selector = format!("{VOLUME_OF_LABEL},{}={}", MANAGED_BY_LABEL.0, MANAGED_BY_LABEL.1);
    let volumes_only = watcher::Config::default().labels(&selector);
    let of_volumes = watcher(Api::<Pod>::all(client.clone()), volumes_only)
        .default_backoff()
        .modify(forget_managed_fields)
        .reflect(volume_writer)
        .touched_objects()
        .filter_map(async |pod| vm_of_volume(&pod.ok()?));
    let (budgets, budget_writer) = reflector::store();
    let of_budgets = watcher(Api::<PodDisruptionBudget>::all(client.clone()), made_here)
        .default_backoff()
        .reflect(budget_writer)
        .touched_objects()
        .filter_map(async |budget| vm_of(&budget.ok()?));
    let (instance_types, type_writer) = reflector::store();
    let known = vms.clone();
    let of_types = watcher(
        Api::<VirtualMachineInstanceType>::all(client.clone()),
        watcher::Config::default(),
    )
    .default_backoff()
    .reflect(type_writer)
    .touched_objects()
    .filter_map(async |instance_type| instance_type.ok()?.metadata.name)
    .flat_map(move |name| stream::iter(vms_of(&name, &known)));
    let (cordoned, node_writer) = reflector::store();
    let known = vms.clone();
    // Few nodes are, and those are seen to come and go.
    let only_cordoned = watcher::Config::default().fields("spec.unschedulable=true");
    let of_nodes = watcher(Api::<PartialObjectMeta<Node>>::all(client.clone()), only_cordoned)
        .default_backoff()
        .reflect(node_writer)
        .touched_objects()
        .filter_map(async |node| node.ok()?.metadata.name)
        .flat_map(move |name| stream::iter(vms_on(&name, &known)));
    let stores = Stores {
        pods,
        volume_pods: VolumePods(volume_pods),
        instance_types,
        budgets,
        cordoned,
    };
    let all = [
        of_pods.boxed(),
        of_volumes.boxed(),
        of_budgets.boxed(),
        of_types.boxed(),
        of_nodes.boxed(),
    ];
    (stores, stream::select_all(all))
}

/// Runs the controller until `stopped` says so; what is under way is finished first.
pub(crate) async fn run(
    client: Client,
    arguments: &Arguments,
    health: &Health,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let vms: Api<Guarded> = Api::all(client.clone());
    vms.list(&ListParams::default().limit(1)).await.context(
        "failed to list VirtualMachines: is the chart tandem-crds installed, and may the operator list them?",
    )?;
    let (sets_client, sets_stopped) = (client.clone(), stopped.clone());
    let ready_flag = health.ready.clone();
    let (vm_store, vm_writer) = reflector::store();
    let vm_stream = watcher(vms, watcher::Config::default())
        .default_backoff()
        .modify(forget_managed_fields)
        .reflect(vm_writer)
        // Not by Store::wait_until_ready: it wakes one waiter only, and the controller is one.
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) && !ready_flag.swap(true, Ordering::AcqRel) {
                tracing::info!("every VirtualMachine is known");
            }
        })
        .applied_objects();
    let (stores, concerned) = watch_others(&client, &vm_store);
    let controller = Controller::for_stream(vm_stream, vm_store.clone())
        .reconcile_on(concerned)
        .with_config(Config::default().concurrency(arguments.concurrency))
        .graceful_shutdown_on(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        });
    let _ = health.vms.set(vm_store);
    let reporter = Reporter {
        controller: "tandem-operator".to_owned(),
        instance: arguments.identity.clone(),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let context = Arc::new(Context::new(
        client,
        Settings {
            shim_image: arguments.shim_image.clone(),
        },
        stores,
        recorder.clone(),
        health.metrics.clone(),
    ));
    let vms = controller.run(reconcile, error_policy, context).for_each(|_| ready(()));
    let sets = virtual_machine_set::controller::run(sets_client, recorder, arguments.concurrency, sets_stopped);
    tokio::join!(vms, sets);
    Ok(())
}
