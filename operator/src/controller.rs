//! Watches VirtualMachines and their pods, and reconciles what changed.

use std::{
    future::ready,
    sync::{Arc, atomic::Ordering},
};

use anyhow::Context as _;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::ListParams,
    runtime::{
        Controller, WatchStreamExt,
        controller::Config,
        events::{Recorder, Reporter},
        reflector::{self, ObjectRef},
        watcher,
    },
};
use tokio::sync::watch;

use crate::{
    arguments::Arguments,
    context::{Context, Settings},
    http::Health,
    virtual_machine::{Guarded, MANAGED_BY_LABEL, VM_LABEL, error_policy, reconcile},
};

/// The VM that a pod is named after. It is told of its pod's end also when the pod belonged to its predecessor of the same name.
fn vm_of(pod: &Pod) -> Option<ObjectRef<Guarded>> {
    let namespace = pod.metadata.namespace.as_deref()?;
    pod.metadata
        .name
        .as_deref()
        .map(|name| ObjectRef::new(name).within(namespace))
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
    let pods: Api<Pod> = Api::all(client.clone());
    let selector = format!("{VM_LABEL},{}={}", MANAGED_BY_LABEL.0, MANAGED_BY_LABEL.1);
    let (pod_store, pod_writer) = reflector::store();
    let pod_stream = watcher(pods, watcher::Config::default().labels(&selector))
        .default_backoff()
        .reflect(pod_writer)
        .touched_objects()
        .filter_map(async |pod| vm_of(&pod.ok()?));
    let ready_flag = health.ready.clone();
    let (vm_store, vm_writer) = reflector::store();
    let vm_stream = watcher(vms, watcher::Config::default())
        .default_backoff()
        .reflect(vm_writer)
        // Not by Store::wait_until_ready: it wakes one waiter only, and the controller is one.
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) && !ready_flag.swap(true, Ordering::AcqRel) {
                tracing::info!("every VirtualMachine is known");
            }
        })
        .applied_objects();
    let controller = Controller::for_stream(vm_stream, vm_store.clone())
        .reconcile_on(pod_stream)
        .with_config(Config::default().concurrency(arguments.concurrency))
        .graceful_shutdown_on(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        });
    let _ = health.vms.set(vm_store);
    let reporter = Reporter {
        controller: "tandem-operator".to_owned(),
        instance: arguments.identity.clone(),
    };
    let context = Arc::new(Context::new(
        client.clone(),
        Settings {
            shim_image: arguments.shim_image.clone(),
        },
        pod_store,
        Recorder::new(client, reporter),
        health.metrics.clone(),
    ));
    controller
        .run(reconcile, error_policy, context)
        .for_each(|_| ready(()))
        .await;
    Ok(())
}
