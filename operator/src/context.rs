//! What every reconciliation uses.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crds::VirtualMachineInstanceType;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{events::Recorder, reflector::Store},
};

use crate::{metrics::Metrics, virtual_machine::VOLUME_OF_LABEL};

/// Longest delay before a failed reconciliation is tried again.
const MAX_FAILURE_DELAY: Duration = Duration::from_mins(5);

/// What every reconciliation uses.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) stores: Stores,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Metrics,
    /// Failures in a row of each object, by UID.
    failures: Mutex<HashMap<String, u32>>,
}

/// What is there, from the watches.
pub(crate) struct Stores {
    /// The shim pods.
    pub(crate) pods: Store<Pod>,
    pub(crate) volume_pods: VolumePods,
    pub(crate) instance_types: Store<VirtualMachineInstanceType>,
    /// The disruption budgets that Tandem made.
    pub(crate) budgets: Store<PodDisruptionBudget>,
    /// The nodes that are cordoned, and no others.
    pub(crate) cordoned: Store<PartialObjectMeta<Node>>,
}

/// The volume pods.
pub(crate) struct VolumePods(pub(crate) Store<Pod>);

impl VolumePods {
    /// Those that are labelled as a VM's. They are few: disks that were plugged into VMs that run.
    pub(crate) fn get(&self, namespace: &str, vm: &str) -> Vec<Arc<Pod>> {
        let of_vm = |pod: &Arc<Pod>| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.labels().get(VOLUME_OF_LABEL).is_some_and(|name| name == vm)
        };
        self.0.state().into_iter().filter(of_vm).collect()
    }
}

/// What the person who installs Tandem decides.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Image of the shim's container.
    pub(crate) shim_image: String,
}

impl Context {
    pub(crate) fn new(
        client: Client,
        settings: Settings,
        stores: Stores,
        recorder: Recorder,
        metrics: Metrics,
    ) -> Self {
        Self {
            client,
            settings,
            stores,
            recorder,
            metrics,
            failures: Mutex::default(),
        }
    }

    /// Delay before the next try of an object that has failed once more: 1 s, doubling to five minutes.
    pub(crate) fn next_failure_delay(&self, object: &impl Resource) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures
            .entry(object.meta().uid.clone().unwrap_or_default())
            .or_insert(0);
        let delay = Duration::from_secs(1_u64 << (*count).min(9)).min(MAX_FAILURE_DELAY);
        *count = count.saturating_add(1);
        delay
    }

    /// Forgets the failures of an object that was reconciled.
    pub(crate) fn forget_failures(&self, object: &impl Resource) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(object.meta().uid.as_deref().unwrap_or_default());
    }
}
