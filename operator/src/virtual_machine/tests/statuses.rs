//! Golden statuses of observed states, and what kstatus reads from them.

use crds::{
    VirtualMachine, VirtualMachineStatus,
    conditions::{ConditionType, find},
};
use insta::assert_yaml_snapshot;
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::{Value, json};

use super::fixtures::{at, bound, deleted, ended, minimal, parse, pod, running, said, step, waiting, with_spec};
use crate::virtual_machine::{
    announce,
    apply::Applied,
    lifecycle::Decision,
    pod_state::Waiting,
    status::{self, Verdict},
    trouble::{self, Trouble},
};

/// What `kstatus.Compute` of cli-utils says of an object without a deletion timestamp.
#[derive(Debug, PartialEq, Eq)]
enum Kstatus {
    Current,
    InProgress,
    Failed,
}

fn kstatus(vm: &VirtualMachine, status: &VirtualMachineStatus) -> Kstatus {
    let holds = |condition| find(&status.conditions, condition).is_some_and(|condition| condition.status == "True");
    if status.observed_generation != vm.metadata.generation || holds(ConditionType::Reconciling) {
        Kstatus::InProgress
    } else if holds(ConditionType::Stalled) {
        Kstatus::Failed
    } else if holds(ConditionType::Ready) {
        Kstatus::Current
    } else {
        Kstatus::InProgress
    }
}

fn check(name: &str, vm: &VirtualMachine, pod: Option<&Pod>, trouble: Option<&Trouble>, expected: &Kstatus) {
    let (_, status) = step(vm, pod, trouble, &Applied::Nothing, at(10));
    assert_eq!(kstatus(vm, &status), *expected, "{name}");
    assert_yaml_snapshot!(name, status);
}

fn vm() -> VirtualMachine {
    with_spec(&json!({ "interfaces": [{ "name": "default", "masquerade": {} }] }))
}

fn probed() -> VirtualMachine {
    with_spec(&json!({ "readinessProbe": { "tcpSocket": { "port": 22 } } }))
}

#[test]
fn unscheduled() {
    let pending = |message: &str| {
        pod(
            &vm(),
            &json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message },
        ] }),
        )
    };
    let memory = pending("0/2 nodes are available: 2 Insufficient memory.");
    check("unschedulable", &vm(), Some(&memory), None, &Kstatus::InProgress);
    let kvm = pending("0/2 nodes are available: 2 Insufficient tandem.dev/kvm.");
    check("no_kvm", &vm(), Some(&kvm), None, &Kstatus::InProgress);
    let claim = pending("0/2 nodes are available: persistentvolumeclaim \"web-root\" not found. not found");
    check("claim_missing", &vm(), Some(&claim), None, &Kstatus::InProgress);
}

#[test]
fn what_the_scheduler_says_of_claims() {
    for (message, of_claims) in [
        (
            "0/2 nodes are available: persistentvolumeclaim \"web-root\" not found.",
            true,
        ),
        (
            "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            true,
        ),
        (
            "0/2 nodes are available: 1 node(s) had volume node affinity conflict.",
            true,
        ),
        (
            "0/2 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
            true,
        ),
        ("0/2 nodes are available: 2 node(s) exceed max volume count.", true),
        (
            "0/2 nodes are available: 1 node(s) did not have enough free storage.",
            true,
        ),
        (
            "0/2 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by \
             another pod.",
            true,
        ),
        ("0/2 nodes are available: 2 Insufficient memory.", false),
        (
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
            false,
        ),
    ] {
        assert_eq!(trouble::is_of_claims(message), of_claims, "{message}");
    }
}

#[test]
fn starting() {
    let creating = bound(pod(&vm(), &waiting("ContainerCreating", "")));
    check("starting", &vm(), Some(&creating), None, &Kstatus::InProgress);
}

#[test]
fn image_cannot_be_pulled() {
    let message = "failed to pull image \"guests/missing:1\": not found";
    let pulling = bound(pod(&vm(), &waiting("ErrImagePull", message)));
    let trouble = trouble::of_waiting(&Waiting {
        reason: "ErrImagePull".to_owned(),
        message: message.to_owned(),
    });
    check(
        "image_pull_failed",
        &vm(),
        Some(&pulling),
        trouble.as_ref(),
        &Kstatus::InProgress,
    );
    let invalid = trouble::of_waiting(&Waiting {
        reason: "InvalidImageName".to_owned(),
        message: "A!".to_owned(),
    });
    check(
        "image_name_invalid",
        &vm(),
        Some(&pulling),
        invalid.as_ref(),
        &Kstatus::Failed,
    );
}

#[test]
fn backing_off_keeps_the_message_of_the_failure() {
    let mut vm = vm();
    let see = |vm: &VirtualMachine, reason: &str, message: &str| {
        let waits = Waiting {
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let pod = bound(pod(vm, &waiting(reason, message)));
        step(
            vm,
            Some(&pod),
            trouble::of_waiting(&waits).as_ref(),
            &Applied::Nothing,
            at(10),
        )
        .1
    };
    let failed = see(&vm, "ErrImagePull", "not found");
    vm.status = Some(failed.clone());
    let backing_off = see(&vm, "ImagePullBackOff", "Back-off pulling image");
    assert_eq!(
        find(&failed.conditions, ConditionType::ImageReady),
        find(&backing_off.conditions, ConditionType::ImageReady)
    );
}

#[test]
fn secret_is_missing() {
    let event: Event = serde_json::from_value(json!({
        "metadata": {}, "involvedObject": {}, "reason": "FailedMount",
        "message": "MountVolume.SetUp failed for volume \"cloud-init\" : secret \"web-user\" not found",
        "lastTimestamp": at(5),
    }))
    .expect("an event");
    let creating = bound(pod(&vm(), &waiting("ContainerCreating", "")));
    check(
        "mount_failed",
        &vm(),
        Some(&creating),
        trouble::of_events(&[event]).as_ref(),
        &Kstatus::InProgress,
    );
}

#[test]
fn runs() {
    check(
        "running_without_probe",
        &vm(),
        Some(&bound(pod(&vm(), &running(true)))),
        None,
        &Kstatus::Current,
    );
    check(
        "running_not_ready",
        &probed(),
        Some(&bound(pod(&probed(), &running(false)))),
        None,
        &Kstatus::InProgress,
    );
    check(
        "running_ready",
        &probed(),
        Some(&bound(pod(&probed(), &running(true)))),
        None,
        &Kstatus::Current,
    );
}

#[test]
fn guest_reports() {
    let mut running_guest = vm();
    running_guest.status = Some(
        serde_json::from_value(json!({ "guest": { "podUID": super::fixtures::POD_UID, "state": "Running" } }))
            .expect("a status"),
    );
    check(
        "guest_running",
        &running_guest,
        Some(&bound(pod(&vm(), &running(true)))),
        None,
        &Kstatus::Current,
    );
}

#[test]
fn spec_changed_while_it_runs() {
    let before = bound(pod(&vm(), &running(true)));
    let after = with_spec(
        &json!({ "cpu": { "cores": 4 }, "interfaces": [{ "name": "default", "masquerade": {} }], "runPolicy": "Always" }),
    );
    check("restart_required", &after, Some(&before), None, &Kstatus::Current);
}

#[test]
fn halted() {
    let halted = with_spec(&json!({ "runPolicy": "Halted" }));
    check("halted", &halted, None, None, &Kstatus::Current);
    check(
        "halting",
        &halted,
        Some(&bound(pod(&halted, &running(true)))),
        None,
        &Kstatus::InProgress,
    );
    let terminating = deleted(bound(pod(&halted, &running(true))), 80);
    check(
        "halting_terminating",
        &halted,
        Some(&terminating),
        None,
        &Kstatus::InProgress,
    );
}

#[test]
fn node_is_lost() {
    let terminating = deleted(bound(pod(&vm(), &running(true))), -100);
    check("node_lost", &vm(), Some(&terminating), None, &Kstatus::InProgress);
}

#[test]
fn ends() {
    let killed = bound(pod(&vm(), &ended("Failed", 137, "Error", "", 9)));
    check("killed", &vm(), Some(&killed), None, &Kstatus::InProgress);
    let oom = bound(pod(&vm(), &ended("Failed", 137, "OOMKilled", "", 9)));
    check("oom_killed", &vm(), Some(&oom), None, &Kstatus::InProgress);
    let kernel = said("InvalidBootSource", "/volumes/boot/boot/vmlinuz is not a kernel");
    let hopeless = bound(pod(&vm(), &ended("Failed", 21, "Error", &kernel, 9)));
    check("invalid_boot_source", &vm(), Some(&hopeless), None, &Kstatus::Failed);
    let once = with_spec(&json!({ "runPolicy": "Once" }));
    let off = bound(pod(
        &once,
        &ended(
            "Succeeded",
            0,
            "Completed",
            &said("PoweredOff", "the guest powered off"),
            9,
        ),
    ));
    check("once_completed", &once, Some(&off), None, &Kstatus::Current);
    let crashed = bound(pod(
        &once,
        &ended("Failed", 40, "Error", &said("GuestCrashed", "triple fault"), 9),
    ));
    check("once_failed", &once, Some(&crashed), None, &Kstatus::Failed);
    let evicted = bound(pod(
        &vm(),
        &json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on memory" }),
    ));
    check("evicted", &vm(), Some(&evicted), None, &Kstatus::InProgress);
}

#[test]
fn backs_off_after_the_second_short_run() {
    let mut vm = vm();
    vm.status = Some(
        serde_json::from_value(
            json!({ "restarts": { "failures": 1, "lastTermination": { "podUID": "earlier", "reason": "Killed" } } }),
        )
        .expect("a status"),
    );
    let killed = bound(pod(&vm, &ended("Failed", 137, "Error", "", 9)));
    check("backoff", &vm, Some(&killed), None, &Kstatus::InProgress);
}

#[test]
fn name_is_taken() {
    let mut foreign = pod(&vm(), &running(true));
    foreign.metadata.owner_references = None;
    check("pod_name_taken", &vm(), Some(&foreign), None, &Kstatus::Failed);
    let mut other = minimal();
    other["metadata"]["uid"] = json!("another");
    let old = pod(&parse(other), &running(true));
    check("pod_of_a_deleted_vm", &vm(), Some(&old), None, &Kstatus::InProgress);
}

#[test]
fn pod_is_rejected() {
    let rejected = |message: &str, may_pass| {
        let applied = Applied::Rejected {
            message: message.to_owned(),
            may_pass,
        };
        step(&vm(), None, None, &applied, at(10)).1
    };
    let quota = rejected("pods \"web\" is forbidden: exceeded quota: q", true);
    assert_eq!(kstatus(&vm(), &quota), Kstatus::InProgress);
    assert_yaml_snapshot!("quota_exceeded", quota);
    let policy = rejected("pods \"web\" is forbidden: violates PodSecurity", false);
    assert_eq!(kstatus(&vm(), &policy), Kstatus::Failed);
}

#[test]
fn unreadable_objects_are_reported() {
    let status = status::unreadable(Some(3), "missing field `cpu`", at(10));
    assert_yaml_snapshot!("unreadable", status);
}

#[test]
fn the_same_state_makes_the_same_status() {
    let pods: [Value; 4] = [
        running(true),
        waiting("ContainerCreating", ""),
        ended("Failed", 137, "Error", "", 9),
        ended("Failed", 21, "Error", &said("InvalidDisk", "broken"), 9),
    ];
    for pod_status in pods {
        let mut vm = vm();
        let pod = bound(pod(&vm, &pod_status));
        let (earlier, status) = step(&vm, Some(&pod), None, &Applied::Nothing, at(10));
        vm.status = Some(status.clone());
        let (second, again) = step(&vm, Some(&pod), None, &Applied::Nothing, at(10));
        assert_eq!((earlier, status), (second, again), "{pod_status}");
    }
}

#[test]
fn events_are_told_once() {
    let mut vm = vm();
    let pod = bound(pod(&vm, &running(true)));
    let (_, status) = step(&vm, Some(&pod), None, &Applied::Nothing, at(10));
    let verdict = Verdict::Done(Decision::Keep, Applied::Nothing);
    let told = announce::events(&VirtualMachineStatus::default(), &status, &verdict);
    assert_eq!(
        told.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>(),
        ["Ready"]
    );
    vm.status = Some(status.clone());
    let (_, again) = step(&vm, Some(&pod), None, &Applied::Nothing, at(60));
    assert!(announce::events(&status, &again, &verdict).is_empty());
}
