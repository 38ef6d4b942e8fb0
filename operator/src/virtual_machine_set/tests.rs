//! What a set makes of its template, and what its status says.

use std::time::Duration;

use crds::{
    VirtualMachineSet,
    conditions::{ConditionType, find},
};
use insta::assert_yaml_snapshot;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::{
    Applied, announce,
    claims::{self, Found, Owner, Present},
    member,
    plan::{Plan, Readiness, Replacement, plan},
    status,
};

fn set(spec: &Value) -> VirtualMachineSet {
    let mut set = json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachineSet",
        "metadata": { "name": "web", "namespace": "default", "uid": "11111111-2222-4333-8444-555555555555", "generation": 1 },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web", "tier": "front" } },
                "spec": {
                    "cpu": { "cores": 1 }, "memory": { "size": "512Mi" },
                    "disks": [{ "name": "root", "image": { "image": "guests/debian:12" } }],
                },
            },
        },
    });
    for (key, value) in spec.as_object().expect("an object") {
        set["spec"][key] = value.clone();
    }
    serde_json::from_value(set).expect("a VirtualMachineSet")
}

#[test]
fn a_member_is_the_template_and_its_sets() {
    let set = set(&json!({}));
    let wanted = member::wanted(&set);
    assert_yaml_snapshot!("member", member::vm(&set, "web-0", &wanted.revision));
}

pub(super) fn with_claims(policy: &Value) -> VirtualMachineSet {
    let claim = json!({
        "metadata": { "name": "data", "labels": { "tier": "front" }, "annotations": { "note": "a" } },
        "spec": {
            "storageClassName": "fast", "volumeMode": "Block", "resources": { "requests": { "storage": "10Gi" } },
            "dataSourceRef": { "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "golden" },
        },
    });
    let disk = |name: &str, claim: &str| json!({ "name": name, "persistentVolumeClaim": { "claimName": claim, "volumeMode": "Block" } });
    set(&json!({
        "stableNames": true,
        "volumeClaimTemplates": [claim],
        "persistentVolumeClaimRetentionPolicy": policy,
        "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": { "instanceType": { "name": "small" }, "disks": [disk("data", "data"), disk("shared", "of-all")] },
        },
    }))
}

#[test]
fn a_member_has_its_own_claims() {
    let set = with_claims(&json!({ "whenDeleted": "Delete" }));
    let vm = member::vm(&set, "web-1", "0");
    let of = |index: usize| {
        let claim = vm.spec.disks[index].persistent_volume_claim.as_ref();
        claim.expect("a claim").claim_name.clone()
    };
    assert_eq!((of(0).as_str(), of(1).as_str()), ("data-web-1", "of-all"));
    let template = &set.spec.volume_claim_templates[0];
    let claim = claims::claim(&set, template, "web-1", &Owner::Set);
    assert_yaml_snapshot!("claim", claim);
    let read = claims::read(&set, &claim).expect("a claim of the set");
    assert_eq!(
        (read.name.as_str(), read.vm.as_str(), read.owner, read.goes),
        ("data-web-1", "web-1", Owner::Set, false)
    );
    let nobodys = claims::claim(&set, template, "web-1", &Owner::Nobody);
    assert!(nobodys.metadata.owner_references.is_none());
}

#[test]
fn a_claim_changes_hands_and_keeps_its_other_owners() {
    let set = with_claims(&json!({}));
    let vm = |uid: &str| Owner::Vm(uid.to_owned());
    let mut other = claims::owners(&set, "web-1", &[], &Owner::Set)[0].clone();
    other.uid = "another".to_owned();
    let others = std::slice::from_ref(&other);
    let mut claim = claims::claim(&set, &set.spec.volume_claim_templates[0], "web-1", &Owner::Nobody);
    let mut hand = |present: &[OwnerReference], owner: &Owner| {
        let owners = claims::owners(&set, "web-1", present, owner);
        claim.metadata.owner_references = Some(owners.clone());
        assert_eq!(claims::read(&set, &claim).expect("a claim of the set").owner, *owner);
        owners
    };
    let both = hand(others, &Owner::Set);
    assert_eq!(both.len(), 2);
    assert_eq!(hand(&both, &Owner::Set), both);
    let with_vm = hand(&both, &vm("1"));
    assert_eq!((with_vm.len(), &with_vm[0]), (2, &other));
    assert_eq!(hand(&with_vm, &vm("2")).len(), 2);
    assert_eq!(hand(&with_vm, &Owner::Set), both);
    assert_eq!(hand(&both, &Owner::Nobody), [other]);
}

#[test]
fn a_claim_that_is_there_first_is_looked_at() {
    let set = with_claims(&json!({}));
    let present = [("web-1", "1")].map(|(name, uid)| (name, Present { uid, ready: false }));
    let present = present.into_iter().collect();
    let template = &set.spec.volume_claim_templates[0];
    let found = |change: &dyn Fn(&mut ObjectMeta), owner: &Owner| {
        let mut claim = claims::claim(&set, template, "web-1", owner);
        change(&mut claim.metadata);
        claims::found(&set, &claim, &present)
    };
    let deleted = |claim: &mut ObjectMeta| claim.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    let of = |set: &str| {
        let set = set.to_owned();
        move |claim: &mut ObjectMeta| {
            let labels = claim.labels.get_or_insert_default();
            labels.insert(member::SET_LABEL.to_owned(), set.clone());
        }
    };
    let of_an_earlier_set = |claim: &mut ObjectMeta| {
        claim.owner_references.get_or_insert_default()[0].uid = "earlier".to_owned();
    };
    let (as_is, by_hand) = (|_: &mut ObjectMeta| {}, |claim: &mut ObjectMeta| claim.labels = None);
    assert_eq!(found(&as_is, &Owner::Nobody), Found::Usable);
    assert_eq!(found(&by_hand, &Owner::Nobody), Found::Usable);
    assert_eq!(found(&deleted, &Owner::Nobody), Found::Goes);
    assert_eq!(found(&of_an_earlier_set, &Owner::Set), Found::Goes);
    assert_eq!(found(&as_is, &Owner::Vm("1".to_owned())), Found::Usable);
    assert_eq!(found(&as_is, &Owner::Vm("2".to_owned())), Found::Goes);
    assert_eq!(found(&of("other"), &Owner::Nobody), Found::Of("other".to_owned()));
}

#[test]
fn the_revision_follows_the_template_only() {
    let revision = |spec: &Value| member::wanted(&set(spec)).revision;
    assert_eq!(
        revision(&json!({})),
        revision(&json!({ "replicas": 9, "stableNames": true }))
    );
    let other = json!({ "template": { "spec": { "instanceType": { "name": "small" } } } });
    assert_ne!(revision(&json!({})), revision(&other));
}

#[test]
fn shares_are_rounded_so_that_a_roll_goes_on() {
    let replacement = |replicas: i32, strategy: Value| {
        member::wanted(&set(&json!({ "replicas": replicas, "updateStrategy": strategy }))).replacement
    };
    let rolling = |max_surge, max_unavailable| Replacement::Rolling {
        max_surge,
        max_unavailable,
    };
    assert_eq!(replacement(3, json!({})), rolling(0, 1));
    assert_eq!(
        replacement(3, json!({ "maxSurge": "25%", "maxUnavailable": "25%" })),
        rolling(1, 0)
    );
    assert_eq!(replacement(3, json!({ "maxUnavailable": "25%" })), rolling(0, 1));
    assert_eq!(
        replacement(10, json!({ "maxSurge": 2, "maxUnavailable": "30%" })),
        rolling(2, 3)
    );
    assert_eq!(replacement(3, json!({ "type": "OnDelete" })), Replacement::OnDelete);
}

#[test]
fn the_status_counts_and_sums_up() {
    let set = set(&json!({}));
    let wanted = member::wanted(&set);
    let members: Vec<_> = plan(&wanted, &[])
        .create
        .iter()
        .map(|name| super::plan::Member {
            name: name.clone(),
            revision: wanted.revision.clone(),
            readiness: Readiness::Available,
            deleted: false,
        })
        .collect();
    let now = jiff::Timestamp::UNIX_EPOCH;
    let holds = |status: &crds::VirtualMachineSetStatus, condition| {
        find(&status.conditions, condition).is_some_and(|condition| condition.status == "True")
    };
    let done = status::compute(&set, &wanted, &members, &Plan::default(), &Applied::default(), now);
    assert_eq!((done.replicas, done.ready_replicas, done.updated_replicas), (3, 3, 3));
    assert_eq!(done.selector.as_deref(), Some("app=web"));
    assert!(holds(&done, ConditionType::Ready) && !holds(&done, ConditionType::Reconciling));
    let rejected = Applied {
        rejected: Some("exceeded quota".to_owned()),
        ..Applied::default()
    };
    // The VMs are there, and something is wrong with a claim.
    let refused = status::compute(&set, &wanted, &members, &Plan::default(), &rejected, now);
    assert!(holds(&refused, ConditionType::Stalled) && !holds(&refused, ConditionType::Ready));
    let fewer = &members[..2];
    let under_way = status::compute(&set, &wanted, fewer, &plan(&wanted, fewer), &Applied::default(), now);
    assert!(!holds(&under_way, ConditionType::Ready) && holds(&under_way, ConditionType::Reconciling));
    let stalled = status::compute(&set, &wanted, fewer, &plan(&wanted, fewer), &rejected, now);
    assert!(holds(&stalled, ConditionType::Stalled) && !holds(&stalled, ConditionType::Reconciling));
}

#[test]
fn a_member_is_available_when_it_was_ready_for_long_enough() {
    let ready_at = |second: i64, generation: i64| {
        let since = jiff::Timestamp::from_second(second).expect("a time");
        let member = json!({
            "metadata": { "name": "web-0", "generation": 2 },
            "status": { "conditions": [
                { "type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": since, "observedGeneration": generation },
            ], "phase": ["what a later version may write"] },
        });
        kube::core::DeserializeGuard(Ok(serde_json::from_value(member).expect("a member")))
    };
    let now = jiff::Timestamp::from_second(100).expect("a time");
    let readiness = |since, generation, min_ready| {
        member::read(&ready_at(since, generation), Duration::from_secs(min_ready), now).readiness
    };
    let in_seconds = |seconds| Readiness::Ready {
        available_in: Duration::from_secs(seconds),
    };
    assert_eq!(readiness(100, 2, 0), Readiness::Available);
    assert_eq!(readiness(80, 2, 30), in_seconds(10));
    assert_eq!(readiness(70, 2, 30), Readiness::Available);
    assert_eq!(readiness(130, 2, 30), in_seconds(30), "a clock that goes wrong");
    assert_eq!(readiness(70, 1, 30), Readiness::NotReady, "of an older spec");
}

#[test]
fn each_vm_has_events_of_its_own_and_a_refusal_one() {
    let mut set = set(&json!({}));
    let told = |set: &VirtualMachineSet, applied: &Applied| -> Vec<(String, Option<String>)> {
        let events = announce::events(set, applied).into_iter();
        let vm = |related: Option<k8s_openapi::api::core::v1::ObjectReference>| related.and_then(|vm| vm.name);
        events.map(|event| (event.reason, vm(event.secondary))).collect()
    };
    let done = Applied {
        made: vec!["web-a".to_owned(), "web-b".to_owned()],
        deleted: vec!["web-c".to_owned()],
        ..Applied::default()
    };
    let of = |reason: &str, vm: &str| (reason.to_owned(), Some(vm.to_owned()));
    assert_eq!(
        told(&set, &done),
        [
            of("SuccessfulCreate", "web-a"),
            of("SuccessfulCreate", "web-b"),
            of("SuccessfulDelete", "web-c")
        ]
    );
    assert_eq!(told(&set, &Applied::default()), []);
    let rejected = Applied {
        rejected: Some("exceeded quota".to_owned()),
        ..Applied::default()
    };
    assert_eq!(told(&set, &rejected), [("FailedCreate".to_owned(), None)]);
    let wanted = member::wanted(&set);
    let now = jiff::Timestamp::from_second(100).expect("a time");
    set.status = Some(status::compute(&set, &wanted, &[], &Plan::default(), &rejected, now));
    assert_eq!(told(&set, &rejected), [], "it was said before");
}
