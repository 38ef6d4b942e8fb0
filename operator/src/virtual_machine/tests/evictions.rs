//! What an eviction policy makes, and what the VM says of it.

use crds::{
    VirtualMachine, VirtualMachineStatus,
    conditions::{ConditionType, find},
};
use insta::assert_yaml_snapshot;
use k8s_openapi::{
    api::policy::v1::PodDisruptionBudget,
    apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::fixtures::{at, bound, pod, running, step_with, with_spec};
use crate::virtual_machine::{
    announce,
    apply::Applied,
    eviction::{self, Protection, Step},
    lifecycle::Decision,
    status::Verdict,
};

fn vm(policy: &Value) -> VirtualMachine {
    with_spec(&json!({ "evictionPolicy": policy }))
}

/// The budget as the API server returns it.
fn made() -> PodDisruptionBudget {
    let mut budget = eviction::budget(&vm(&json!("Block")));
    budget.metadata.uid = Some("77777777-2222-4333-8444-555555555555".to_owned());
    budget
}

#[test]
fn the_budget_of_a_vm() {
    assert_yaml_snapshot!("budget", eviction::budget(&vm(&json!("Block"))));
}

#[test]
fn a_budget_is_there_exactly_while_it_is_asked_for() {
    let changed = |change: fn(&mut PodDisruptionBudget)| {
        let mut budget = made();
        change(&mut budget);
        Some(budget)
    };
    let weaker = changed(|budget| budget.spec.as_mut().expect("a spec").min_available = Some(IntOrString::Int(0)));
    let leaving = changed(|budget| budget.metadata.deletion_timestamp = Some(Time(at(1))));
    let of_others = changed(|budget| budget.owner_references_mut()[0].uid = "another".to_owned());
    let of_nobody = changed(|budget| budget.owner_references_mut().clear());
    // The budget; what is done with Block, with Shutdown.
    let table = [
        ("none", None, Step::Make, Step::Nothing),
        ("as made", Some(made()), Step::Nothing, Step::Remove),
        ("changed", weaker, Step::Correct, Step::Remove),
        ("being deleted", leaving, Step::Nothing, Step::Nothing),
        (
            "of a VM of the same name",
            of_others,
            Step::LeaveToItsOwner,
            Step::Nothing,
        ),
        ("of nobody", of_nobody, Step::LeaveToItsOwner, Step::Nothing),
    ];
    for (name, budget, block, shutdown) in table {
        assert_eq!(eviction::step(&vm(&json!("Block")), budget.as_ref()), block, "{name}");
        for policy in [json!("Shutdown"), Value::Null] {
            assert_eq!(
                eviction::step(&vm(&policy), budget.as_ref()),
                shutdown,
                "{name} {policy}"
            );
        }
    }
    let mut deleted = vm(&json!("Block"));
    deleted.metadata.deletion_timestamp = Some(Time(at(1)));
    assert_eq!(eviction::step(&deleted, None), Step::Nothing);
}

fn status(protection: &Protection) -> VirtualMachineStatus {
    let vm = vm(&json!("Block"));
    let pod = bound(pod(&vm, &running(true)));
    step_with(protection, &vm, Some(&pod), None, &Applied::Nothing, at(10)).1
}

#[test]
fn the_condition_says_who_waits_for_whom() {
    let table = [
        (Protection::InPlace { cordoned: false }, "True", "Succeeded", "refused"),
        (
            Protection::InPlace { cordoned: true },
            "True",
            "NodeCordoned",
            "node \"node-a\" is cordoned",
        ),
        (Protection::NameTaken, "False", "BudgetNameTaken", "rename the VM"),
        (
            Protection::Rejected("exceeded quota".to_owned()),
            "False",
            "BudgetRejected",
            "exceeded quota",
        ),
    ];
    for (protection, expected, reason, says) in table {
        let status = status(&protection);
        let condition = find(&status.conditions, ConditionType::EvictionBlocked).expect("the condition");
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            (expected, reason)
        );
        assert!(condition.message.contains(says), "{condition:?}");
        // Nobody has to do anything about the VM itself.
        assert_eq!(status.status.as_deref(), Some("Running"));
    }
    let unasked = status(&Protection::NotAsked);
    assert!(find(&unasked.conditions, ConditionType::EvictionBlocked).is_none());
}

#[test]
fn a_drain_that_waits_is_told_once() {
    let verdict = Verdict::Done(Decision::Keep, Applied::Nothing);
    let events = |old: &Protection, new: &Protection| -> Vec<String> {
        let events = announce::events(&status(old), &status(new), &verdict);
        events.into_iter().map(|event| event.reason).collect()
    };
    let (quiet, drained) = (
        Protection::InPlace { cordoned: false },
        Protection::InPlace { cordoned: true },
    );
    assert_eq!(events(&quiet, &drained), ["DrainBlocked"]);
    assert!(events(&drained, &drained).is_empty());
    assert!(events(&drained, &quiet).is_empty());
    assert!(events(&Protection::NotAsked, &quiet).is_empty());
    assert_eq!(events(&quiet, &Protection::NameTaken), ["EvictionsNotBlocked"]);
}

#[test]
fn the_policy_is_no_part_of_the_pod() {
    let of = |policy: &Value| serde_json::to_value(pod(&vm(policy), &running(true))).expect("JSON");
    assert_eq!(of(&json!("Block")), of(&Value::Null));
}
