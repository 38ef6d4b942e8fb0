//! What applies when: each field of a VM that runs is edited and edited back. What waits for a restart is named, in the status and to whoever looks; what
//! is live reaches the VM in the pod that it has.

use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, condition, has_condition, value};
use e2e::manifest::with;
use e2e::runner::Runner;
use serde_json::{Value, json};

use crate::edits::{Edit, Table};

const NAMESPACE: &str = "e2e-contract";
const VM: &str = "contract";
/// Instance types: as the VM is, and another one.
const TYPES: [(&str, i32); 2] = [("e2e-contract-same", 2), ("e2e-contract-other", 4)];
static TABLE: LazyLock<Table> = LazyLock::new(Table::read);

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    cluster.apply(&before()).await?;
    let ready = |vm: &Value| has_condition(vm, "Ready", "True") && nothing_pending(vm);
    cluster.until(&cluster.vms(NAMESPACE), VM, "ready", ready).await?;
    for edit in &TABLE.edits {
        runner.case(&edit.name, there_and_back(cluster, edit)).await;
    }
    runner
        .case(
            "an instance type that says the same changes nothing, another is named",
            instance_types(cluster),
        )
        .await;
    runner
        .case("restartedAt applies what waits for it", restart(cluster))
        .await;
    for (name, _) in TYPES {
        cluster
            .kubectl(&["delete", "vmtype", name, "--ignore-not-found"])
            .await?;
    }
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

fn before() -> Value {
    TABLE.before(NAMESPACE, VM)
}

/// Names of the fields that wait for a restart.
fn pending(vm: &Value) -> Vec<String> {
    let changes = vm["status"]["pendingChanges"].as_array().into_iter().flatten();
    let mut fields: Vec<String> = changes
        .filter(|change| change["waitsFor"] == "Restart")
        .filter_map(|change| change["field"].as_str().map(str::to_owned))
        .collect();
    fields.sort();
    fields
}

fn nothing_pending(vm: &Value) -> bool {
    vm["status"]["pendingChanges"].as_array().is_none_or(Vec::is_empty) && has_condition(vm, "RestartRequired", "False")
}

/// Waits until the VM names exactly these fields, in all the places where it does.
async fn waits_for_restart(cluster: &Cluster, fields: &[String]) -> Result<()> {
    let expected: Vec<String> = fields.iter().map(|field| format!("spec.{field}")).collect();
    let named = |vm: &Value| has_condition(vm, "RestartRequired", "True") && pending(vm) == expected;
    let what = format!("waiting for a restart with {}", expected.join(", "));
    let vm = cluster.until(&cluster.vms(NAMESPACE), VM, &what, named).await?;
    let message = condition(&vm, "RestartRequired").map(|it| it.2).unwrap_or_default();
    for field in &expected {
        ensure!(
            message.contains(field),
            "RestartRequired does not name {field}: {message}"
        );
    }
    ensure!(
        restart_column(cluster).await? == "True",
        "the column RESTART does not say so"
    );
    Ok(())
}

async fn restart_column(cluster: &Cluster) -> Result<String> {
    let table = cluster.kubectl(&["get", "vm", "-n", NAMESPACE, VM]).await?;
    let mut lines = table.lines();
    let (header, row) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    // Columns are as wide as their widest cell, also where a cell is empty.
    let start = header
        .find("RESTART")
        .with_context(|| format!("no column RESTART:\n{table}"))?;
    let cell = row.get(start..).unwrap_or_default();
    Ok(cell.split_whitespace().next().unwrap_or_default().to_owned())
}

async fn pod(cluster: &Cluster) -> Result<Value> {
    Ok(value(&cluster.pods(NAMESPACE).get(VM).await?))
}

async fn there_and_back(cluster: &Cluster, edit: &Edit) -> Result<()> {
    let old = pod(cluster).await?;
    cluster.apply(&TABLE.after(NAMESPACE, VM, edit)).await?;
    if edit.restart.is_empty() {
        for path in &edit.live {
            reaches_the_vm(cluster, path, &old).await?;
        }
    } else {
        waits_for_restart(cluster, &edit.restart).await?;
    }
    cluster.apply(&before()).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "as it was", nothing_pending)
        .await?;
    for path in &edit.live {
        is_taken_back(cluster, path, &old).await?;
    }
    ensure!(restart_column(cluster).await? == "False", "the column RESTART stays");
    let new = pod(cluster).await?;
    ensure!(
        new["metadata"]["uid"] == old["metadata"]["uid"],
        "the edit cost the VM its pod"
    );
    Ok(())
}

/// The part of a pod that a live field shows in.
fn shown_in(path: &str) -> Option<&'static str> {
    match path {
        "cpu.cores" | "cpu.request" | "memory.size" => Some("/spec/containers/0/resources"),
        "podMetadata.labels" => Some("/metadata/labels/app"),
        "podMetadata.annotations" => Some("/metadata/annotations/note"),
        _ => None,
    }
}

async fn reaches_the_vm(cluster: &Cluster, path: &str, old: &Value) -> Result<()> {
    let vms = cluster.vms(NAMESPACE);
    if let Some(place) = shown_in(path) {
        let changed = |pod: &Value| pod.pointer(place) != old.pointer(place);
        let what = format!("changed by {path}");
        cluster.until(&cluster.pods(NAMESPACE), VM, &what, changed).await?;
    }
    if path == "evictionPolicy" {
        let protected = |vm: &Value| has_condition(vm, "EvictionBlocked", "True");
        cluster.until(&vms, VM, "protected from evictions", protected).await?;
    }
    if let Some(disk) = path.strip_prefix("disks[").and_then(|rest| rest.strip_suffix(']')) {
        let has = |vm: &Value| {
            let disks = vm["status"]["guest"]["disks"].as_array();
            disks.is_some_and(|disks| disks.iter().any(|had| had["name"] == disk))
        };
        cluster.until(&vms, VM, "given the disk", has).await?;
    }
    let no_restart = |vm: &Value| has_condition(vm, "RestartRequired", "False") && pending(vm).is_empty();
    cluster
        .until(&vms, VM, "what it should be without a restart", no_restart)
        .await?;
    Ok(())
}

async fn is_taken_back(cluster: &Cluster, path: &str, old: &Value) -> Result<()> {
    if let Some(place) = shown_in(path) {
        let restored = |pod: &Value| pod.pointer(place) == old.pointer(place);
        let what = format!("as it was before {path}");
        cluster.until(&cluster.pods(NAMESPACE), VM, &what, restored).await?;
    }
    if path == "evictionPolicy" {
        let budgets = cluster.api("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", NAMESPACE);
        cluster.until_gone(&budgets, VM).await?;
    }
    Ok(())
}

async fn instance_types(cluster: &Cluster) -> Result<()> {
    let spec = before()["spec"].clone();
    for (name, most) in TYPES {
        let manifest = json!({
            "apiVersion": "tandem.dev/v1alpha1", "kind": "VirtualMachineInstanceType", "metadata": {"name": name},
            "spec": {"cpu": with(spec["cpu"].clone(), "/maxCores", json!(most)), "memory": spec["memory"]},
        });
        cluster.apply(&manifest).await?;
    }
    let of_type = |name: &str| {
        let mut vm = with(before(), "/spec/instanceType", json!({"name": name}));
        if let Some(spec) = vm["spec"].as_object_mut() {
            spec.remove("cpu");
            spec.remove("memory");
        }
        vm
    };
    cluster.apply(&of_type(TYPES[0].0)).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "the same by its type", nothing_pending)
        .await?;
    cluster.apply(&of_type(TYPES[1].0)).await?;
    waits_for_restart(cluster, &["instanceType.name".to_owned()]).await?;
    cluster.apply(&before()).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "as it was", nothing_pending)
        .await?;
    Ok(())
}

async fn restart(cluster: &Cluster) -> Result<()> {
    let old = pod(cluster).await?;
    let edited = with(before(), "/spec/disks/0/serial", json!("D-2"));
    cluster.apply(&edited).await?;
    waits_for_restart(cluster, &["disks[data].serial".to_owned()]).await?;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    cluster.apply(&with(edited, "/spec/restartedAt", json!(now))).await?;
    let done = |vm: &Value| {
        has_condition(vm, "Ready", "True") && nothing_pending(vm) && vm["status"]["podUID"] != old["metadata"]["uid"]
    };
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready with the edit in another pod", done)
        .await?;
    Ok(())
}
