//! IO: reads what a decision needs. The first of the five steps.

use crds::VirtualMachine;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{Api, ResourceExt, api::ListParams, runtime::reflector::ObjectRef};

use super::{
    ReconcileError,
    pod_state::{OwnPod, Phase, PodState},
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
    /// What keeps the pod from running.
    pub(crate) trouble: Option<Trouble>,
    pub(crate) now: Timestamp,
}

/// Reads the VM's pod and, where it does not start, why.
pub(crate) async fn observe(vm: &VirtualMachine, context: &Context) -> Result<Observed, ReconcileError> {
    let now = Timestamp::now();
    let namespace = vm.namespace().unwrap_or_default();
    let name = vm.name_any();
    let cached = context.pods.get(&ObjectRef::new(&name).within(&namespace));
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
    Ok(Observed {
        pod,
        state,
        trouble,
        now,
    })
}

async fn find_trouble(namespace: &str, pod: &OwnPod, context: &Context, now: Timestamp) -> Option<Trouble> {
    let waiting = match &pod.phase {
        Phase::Starting { waiting } => waiting.as_ref(),
        Phase::Unscheduled { .. } | Phase::Running { .. } | Phase::Ended(_) | Phase::Unknown => return None,
    };
    if let Some(trouble) = waiting.and_then(trouble::of_waiting) {
        return Some(trouble);
    }
    let patient = now.as_second() - pod.created.as_second() < PATIENCE_SECONDS;
    if patient || !trouble::needs_events(waiting) {
        return None;
    }
    let events: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let of_pod = ListParams::default()
        .fields(&format!("involvedObject.uid={},type=Warning", pod.uid))
        .limit(MAX_EVENTS);
    match events.list(&of_pod).await {
        Ok(events) => trouble::of_events(&events.items),
        Err(error) => {
            // Events only explain; without them the VM is started as well.
            tracing::warn!(%error, pod.uid, "failed to read the pod's events");
            None
        }
    }
}
