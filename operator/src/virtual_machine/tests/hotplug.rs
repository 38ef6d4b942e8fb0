//! Disks that come and go while their VM runs.

use std::fmt::Write;

use crds::{
    VirtualMachine,
    conditions::{ConditionType, find},
    guest::{GuestDisk, GuestStatus, RefusedDisk},
    status::{TargetDisk, TargetDisks, WaitsFor},
};
use insta::{assert_snapshot, assert_yaml_snapshot};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::fixtures::{POD_UID, SHIM_IMAGE, at, bound, pod, running, said, valid, with_spec};
use crate::virtual_machine::{
    announce,
    apply::Applied,
    desired::volume_pod::{VmPod, volume_pod},
    eviction::Protection,
    hotplug::{Facts, Plan, Step, VolumePhase, VolumePod, leftovers, plan},
    lifecycle::Decision,
    live::Live,
    pod_state::PodState,
    run_history::History,
    status::{self, Verdict},
};

fn before() -> Value {
    json!({ "disks": [{ "name": "root", "image": { "image": "guests/debian:12" } }] })
}

/// The VM with more disks.
fn with_disks(disks: &[Value]) -> VirtualMachine {
    let mut spec = before();
    spec["disks"].as_array_mut().expect("a list").extend_from_slice(disks);
    with_spec(&spec)
}

fn volume(disk: &str, phase: VolumePhase) -> VolumePod {
    VolumePod {
        name: format!("web.{disk}"),
        uid: format!("{disk}-uid"),
        disk: disk.to_owned(),
        run: POD_UID.to_owned(),
        created: at(0),
        deleted: None,
        phase,
        disk_spec: None,
    }
}

fn target(disks: &[&str]) -> TargetDisks {
    let disk = |name: &&str| TargetDisk {
        name: (*name).to_owned(),
        pod_name: format!("web.{name}"),
        pod_uid: format!("{name}-uid"),
    };
    TargetDisks {
        pod_uid: POD_UID.to_owned(),
        disks: disks.iter().map(disk).collect(),
    }
}

fn has(disks: &[(&str, &str)]) -> GuestStatus {
    let disk = |(name, uid): &(&str, &str)| GuestDisk {
        name: (*name).to_owned(),
        pod_uid: (*uid).to_owned(),
    };
    GuestStatus {
        pod_uid: Some(POD_UID.to_owned()),
        disks: disks.iter().map(disk).collect(),
        ..GuestStatus::default()
    }
}

/// Steps, the disks of the target, and what is pending, in words.
fn shown(plan: &Plan) -> (Vec<String>, Option<Vec<String>>, Vec<String>) {
    let step = |step: &Step| match step {
        Step::Make(disk) => format!("make {disk}"),
        Step::Delete { name, at_once, .. } if *at_once => format!("delete {name} at once"),
        Step::Delete { name, .. } => format!("delete {name}"),
    };
    let target = plan.target.as_ref();
    (
        plan.steps.iter().map(step).collect(),
        target.map(|target| target.disks.iter().map(|disk| disk.name.clone()).collect()),
        plan.pending
            .iter()
            .map(|pending| {
                format!(
                    "{}{}: {}",
                    if pending.failed { "!" } else { "" },
                    pending.name,
                    pending.message
                )
            })
            .collect(),
    )
}

/// A moment in the life of the disk `a`: whether it is wanted, its volume pod, whether the target that is written names that, and the pod whose disk the guest has.
type Moment = (
    &'static str,
    bool,
    Option<VolumePod>,
    Option<bool>,
    Option<&'static str>,
);

fn moments() -> Vec<Moment> {
    use VolumePhase::{Failing, Pending, Running};
    let is = |phase| Some(volume("a", phase));
    let ended = |second| {
        is(VolumePhase::Ended {
            message: "evicted".to_owned(),
            at: at(second),
        })
    };
    let deleted = |second| {
        Some(VolumePod {
            deleted: Some(at(second)),
            ..volume("a", Running)
        })
    };
    let waits = || is(Pending(Some("no such claim".into())));
    let fails = || is(Failing("in use".into()));
    let (named, other, has) = (Some(true), Some(false), Some("a-uid"));
    vec![
        ("nothing to do", false, None, None, None),
        ("added", true, None, None, None),
        ("its pod starts", true, is(Pending(None)), None, None),
        ("its pod does not start", true, waits(), None, None),
        ("its pod fails", true, fails(), None, None),
        ("its pod runs", true, is(Running), None, None),
        ("done", true, is(Running), named, has),
        ("a lender that crashed", true, fails(), named, has),
        ("of an earlier pod", true, is(Running), named, Some("old-uid")),
        ("of an earlier pod that is gone", true, None, named, Some("old-uid")),
        ("removed", false, is(Running), named, has),
        ("removed, the target not written yet", false, is(Running), named, None),
        ("given up", false, is(Running), other, None),
        ("gone", false, None, other, None),
        ("evicted by the node", true, ended(95), named, None),
        ("evicted a while ago", true, ended(10), None, None),
        ("evicted while the guest has it", true, ended(10), named, has),
        ("deleted, perhaps with its VM", true, deleted(95), named, has),
        ("deleted alone", true, deleted(80), named, has),
    ]
}

#[test]
fn each_step_follows_from_what_is_there() {
    let mut lines = String::new();
    for (name, is_wanted, volume, names, lender) in moments() {
        let wanted: Vec<String> = is_wanted.then(|| "a".to_owned()).into_iter().collect();
        let target = names.map(|named| target(if named { &["a"] } else { &[] }));
        let guest = has(&lender.map(|uid| ("a", uid)).into_iter().collect::<Vec<_>>());
        let plan = plan(&Facts {
            run: POD_UID,
            wanted: &wanted,
            volumes: volume.as_slice(),
            target: target.as_ref(),
            guest: Some(&guest),
            now: at(100),
        });
        let (steps, target, pending) = shown(&plan);
        let target = target.map_or("none".to_owned(), |target| format!("{target:?}"));
        writeln!(lines, "{name}: {steps:?}, target {target}\n    {}", pending.join("; ")).expect("a string");
    }
    assert_snapshot!(lines);
}

#[test]
fn what_the_node_agent_says_against_a_disk_is_said() {
    let mut guest = has(&[]);
    guest.refused_disks = vec![RefusedDisk {
        name: "a".into(),
        pod_uid: "a-uid".into(),
        message: "all PCI slots are taken".into(),
    }];
    let wanted = ["a".to_owned()];
    let volumes = [volume("a", VolumePhase::Running)];
    let said = |guest: &GuestStatus| {
        shown(&plan(&Facts {
            run: POD_UID,
            wanted: &wanted,
            volumes: &volumes,
            target: None,
            guest: Some(guest),
            now: at(100),
        }))
        .2
    };
    assert_eq!(said(&guest), ["!a: all PCI slots are taken"]);
    // That was said of an earlier pod.
    guest.refused_disks[0].pod_uid = "old-uid".into();
    assert_eq!(said(&guest), ["a: the guest is given it"]);
}

#[test]
fn volume_pods_go_when_their_run_is_over_and_not_before() {
    let vm = with_spec(&before());
    let running = bound(pod(&vm, &running(true)));
    let ended = pod(&vm, &super::fixtures::ended("Failed", 1, "Error", "", 9));
    let own = VolumePod {
        run: running.metadata.uid.clone().expect("a UID"),
        ..volume("a", VolumePhase::Running)
    };
    let of = |pod: Option<&Pod>, vm: &crds::VirtualMachine, volume: &VolumePod| {
        leftovers(&PodState::read(vm, pod), pod, std::slice::from_ref(volume))
    };
    // One that was made again while the guest of the last still runs, and one whose pod somebody else has taken over.
    let mut again = vm.clone();
    again.metadata.uid = Some("another".to_owned());
    let mut foreign = running.clone();
    foreign.metadata.owner_references = None;
    assert_eq!(PodState::read(&again, Some(&running)), PodState::OfAnotherVm);
    assert_eq!(PodState::read(&vm, Some(&foreign)), PodState::Foreign);
    for (pod, vm) in [(&running, &vm), (&running, &again), (&foreign, &vm)] {
        assert_eq!(of(Some(pod), vm, &own), []);
    }
    let other = VolumePod {
        run: "earlier".to_owned(),
        ..own.clone()
    };
    for (pod, vm, volume) in [
        (None, &vm, &own),
        (Some(&ended), &vm, &own),
        (Some(&ended), &again, &own),
        (Some(&running), &vm, &other),
        (Some(&running), &again, &other),
    ] {
        let steps = of(pod, vm, volume);
        assert!(matches!(&steps[..], [Step::Delete { at_once: true, .. }]), "{steps:?}");
    }
    let deleted = VolumePod {
        deleted: Some(at(1)),
        ..own
    };
    assert_eq!(of(None, &vm, &deleted), []);
}

/// A volume pod as the API server returns it, with a container in this state.
fn volume_object(disk: &str, phase: &str, container: &Value) -> Pod {
    let vm = with_disks(&[json!({ "name": disk, "emptyDisk": { "size": "1Gi" } })]);
    let vm = valid(&vm);
    let run = VmPod {
        uid: POD_UID,
        node: "node-a",
    };
    let disk = vm.disks.last().expect("a disk");
    let mut pod = volume_pod(&vm, disk, &run, SHIM_IMAGE).expect("a pod");
    pod.metadata.uid = Some("v1".to_owned());
    pod.metadata.creation_timestamp = Some(at(0).into());
    let mut status = json!({ "phase": phase });
    if !container.is_null() {
        let mut container = container.clone();
        for (key, value) in [
            ("name", json!("volume")),
            ("image", json!(SHIM_IMAGE)),
            ("imageID", json!("")),
            ("ready", json!(false)),
            ("restartCount", json!(0)),
        ] {
            container[key] = value;
        }
        status["containerStatuses"] = json!([container]);
    }
    pod.status = Some(serde_json::from_value(status).expect("a status"));
    pod
}

#[test]
fn volume_pods_are_read() {
    let message = said("DiskUnavailable", "disk `a`: in use");
    let terminated = json!({ "exitCode": 31, "message": message, "finishedAt": at(7) });
    let pending = |why: &str| VolumePhase::Pending(Some(format!("its volume pod does not start: {why}")));
    let table = [
        ("Pending", json!(null), None, VolumePhase::Pending(None)),
        (
            "Pending",
            json!(null),
            Some("no such ConfigMap"),
            pending("no such ConfigMap"),
        ),
        (
            "Pending",
            json!({ "state": { "waiting": { "reason": "ErrImagePull", "message": "no" } } }),
            None,
            pending("ErrImagePull: no"),
        ),
        (
            "Running",
            json!({ "state": { "running": {} } }),
            None,
            VolumePhase::Running,
        ),
        (
            "Running",
            json!({ "state": { "waiting": { "reason": "CrashLoopBackOff" } }, "lastState": { "terminated": terminated } }),
            None,
            VolumePhase::Failing("disk `a`: in use".into()),
        ),
        (
            "Running",
            json!({ "state": { "terminated": terminated } }),
            None,
            VolumePhase::Failing("disk `a`: in use".into()),
        ),
        (
            "Failed",
            json!({ "state": { "terminated": terminated } }),
            None,
            VolumePhase::Ended {
                message: "its volume pod has ended: disk `a`: in use".into(),
                at: at(7),
            },
        ),
    ];
    for (phase, container, trouble, expected) in table {
        let pod = volume_object("a", phase, &container);
        let read = VolumePod::read(&pod, "web", trouble).expect("it is the VM's");
        assert_eq!(read.phase, expected, "{phase} {container}");
        assert_eq!(
            (read.disk.as_str(), read.run.as_str(), read.name.as_str()),
            ("a", POD_UID, "web.a")
        );
    }
    let mut unscheduled = volume_object("a", "Pending", &json!(null));
    unscheduled.status = Some(
        serde_json::from_value(json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "message": "persistentvolumeclaim \"x\" not found" },
        ] }))
        .expect("a status"),
    );
    let read = VolumePod::read(&unscheduled, "web", None).expect("it is the VM's");
    assert_eq!(read.phase, pending("persistentvolumeclaim \"x\" not found"));
    // Somebody else's.
    let mut foreign = volume_object("a", "Running", &json!(null));
    foreign.metadata.owner_references = None;
    assert_eq!(VolumePod::read(&foreign, "web", None), None);
    assert_eq!(VolumePod::read(&unscheduled, "other", None), None);
}

#[test]
fn when_its_deletion_was_asked_for_is_known() {
    let mut pod = volume_object("a", "Running", &json!({ "state": { "running": {} } }));
    pod.metadata.deletion_timestamp = Some(at(100).into());
    pod.metadata.deletion_grace_period_seconds = Some(90);
    let read = VolumePod::read(&pod, "web", None).expect("it is the VM's");
    assert_eq!(read.deleted, Some(at(10)));
}

#[test]
fn golden_volume_pods() {
    let disks = [
        json!({ "name": "file", "cache": "None", "serial": "S1", "limits": { "bytesPerSecond": "10Mi" },
            "persistentVolumeClaim": { "claimName": "data", "path": "/a.img", "size": "1Gi" } }),
        json!({ "name": "block", "readOnly": true, "persistentVolumeClaim": { "claimName": "raw", "volumeMode": "Block" } }),
        json!({ "name": "settings", "configMap": { "name": "settings" } }),
    ];
    let mut spec = before();
    spec["disks"] = json!(disks);
    spec["tolerations"] = json!([{ "key": "kvm", "operator": "Exists" }]);
    spec["priorityClassName"] = json!("high");
    spec["imagePullSecrets"] = json!([{ "name": "pull" }]);
    spec["podMetadata"] = json!({ "labels": { "app": "web" }, "annotations": { "note": "x" } });
    spec["nodeSelector"] = json!({ "zone": "a" });
    let vm = valid(&with_spec(&spec));
    let run = VmPod {
        uid: POD_UID,
        node: "node-a",
    };
    for disk in &vm.disks {
        let pod = volume_pod(&vm, disk, &run, SHIM_IMAGE).expect("a pod");
        assert_yaml_snapshot!(format!("volume_pod_{}", disk.name), pod);
    }
}

/// The VM's pod was made before the disks came.
fn live(vm: &VirtualMachine, volumes: &[VolumePod]) -> Live {
    let pod = bound(pod(&with_spec(&before()), &running(true)));
    let state = PodState::read(vm, Some(&pod));
    Live::of(vm, &valid(vm), &state, Some(&pod), volumes, at(100)).expect("it runs")
}

#[test]
fn what_can_be_plugged_needs_no_restart() {
    let plugged = |disk: Value| live(&with_disks(&[disk]), &[]).changes;
    for disk in [
        json!({ "name": "a", "emptyDisk": { "size": "1Gi" } }),
        json!({ "name": "a", "configMap": { "name": "c" } }),
        json!({ "name": "a", "secret": { "secretName": "s" } }),
        json!({ "name": "a", "persistentVolumeClaim": { "claimName": "c" } }),
        json!({ "name": "a", "io": "Threads", "persistentVolumeClaim": { "claimName": "c", "volumeMode": "Block" } }),
    ] {
        let changes = plugged(disk.clone());
        assert_eq!((changes.plugged.len(), changes.by_restart.len()), (1, 0), "{disk}");
    }
    for disk in [
        json!({ "name": "a", "image": { "image": "tools:1" } }),
        json!({ "name": "a", "io": "IoUring", "emptyDisk": { "size": "1Gi" } }),
    ] {
        let changes = plugged(disk.clone());
        assert_eq!(changes.plugged.len(), 0, "{disk}");
        assert_eq!(changes.by_restart, ["disks[a]"], "{disk}");
    }
    // One that it was started with.
    let changes = live(&with_spec(&json!({ "disks": [] })), &[]).changes;
    assert_eq!(
        (changes.plugged.len(), changes.by_restart),
        (0, vec!["disks[root]".to_owned()])
    );
}

#[test]
fn a_plugged_disk_that_is_edited_waits_for_a_restart() {
    let made = json!({ "name": "a", "emptyDisk": { "size": "1024Mi" } });
    let lent = VolumePod {
        disk_spec: Some(made.to_string()),
        ..volume("a", VolumePhase::Running)
    };
    let edited = |disk: Value| {
        live(&with_disks(&[disk]), std::slice::from_ref(&lent))
            .changes
            .by_restart
    };
    assert!(edited(json!({ "name": "a", "emptyDisk": { "size": "1Gi" } })).is_empty());
    assert_eq!(
        edited(json!({ "name": "a", "readOnly": true, "emptyDisk": { "size": "2Gi" } })),
        ["disks[a].emptyDisk.size", "disks[a].readOnly"]
    );
}

#[test]
fn a_plugged_disk_has_its_share_of_the_pods_memory() {
    let memory = |disks: &[Value], volumes: &[VolumePod]| {
        let frame = live(&with_disks(disks), volumes).changes.frame;
        frame.pod_size(frame.start).memory_bytes >> 20
    };
    let disk = json!({ "name": "a", "emptyDisk": { "size": "1Gi" } });
    let without = memory(&[], &[]);
    assert_eq!(memory(std::slice::from_ref(&disk), &[]), without + 1);
    let volumes = [volume("a", VolumePhase::Running)];
    assert_eq!(memory(&[disk], &volumes), without + 1);
    assert_eq!(memory(&[], &volumes), without + 1, "until it is gone");
}

/// The status of the VM, whose guest has these disks.
fn status_with(vm: &VirtualMachine, live: &Live) -> crds::VirtualMachineStatus {
    let pod = bound(pod(&with_spec(&before()), &running(true)));
    let state = PodState::read(vm, Some(&pod));
    status::compute(&status::Input {
        vm,
        verdict: Verdict::Done(Decision::Keep, Applied::Nothing),
        pod: &state,
        protection: &Protection::NotAsked,
        history: &History::default(),
        trouble: None,
        live: Some(live),
        now: at(100),
    })
}

#[test]
fn a_disk_that_cannot_be_plugged_is_said_in_condition_event_and_pending_change() {
    let vm = with_disks(&[json!({ "name": "a", "persistentVolumeClaim": { "claimName": "x" } })]);
    let failing = [volume("a", VolumePhase::Pending(Some("no such claim".into())))];
    let status = status_with(&vm, &live(&vm, &failing));
    let disks = find(&status.conditions, ConditionType::DisksReady).expect("the condition");
    assert_eq!(
        (disks.status.as_str(), disks.reason.as_str()),
        ("False", "HotPlugFailed")
    );
    assert_eq!(disks.message, "disk \"a\": no such claim");
    let [change] = &status.pending_changes[..] else {
        panic!("{:?}", status.pending_changes)
    };
    assert_eq!(
        (change.field.as_str(), change.waits_for),
        ("spec.disks[a]", WaitsFor::HotPlug)
    );
    let restart = find(&status.conditions, ConditionType::RestartRequired).expect("the condition");
    assert_eq!(restart.status, "False");
    let verdict = Verdict::Done(Decision::Keep, Applied::Nothing);
    let before = status_with(&with_spec(&self::before()), &live(&with_spec(&self::before()), &[]));
    let events = announce::events(&before, &status, &verdict);
    assert_eq!(
        events.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>(),
        ["HotPlugFailed"]
    );
    assert!(announce::events(&status, &status, &verdict).is_empty());

    let mut live = live(&vm, &[]);
    let plan = live.disks.as_mut().expect("it runs");
    plan.fail("a", "the API server did not admit its volume pod: exceeded quota");
    let status = status_with(&vm, &live);
    let disks = find(&status.conditions, ConditionType::DisksReady).expect("the condition");
    assert!(disks.message.contains("exceeded quota"), "{disks:?}");
}

#[test]
fn the_target_names_the_volume_pod_and_outlives_a_spec_that_is_invalid() {
    let mut vm = with_disks(&[json!({ "name": "a", "emptyDisk": { "size": "1Gi" } })]);
    let status = status_with(&vm, &live(&vm, &[volume("a", VolumePhase::Running)]));
    assert_eq!(status.target_disks, Some(target(&["a"])));
    vm.status = Some(status);
    let pod = bound(pod(&with_spec(&before()), &running(true)));
    let state = PodState::read(&vm, Some(&pod));
    let invalid = status::compute(&status::Input {
        vm: &vm,
        verdict: Verdict::Invalid {
            reason: crds::conditions::Reason::InvalidSpec,
            message: "no".into(),
        },
        pod: &state,
        protection: &Protection::NotAsked,
        history: &History::default(),
        trouble: None,
        live: None,
        now: at(100),
    });
    assert_eq!(invalid.target_disks, Some(target(&["a"])));
}

#[test]
fn a_failed_pod_is_looked_at_again() {
    let wanted = ["a".to_owned()];
    let ended = VolumePhase::Ended {
        message: "evicted".into(),
        at: at(90),
    };
    let plan = plan(&Facts {
        run: POD_UID,
        wanted: &wanted,
        volumes: &[volume("a", ended)],
        target: None,
        guest: None,
        now: at(100),
    });
    assert_eq!(plan.look_again, Some(SignedDuration::from_secs(20)));
}
