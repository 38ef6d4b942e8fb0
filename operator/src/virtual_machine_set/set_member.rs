//! What is kept of a set's VM: a set can have a thousand of them, and their specs are its own template.

use std::borrow::Cow;

use crds::{
    VirtualMachine,
    conditions::{ConditionType, find},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Resource,
    api::ObjectMeta,
    core::{DeserializeGuard, NamespaceResourceScope},
};
use serde::Deserialize;

/// A VM as the watch delivers it: one that cannot be read must not keep the others from being seen.
pub(crate) type GuardedMember = DeserializeGuard<SetMember>;

/// A `VirtualMachine` without its spec.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SetMember {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) status: Status,
}

/// What of a VM's status its set asks for.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Status {
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
}

impl SetMember {
    /// Since when the VM is ready, if its status speaks of its present spec.
    pub(super) fn ready_since(&self) -> Option<Timestamp> {
        let ready = find(&self.status.conditions, ConditionType::Ready)?;
        let holds = ready.status == "True" && ready.observed_generation == self.metadata.generation;
        holds.then_some(ready.last_transition_time.0)
    }
}

impl Resource for SetMember {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        VirtualMachine::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        VirtualMachine::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        VirtualMachine::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        VirtualMachine::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
