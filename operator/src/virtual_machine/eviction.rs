//! Pure: what `evictionPolicy` asks for, and what is to be said about it.
//!
//! An eviction that is refused leaves no trace on the pod or its budget. What does leave one is what `kubectl drain` and cluster autoscalers do first: they
//! cordon the node.

use crds::{
    EvictionPolicy, VirtualMachine,
    conditions::{Claim, ConditionStatus, ConditionType, Reason},
};
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{Resource, ResourceExt, api::ObjectMeta};

use super::desired::{MANAGED_BY_LABEL, VM_LABEL};

/// What is to be done about the budget that has a VM's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Nothing,
    Make,
    /// Somebody changed it.
    Correct,
    Remove,
    /// It is not the VM's own.
    LeaveToItsOwner,
}

/// Whether evictions of a VM's pod are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Nobody asks for it.
    NotAsked,
    InPlace {
        /// Whether the VM's node is cordoned.
        cordoned: bool,
    },
    /// Somebody else's budget has the VM's name.
    NameTaken,
    /// The API server did not admit the budget, and says why.
    Rejected(String),
}

/// Decides about the budget that has the VM's name.
pub(crate) fn step(vm: &VirtualMachine, present: Option<&PodDisruptionBudget>) -> Step {
    if vm.metadata.deletion_timestamp.is_some() {
        // The garbage collector deletes its budget after it.
        return Step::Nothing;
    }
    let own = present.filter(|budget| {
        let owner = budget
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true));
        owner.is_some_and(|owner| Some(&owner.uid) == vm.metadata.uid.as_ref())
    });
    match (vm.spec.eviction_policy(), present, own) {
        (EvictionPolicy::Block, None, _) => Step::Make,
        (EvictionPolicy::Block, Some(_), None) => Step::LeaveToItsOwner,
        (_, _, Some(own)) if own.metadata.deletion_timestamp.is_some() => Step::Nothing,
        (EvictionPolicy::Block, _, Some(own)) if own.spec == budget(vm).spec => Step::Nothing,
        (EvictionPolicy::Block, _, Some(_)) => Step::Correct,
        (EvictionPolicy::Shutdown, _, Some(_)) => Step::Remove,
        (EvictionPolicy::Shutdown, _, None) => Step::Nothing,
    }
}

/// The budget that lets nobody evict the VM's pod.
///
/// `minAvailable` and not `maxUnavailable`: for that one Kubernetes asks the pod's owner how many pods there should be, by a scale subresource that a VM
/// does not have. A guest that is not ready is protected too, since it may be in the middle of something: `IfHealthyBudget` refuses its eviction.
pub(crate) fn budget(vm: &VirtualMachine) -> PodDisruptionBudget {
    let label = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let name = vm.name_any();
    let own = label((VM_LABEL, &name));
    PodDisruptionBudget {
        metadata: ObjectMeta {
            namespace: vm.namespace(),
            labels: Some([own.clone(), label(MANAGED_BY_LABEL)].into()),
            owner_references: vm.controller_owner_ref(&()).map(|owner| vec![owner]),
            name: Some(name),
            ..ObjectMeta::default()
        },
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some([own, label(MANAGED_BY_LABEL)].into()),
                match_expressions: None,
            }),
            unhealthy_pod_eviction_policy: Some("IfHealthyBudget".to_owned()),
            max_unavailable: None,
        }),
        status: None,
    }
}

/// The condition `EvictionBlocked`, which only a VM has that asks for it.
pub(crate) fn claim(protection: &Protection, vm: &VirtualMachine, node: Option<&str>) -> Option<Claim> {
    let (holds, reason, message) = match protection {
        Protection::NotAsked => return None,
        Protection::InPlace { cordoned: false } => (
            true,
            Reason::Succeeded,
            "evictions of the VM's pod are refused because evictionPolicy is Block".to_owned(),
        ),
        Protection::InPlace { cordoned: true } => (
            true,
            Reason::NodeCordoned,
            format!(
                "node {:?} is cordoned, and the VM stays there because evictionPolicy is Block: to let the node be drained, set \
                 spec.evictionPolicy to Shutdown, or spec.runPolicy to Halted",
                node.unwrap_or_default()
            ),
        ),
        Protection::NameTaken => (
            false,
            Reason::BudgetNameTaken,
            format!(
                "a PodDisruptionBudget named {:?} that is not this VM's has taken its name, so the VM's own cannot be made: delete that \
                 budget, or rename the VM",
                vm.name_any()
            ),
        ),
        Protection::Rejected(message) => (
            false,
            Reason::BudgetRejected,
            format!("the API server did not admit the VM's PodDisruptionBudget: {message}"),
        ),
    };
    Some(Claim {
        condition: ConditionType::EvictionBlocked,
        status: if holds {
            ConditionStatus::True
        } else {
            ConditionStatus::False
        },
        reason,
        message,
    })
}
