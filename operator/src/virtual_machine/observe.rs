//! IO: reads what a decision needs. The first of the five steps.

use std::sync::Arc;

use crds::{EvictionPolicy, VirtualMachine, VirtualMachineInstanceType};
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Event, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, ResourceExt, api::ListParams, runtime::reflector::ObjectRef};

use super::{
    ReconcileError,
    desired::{MANAGED_BY_LABEL, VOLUME_OF_LABEL},
    hotplug::{VolumePhase, VolumePod},
    pod_state::{OwnPod, Phase, PodState, Waiting},
    trouble::{self, Trouble},
};
use crate::context::Context;

/// Seconds that a pod may take to start before its events are read.
const PATIENCE_SECONDS: i64 = 5;
/// Most events that are read.
const MAX_EVENTS: u32 = 50;

/// What is there.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The pod that has the VM's name.
    pub(crate) pod: Option<Pod>,
    /// The same, read.
    pub(crate) state: PodState,
    /// The VM's volume pods, of whichever run.
    pub(crate) volumes: Vec<VolumePod>,
    /// What keeps the pod from running.
    pub(crate) trouble: Option<Trouble>,
    /// The instance type that the VM names, if there is one.
    pub(crate) instance_type: Option<Arc<VirtualMachineInstanceType>>,
    /// The disruption budget that has the VM's name; of a VM that asks for none, only one that Tandem made.
    pub(crate) budget: Option<PodDisruptionBudget>,
    /// Whether the pod's node is cordoned.
    pub(crate) cordoned: bool,
    pub(crate) now: Timestamp,
}

/// Reads the VM's pod and, where it does not start, why.
pub(crate) async fn observe(vm: &VirtualMachine, context: &Context) -> Result<Observed, ReconcileError> {
    let now = Timestamp::now();
    let namespace = vm.namespace().unwrap_or_default();
    let name = vm.name_any();
    let cached = context.stores.pods.get(&ObjectRef::new(&name).within(&namespace));
    // A pod is only ever made on fresh knowledge that there is none; and the cache holds our own pods only.
    let pod = if let Some(pod) = cached {
        Some(pod.as_ref().clone())
    } else {
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        pods.get_opt(&name).await.map_err(|source| ReconcileError::Read {
            what: "pod",
            name,
            source,
        })?
    };
    let state = PodState::read(vm, pod.as_ref());
    let trouble = match state.own() {
        Some(own) => find_trouble(&namespace, own, context, now).await,
        None => None,
    };
    let volumes = volumes(vm, pod.is_none(), context, now).await?;
    let node = state.own().and_then(|own| own.node.as_deref());
    Ok(Observed {
        cordoned: node.is_some_and(|node| context.stores.cordoned.get(&ObjectRef::new(node)).is_some()),
        pod,
        state,
        volumes,
        trouble,
        instance_type: instance_type(vm, context).await?,
        budget: budget(vm, context).await?,
        now,
    })
}

/// The volume pods from the watch; but a VM that has run before gets its next pod only on fresh knowledge that there are none.
async fn volumes(
    vm: &VirtualMachine,
    is_off: bool,
    context: &Context,
    now: Timestamp,
) -> Result<Vec<VolumePod>, ReconcileError> {
    let (name, namespace) = (vm.name_any(), vm.namespace().unwrap_or_default());
    let restarts = vm.status.as_ref().and_then(|status| status.restarts.as_ref());
    let has_run = restarts.is_some_and(|restarts| restarts.started_pod_uid.is_some());
    let pods: Vec<Arc<Pod>> = if is_off && has_run {
        let selector = format!("{VOLUME_OF_LABEL}={name},{}={}", MANAGED_BY_LABEL.0, MANAGED_BY_LABEL.1);
        let listed = Api::<Pod>::namespaced(context.client.clone(), &namespace)
            .list(&ListParams::default().labels(&selector))
            .await;
        let listed = listed.map_err(|source| ReconcileError::Read {
            what: "volume pods of",
            name: name.clone(),
            source,
        })?;
        listed.items.into_iter().map(Arc::new).collect()
    } else {
        context.stores.volume_pods.get(&namespace, &name)
    };
    let mut volumes = Vec::new();
    for pod in pods {
        let Some(mut volume) = VolumePod::read(&pod, &name, None) else {
            continue;
        };
        if volume.phase == VolumePhase::Pending(None) {
            let status = pod
                .status
                .as_ref()
                .and_then(|status| status.container_statuses.as_ref());
            let waiting = status
                .and_then(|containers| containers.first()?.state.as_ref()?.waiting.as_ref())
                .map(|waiting| Waiting {
                    reason: waiting.reason.clone().unwrap_or_default(),
                    message: waiting.message.clone().unwrap_or_default(),
                });
            let is_bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            let trouble = if is_bound {
                trouble_of(&namespace, &volume.uid, volume.created, waiting.as_ref(), context, now).await
            } else {
                None
            };
            if let Some(trouble) = trouble {
                volume = VolumePod::read(&pod, &name, Some(&trouble.message)).unwrap_or(volume);
            }
        }
        volumes.push(volume);
    }
    volumes.sort_by(|one, other| one.disk.cmp(&other.disk));
    Ok(volumes)
}

/// The budget from the watch, which sees those that Tandem made; else, where one is to be made, from the API server.
async fn budget(vm: &VirtualMachine, context: &Context) -> Result<Option<PodDisruptionBudget>, ReconcileError> {
    let (name, namespace) = (vm.name_any(), vm.namespace().unwrap_or_default());
    if let Some(cached) = context.stores.budgets.get(&ObjectRef::new(&name).within(&namespace)) {
        return Ok(Some(cached.as_ref().clone()));
    }
    match vm.spec.eviction_policy() {
        EvictionPolicy::Shutdown => Ok(None),
        EvictionPolicy::Block => {
            let budgets: Api<PodDisruptionBudget> = Api::namespaced(context.client.clone(), &namespace);
            budgets.get_opt(&name).await.map_err(|source| ReconcileError::Read {
                what: "PodDisruptionBudget",
                name,
                source,
            })
        }
    }
}

/// The instance type from the watch; or, where the watch has not seen it (yet), from the API server: a VM is not called wrong on old knowledge.
async fn instance_type(
    vm: &VirtualMachine,
    context: &Context,
) -> Result<Option<Arc<VirtualMachineInstanceType>>, ReconcileError> {
    let Some(reference) = &vm.spec.instance_type else {
        return Ok(None);
    };
    if let Some(cached) = context.stores.instance_types.get(&ObjectRef::new(&reference.name)) {
        return Ok(Some(cached));
    }
    let instance_types: Api<VirtualMachineInstanceType> = Api::all(context.client.clone());
    let found = instance_types.get_opt(&reference.name).await;
    found
        .map(|found| found.map(Arc::new))
        .map_err(|source| ReconcileError::Read {
            what: "VirtualMachineInstanceType",
            name: reference.name.clone(),
            source,
        })
}

async fn find_trouble(namespace: &str, pod: &OwnPod, context: &Context, now: Timestamp) -> Option<Trouble> {
    let waiting = match &pod.phase {
        Phase::Starting { waiting } => waiting.as_ref(),
        Phase::Unscheduled { .. } | Phase::Running { .. } | Phase::Ended(_) | Phase::Unknown => return None,
    };
    trouble_of(namespace, &pod.uid, pod.created, waiting, context, now).await
}

/// What keeps a pod that has a node from starting.
async fn trouble_of(
    namespace: &str,
    uid: &str,
    created: Timestamp,
    waiting: Option<&Waiting>,
    context: &Context,
    now: Timestamp,
) -> Option<Trouble> {
    if let Some(trouble) = waiting.and_then(trouble::of_waiting) {
        return Some(trouble);
    }
    let patient = now.as_second() - created.as_second() < PATIENCE_SECONDS;
    if patient || !trouble::needs_events(waiting) {
        return None;
    }
    let events: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let of_pod = ListParams::default()
        .fields(&format!("involvedObject.uid={uid},type=Warning"))
        .limit(MAX_EVENTS);
    match events.list(&of_pod).await {
        Ok(events) => trouble::of_events(&events.items),
        Err(error) => {
            // Events only explain; without them the VM is started as well.
            tracing::warn!(%error, uid, "failed to read the pod's events");
            None
        }
    }
}
