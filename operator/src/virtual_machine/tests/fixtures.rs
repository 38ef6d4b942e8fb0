//! VirtualMachines and pods to test with.

use crds::{VirtualMachine, VirtualMachineStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::virtual_machine::{
    apply::Applied,
    desired,
    eviction::Protection,
    lifecycle::{self, Decision, Facts},
    live::Live,
    pod_state::PodState,
    run_history::History,
    status::{self, Verdict},
    trouble::Trouble,
    validate::{ValidatedVm, validate},
};

pub(super) const UID: &str = "11111111-2222-4333-8444-555555555555";
pub(super) const POD_UID: &str = "99999999-2222-4333-8444-555555555555";
pub(super) const SHIM_IMAGE: &str = "registry.tandem.local/node-shim:0.1.0";

/// 2026-01-01T00:00:00Z and some seconds.
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + seconds).expect("in range")
}

/// The smallest VM.
pub(super) fn minimal() -> Value {
    json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": { "name": "web", "namespace": "default", "uid": UID, "generation": 1 },
        "spec": {
            "cpu": { "cores": 2 },
            "memory": { "size": "512Mi" },
            "boot": { "kernel": { "image": "registry.tandem.local/guests/debian:12", "kernelPath": "/boot/vmlinuz" } },
        },
    })
}

/// The smallest VM with other values in its spec.
pub(super) fn with_spec(spec: &Value) -> VirtualMachine {
    let mut vm = minimal();
    for (key, value) in spec.as_object().expect("an object") {
        vm["spec"][key] = value.clone();
    }
    parse(vm)
}

pub(super) fn parse(vm: Value) -> VirtualMachine {
    serde_json::from_value(vm).expect("a VirtualMachine")
}

pub(super) fn valid(vm: &VirtualMachine) -> ValidatedVm {
    validate(vm).expect("a valid VirtualMachine")
}

/// The pod of a VM as the API server returns it, created at second 0, with this status.
pub(super) fn pod(vm: &VirtualMachine, status: &Value) -> Pod {
    let mut pod = desired::pod::pod(&valid(vm), SHIM_IMAGE).expect("a pod");
    pod.metadata.uid = Some(POD_UID.to_owned());
    pod.metadata.creation_timestamp = Some(at(0).into());
    pod.status = Some(serde_json::from_value(status.clone()).expect("a pod status"));
    pod
}

/// The same pod on a node.
pub(super) fn bound(mut pod: Pod) -> Pod {
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some("node-a".to_owned());
    }
    pod
}

/// The same pod, being deleted with a grace period that ends at this second.
pub(super) fn deleted(mut pod: Pod, grace_end_seconds: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(at(grace_end_seconds).into());
    pod
}

/// Status of a pod whose container runs since second 2.
pub(super) fn running(ready: bool) -> Value {
    json!({
        "phase": "Running",
        "podIP": "10.244.1.5",
        "podIPs": [{ "ip": "10.244.1.5" }],
        "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        "containerStatuses": [container(&json!({ "running": { "startedAt": at(2) } }))],
    })
}

/// Status of a pod whose container waits.
pub(super) fn waiting(reason: &str, message: &str) -> Value {
    json!({
        "phase": "Pending",
        "containerStatuses": [container(&json!({ "waiting": { "reason": reason, "message": message } }))],
    })
}

/// Status of a pod whose container ended at a second, having started at second 2.
pub(super) fn ended(phase: &str, exit_code: i32, reason: &str, message: &str, finished_seconds: i64) -> Value {
    let terminated = json!({
        "exitCode": exit_code, "reason": reason, "message": message,
        "startedAt": at(2), "finishedAt": at(finished_seconds),
    });
    json!({ "phase": phase, "containerStatuses": [container(&json!({ "terminated": terminated }))] })
}

/// The shim's termination message.
pub(super) fn said(reason: &str, message: &str) -> String {
    json!({ "reason": reason, "message": message }).to_string()
}

fn container(state: &Value) -> Value {
    json!({ "name": "vm", "image": SHIM_IMAGE, "imageID": "", "ready": false, "restartCount": 0, "state": state })
}

/// What the pure steps make of a VM and its pod.
pub(super) fn step(
    vm: &VirtualMachine,
    pod: Option<&Pod>,
    trouble: Option<&Trouble>,
    applied: &Applied,
    now: Timestamp,
) -> (Decision, VirtualMachineStatus) {
    step_with(&Protection::NotAsked, vm, pod, trouble, applied, now)
}

/// The same of a VM whose eviction policy has come to this.
pub(super) fn step_with(
    protection: &Protection,
    vm: &VirtualMachine,
    pod: Option<&Pod>,
    trouble: Option<&Trouble>,
    applied: &Applied,
    now: Timestamp,
) -> (Decision, VirtualMachineStatus) {
    let state = PodState::read(vm, pod);
    let history =
        History::from_status(vm.status.as_ref().and_then(|status| status.restarts.as_ref())).with_pod(&state, now);
    let valid = valid(vm);
    let decision = lifecycle::decide(&Facts {
        vm_is_deleted: vm.metadata.deletion_timestamp.is_some(),
        run_policy: vm.spec.run_policy(),
        generation: vm.metadata.generation,
        restarted_at: valid.restarted_at.as_ref().map(|(_, time)| *time),
        pod: &state,
        volume_pods: false,
        history: &history,
        now,
    });
    let live = Live::of(vm, &valid, &state, pod, &[], now).filter(|_| decision == Decision::Keep);
    let status = status::compute(&status::Input {
        vm,
        verdict: Verdict::Done(decision, applied.clone()),
        pod: &state,
        protection,
        history: &history,
        trouble,
        live: live.as_ref(),
        now,
    });
    (decision, status)
}
