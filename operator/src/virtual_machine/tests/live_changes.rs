//! What of an edited spec reaches the VM that runs: from the spec and the pod to decision, patches and status.

use crds::{
    VirtualMachine,
    conditions::{ConditionType, Reason, find},
    status::WaitsFor,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixtures::{POD_UID, SHIM_IMAGE, at, bound, parse, pod, running, step, valid, with_spec};
use crate::virtual_machine::{
    apply::Applied,
    changes::{self, Changes, Running},
    desired::{self, resources::GuestSize},
    eviction::Protection,
    lifecycle::Decision,
    live::{Live, metadata_patch},
    pod_state::PodState,
    resize::Step,
    run_history::History,
    status::{self, Verdict},
};

#[path = "../../../../crds/tests/manifests/edits.rs"]
mod edits;
#[path = "../../../../crds/tests/manifests/place.rs"]
mod place;

const GIB: u64 = 1 << 30;

/// The VM that runs in each of these tests.
fn before() -> Value {
    json!({
        "cpu": { "cores": 2, "maxCores": 4 },
        "memory": { "size": "1Gi", "maxSize": "4Gi" },
        "disks": [{ "name": "data", "emptyDisk": { "size": "1Gi" } }],
        "podMetadata": { "labels": { "app": "web", "old": "a" } },
    })
}

fn edited(pointer: &str, value: &Value) -> VirtualMachine {
    let mut spec = before();
    if let Some(place) = spec.pointer_mut(pointer) {
        *place = value.clone();
    } else {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        spec.pointer_mut(parent).expect("is there")[name] = value.clone();
    }
    with_spec(&spec)
}

fn decide(before: &VirtualMachine, after: &VirtualMachine) -> Changes {
    let pod = pod(before, &running(true));
    let running = Running::of(&pod).expect("what the pod was made from");
    let held = GuestSize {
        vcpus: running.config.cpu.cores,
        memory_bytes: running.config.memory.size_bytes,
    };
    changes::decide(&running, &valid(after), held, &[])
}

#[test]
fn each_edit_goes_its_way() {
    let none: &[&str] = &[];
    let table: [(&str, Value, &[&str], &[&str]); 14] = [
        ("/runPolicy", json!("Once"), none, none),
        ("/cpu/cores", json!(4), &["cpu.cores"], none),
        ("/cpu/cores", json!(1), &["cpu.cores"], none),
        (
            "/cpu",
            json!({ "cores": 5, "maxCores": 8 }),
            none,
            &["cpu.cores", "cpu.maxCores"],
        ),
        ("/cpu/request", json!("1500m"), &["cpu.request"], none),
        (
            "/cpu",
            json!({ "cores": 2, "dedicated": true }),
            none,
            &["cpu.dedicated", "cpu.maxCores"],
        ),
        ("/memory/size", json!("4Gi"), &["memory.size"], none),
        ("/memory/size", json!("1024Mi"), none, none),
        ("/memory/size", json!("512Mi"), none, &["memory.size"]),
        (
            "/memory",
            json!({ "size": "8Gi", "maxSize": "8Gi" }),
            none,
            &["memory.maxSize", "memory.size"],
        ),
        ("/memory/hugePages", json!("2Mi"), none, &["memory.hugePages"]),
        (
            "/disks/0/emptyDisk/size",
            json!("2Gi"),
            none,
            &["disks[data].emptyDisk.size"],
        ),
        ("/podMetadata/labels/app", json!("db"), none, none),
        ("/nodeSelector", json!({ "zone": "a" }), none, &["nodeSelector"]),
    ];
    for (pointer, value, by_resize, by_restart) in table {
        let changes = decide(&with_spec(&before()), &edited(pointer, &value));
        assert_eq!(changes.by_resize, by_resize, "{pointer} {value}");
        assert_eq!(changes.by_restart, by_restart, "{pointer} {value}");
        assert_eq!(changes.pod_metadata, pointer.starts_with("/podMetadata"), "{pointer}");
    }
}

/// The same table that `crds` holds against its schema, and that is tried on a cluster.
#[test]
fn every_field_goes_its_way() {
    let table = edits::Table::read();
    let parsed = |mut vm: Value| {
        vm["metadata"]["uid"] = json!(super::fixtures::UID);
        parse(vm)
    };
    let before = parsed(table.before("default", "web"));
    for edit in &table.edits {
        let after = parsed(table.after("default", "web", edit));
        for (from, to) in [(&before, &after), (&after, &before)] {
            let changes = decide(from, to);
            let resized: Vec<&String> = edit
                .live
                .iter()
                .filter(|path| path.starts_with("cpu.") || path.starts_with("memory."))
                .collect();
            // A VM that was started with more memory keeps it.
            let shrinks = edit.live == ["memory.size"] && from == &after;
            // As one that was started with more disks.
            let has_more = edit.live.iter().any(|path| path.starts_with("disks[")) && from == &after;
            if !shrinks && !has_more {
                assert_eq!(changes.by_restart, edit.restart, "{}", edit.name);
                assert_eq!(changes.by_resize.iter().collect::<Vec<_>>(), resized, "{}", edit.name);
            }
            let metadata = edit.live.iter().any(|path| path.starts_with("podMetadata."));
            assert_eq!(changes.pod_metadata, metadata, "{}", edit.name);
        }
    }
}

#[test]
fn what_needs_a_restart_leaves_the_guest_as_it_is() {
    let changes = decide(&with_spec(&before()), &edited("/cpu/cores", &json!(5)).with_max(8));
    assert_eq!(
        changes.size,
        GuestSize {
            vcpus: 2,
            memory_bytes: GIB
        }
    );
    let changes = decide(&with_spec(&before()), &edited("/memory/size", &json!("3Gi")));
    assert_eq!(
        changes.size,
        GuestSize {
            vcpus: 2,
            memory_bytes: 3 * GIB
        }
    );
}

trait WithMax {
    fn with_max(self, cores: i32) -> Self;
}

impl WithMax for VirtualMachine {
    fn with_max(mut self, cores: i32) -> Self {
        if let Some(cpu) = &mut self.spec.cpu {
            cpu.max_cores = Some(cores);
        }
        self
    }
}

/// The status of a VM whose pod was made before the edit.
fn status_after(pointer: &str, value: &Value, pod_status: &Value) -> crds::VirtualMachineStatus {
    let pod = bound(pod(&with_spec(&before()), pod_status));
    step(&edited(pointer, value), Some(&pod), None, &Applied::Nothing, at(10)).1
}

fn with_resources(pod: &Pod, condition: Option<Value>) -> Value {
    let mut status = running(true);
    let container = &pod.spec.as_ref().expect("a spec").containers[0];
    status["containerStatuses"][0]["resources"] = serde_json::to_value(&container.resources).expect("JSON");
    if let Some(condition) = condition {
        status["conditions"].as_array_mut().expect("conditions").push(condition);
    }
    status
}

#[test]
fn pending_changes_and_conditions_name_the_fields() {
    let made = pod(&with_spec(&before()), &running(true));
    let status = status_after("/disks/0/readOnly", &json!(false), &running(true));
    assert_eq!(status.pending_changes[0].field, "spec.disks[data].readOnly");
    assert_eq!(status.pending_changes[0].waits_for, WaitsFor::Restart);
    let required = find(&status.conditions, ConditionType::RestartRequired).expect("the condition");
    assert!(
        required.status == "True" && required.message.contains("spec.disks[data].readOnly"),
        "{required:?}"
    );

    let status = status_after("/cpu/cores", &json!(3), &with_resources(&made, None));
    assert_eq!(status.pending_changes[0].waits_for, WaitsFor::Resize);
    let required = find(&status.conditions, ConditionType::RestartRequired).expect("the condition");
    assert_eq!(required.status, "False");
    let resizing = find(&status.conditions, ConditionType::Resizing).expect("the condition");
    assert_eq!(
        (resizing.status.as_str(), resizing.reason.as_str()),
        ("True", "ResizingPod")
    );
}

#[test]
fn the_kubelets_refusal_is_passed_on() {
    let mut made = bound(pod(&with_spec(&before()), &running(true)));
    let after = edited("/memory/size", &json!("4Gi"));
    // The pod as the operator has patched it, and what the kubelet says to that.
    let before_resources = made.spec.as_ref().expect("a spec").containers[0].resources.clone();
    let resources = desired::resources::Frame::new(&Running::of(&made).expect("running").config, false, None)
        .container(GuestSize {
            vcpus: 2,
            memory_bytes: 4 * GIB,
        });
    made.spec.as_mut().expect("a spec").containers[0].resources = Some(resources);
    for (reason, waits_for, restart) in [
        ("Deferred", WaitsFor::Resize, "False"),
        ("Infeasible", WaitsFor::Restart, "True"),
    ] {
        let mut pod_status = running(true);
        pod_status["containerStatuses"][0]["resources"] = serde_json::to_value(&before_resources).expect("JSON");
        pod_status["conditions"].as_array_mut().expect("conditions").push(json!({
            "type": "PodResizePending", "status": "True", "reason": reason, "message": "Node didn't have enough resource: memory",
        }));
        made.status = Some(serde_json::from_value(pod_status).expect("a status"));
        let (_, status) = step(&after, Some(&made), None, &Applied::Nothing, at(10));
        let resizing = find(&status.conditions, ConditionType::Resizing).expect("the condition");
        assert_eq!((resizing.status.as_str(), resizing.reason.as_str()), ("True", reason));
        assert!(resizing.message.contains("enough resource"), "{resizing:?}");
        assert_eq!(status.pending_changes[0].waits_for, waits_for);
        let required = find(&status.conditions, ConditionType::RestartRequired).expect("the condition");
        assert_eq!(required.status, restart);
    }
}

/// The VM's pod, once the kubelet has given it 4 GiB.
fn grown_pod() -> Pod {
    let mut made = bound(pod(&with_spec(&before()), &running(true)));
    let frame = desired::resources::Frame::new(&Running::of(&made).expect("running").config, false, None);
    let resources = frame.container(GuestSize {
        vcpus: 2,
        memory_bytes: 4 * GIB,
    });
    made.spec.as_mut().expect("a spec").containers[0].resources = Some(resources);
    made.status = Some(serde_json::from_value(with_resources(&made, None)).expect("a status"));
    made
}

#[test]
fn a_guest_is_asked_once_its_pod_is_large_enough() {
    let made = grown_pod();
    let mut after = edited("/memory/size", &json!("4Gi"));
    let (_, status) = step(&after, Some(&made), None, &Applied::Nothing, at(10));
    let target = status.target.clone().expect("a target");
    assert_eq!(
        (target.pod_uid.as_str(), target.sequence, target.vcpus),
        (POD_UID, 1, 2)
    );
    assert_eq!(target.memory_bytes, 4 << 30);
    // Seen again, it is the same target; and once the guest has it, there is nothing left to do.
    after.status = Some(status.clone());
    let (_, again) = step(&after, Some(&made), None, &Applied::Nothing, at(20));
    assert_eq!(again.target, status.target);
    // A VMM that refuses, and a guest that has no driver, are told of.
    for (acknowledged, hindrance, (reason, message, waits_for)) in [
        (
            json!({ "podUID": POD_UID, "sequence": 1, "refusal": "the host is full" }),
            None,
            ("ResizeRefused", "4096 MiB: the host is full", WaitsFor::Restart),
        ),
        (
            json!({ "podUID": POD_UID, "sequence": 1 }),
            Some("no driver"),
            ("ResizingGuest", "have 2 CPUs and 4096 MiB; no driver", WaitsFor::Resize),
        ),
    ] {
        let mut vm = after.clone();
        let status = vm.status.as_mut().expect("a status");
        status.acknowledged_target = Some(serde_json::from_value(acknowledged).expect("a target"));
        let guest = json!({ "podUID": POD_UID, "vcpus": 2, "memory": "1Gi", "hindrance": hindrance });
        status.guest = Some(serde_json::from_value(guest).expect("a guest"));
        let (_, status) = step(&vm, Some(&made), None, &Applied::Nothing, at(25));
        let resizing = find(&status.conditions, ConditionType::Resizing).expect("the condition");
        assert_eq!(resizing.reason, reason);
        assert!(resizing.message.contains(message), "{resizing:?}");
        assert_eq!(status.pending_changes[0].waits_for, waits_for);
    }
    let guest = json!({ "podUID": POD_UID, "state": "Running", "vcpus": 2, "memory": "4Gi" });
    let acknowledged = json!({ "podUID": POD_UID, "sequence": 1 });
    after.status.as_mut().expect("a status").acknowledged_target =
        Some(serde_json::from_value(acknowledged).expect("a target"));
    after.status.as_mut().expect("a status").guest = Some(serde_json::from_value(guest).expect("a guest"));
    let (_, done) = step(&after, Some(&made), None, &Applied::Nothing, at(30));
    assert!(done.pending_changes.is_empty(), "{:?}", done.pending_changes);
    assert_eq!(
        find(&done.conditions, ConditionType::Resizing)
            .expect("the condition")
            .status,
        "False"
    );
}

/// A VM that grew to 4 GiB, and now should have so much; and its pod.
fn grown(memory: &str) -> (VirtualMachine, Pod) {
    let made = grown_pod();
    let mut vm = edited("/memory/size", &json!(memory));
    let status = json!({
        "target": { "podUID": POD_UID, "sequence": 7, "vcpus": 2, "memoryBytes": 4 * GIB },
        "acknowledgedTarget": { "podUID": POD_UID, "sequence": 7 },
        "guest": { "podUID": POD_UID, "state": "Running", "vcpus": 2, "memory": "4Gi" },
    });
    vm.status = Some(serde_json::from_value(status).expect("a status"));
    (vm, made)
}

#[test]
fn what_the_guest_was_asked_for_outlives_a_spec_that_is_invalid() {
    let (vm, pod) = grown("4Gi");
    let status = status::compute(&status::Input {
        vm: &vm,
        verdict: Verdict::Invalid {
            reason: Reason::InvalidSpec,
            message: "no such type".to_owned(),
        },
        pod: &PodState::read(&vm, Some(&pod)),
        protection: &Protection::NotAsked,
        history: &History::default(),
        trouble: None,
        live: None,
        now: at(10),
    });
    assert_eq!(status.target, vm.status.and_then(|status| status.target));
}

#[test]
fn a_target_that_was_lost_does_not_cut_the_pod_below_its_guest() {
    let (mut vm, pod) = grown("2Gi");
    vm.status.as_mut().expect("a status").target = None;
    let live = Live::of(
        &vm,
        &valid(&vm),
        &PodState::read(&vm, Some(&pod)),
        Some(&pod),
        &[],
        at(10),
    )
    .expect("it runs");
    let wanted = GuestSize {
        vcpus: 2,
        memory_bytes: 2 * GIB,
    };
    assert_eq!(live.step, Some(Step::AskGuest(wanted)));
    let target = live.target_status(POD_UID).expect("a target");
    assert_eq!(target.sequence, 8, "one that its VMM has not answered before");
}

#[test]
fn labels_are_changed_on_the_pod_that_runs() {
    let made = pod(&with_spec(&before()), &running(true));
    let after = edited("/podMetadata/labels", &json!({ "app": "db", "new": "b" }));
    let desired = desired::pod::pod(&valid(&after), SHIM_IMAGE).expect("a pod");
    let patch = metadata_patch(&made, &desired).expect("a patch");
    assert_eq!(
        patch["metadata"]["labels"],
        json!({ "app": "db", "new": "b", "old": null })
    );
    assert_eq!(patch["metadata"]["uid"], json!(made.uid()));
    // The pod then says that it has them: nothing is left to do.
    let mut changed = made;
    let text = patch["metadata"]["annotations"]["tandem.dev/vm-spec"]
        .as_str()
        .expect("text");
    changed
        .annotations_mut()
        .insert("tandem.dev/vm-spec".to_owned(), text.to_owned());
    let running = Running::of(&changed).expect("running");
    let held = GuestSize {
        vcpus: 2,
        memory_bytes: GIB,
    };
    assert!(!changes::decide(&running, &valid(&after), held, &[]).pod_metadata);
}

#[test]
fn labels_that_the_api_server_does_not_admit_are_named_with_what_it_says() {
    let vm = edited("/podMetadata/labels", &json!({ "team": "none" }));
    let pod = bound(pod(&with_spec(&before()), &running(true)));
    let state = PodState::read(&vm, Some(&pod));
    let mut live = Live::of(&vm, &valid(&vm), &state, Some(&pod), &[], at(10)).expect("it runs");
    live.metadata_rejected = Some("denied by policy teams".to_owned());
    let status = status::compute(&status::Input {
        vm: &vm,
        verdict: Verdict::Done(Decision::Keep, Applied::Nothing),
        pod: &state,
        protection: &Protection::NotAsked,
        history: &History::default(),
        trouble: None,
        live: Some(&live),
        now: at(10),
    });
    let [change] = &status.pending_changes[..] else {
        panic!("{:?}", status.pending_changes)
    };
    assert_eq!(
        (change.field.as_str(), change.waits_for, change.message.as_deref()),
        ("spec.podMetadata", WaitsFor::Admission, Some("denied by policy teams"))
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever is edited: the guest is only ever given what it can have, and every field that it does not get is named.
    #[test]
    fn nothing_is_lost(cores in 1_i32..=8, max in 0_i32..=8, mebibytes in 256_u64..=4096, max_mebibytes in 0_u64..=4096) {
        let (mebibytes, max_mebibytes) = (mebibytes * 2, max_mebibytes * 2);
        let mut spec = before();
        spec["cpu"] = json!({ "cores": cores });
        spec["memory"] = json!({ "size": format!("{mebibytes}Mi") });
        if max >= cores { spec["cpu"]["maxCores"] = json!(max); }
        if max_mebibytes >= mebibytes { spec["memory"]["maxSize"] = json!(format!("{max_mebibytes}Mi")); }
        let after = with_spec(&spec);
        let changes = decide(&with_spec(&before()), &after);
        prop_assert!(changes.frame.can_have_vcpus(changes.size.vcpus));
        prop_assert!(changes.frame.can_have_memory(changes.size.memory_bytes));
        let given = changes.size == GuestSize { vcpus: cores.unsigned_abs(), memory_bytes: mebibytes << 20 };
        let named = |path: &str| changes.by_restart.iter().any(|field| field == path);
        prop_assert!(given || named("cpu.cores") || named("memory.size"), "{changes:?}");
        prop_assert_eq!(changes.size.vcpus != cores.unsigned_abs(), named("cpu.cores"));
        prop_assert_eq!(changes.size.memory_bytes != mebibytes << 20, named("memory.size"));
    }
}
