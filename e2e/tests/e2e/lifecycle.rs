//! Stop, start, restart, delete, recreate, and pods that go away under their VM: each ends right, and never with two VMMs.

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, condition, has_condition};
use e2e::manifest::{pod, small_vm, with};
use e2e::runner::Runner;
use kube::core::DynamicObject;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-lifecycle";
const VM: &str = "cycle";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    runner
        .case("a VM becomes ready in a restricted namespace", becomes_ready(cluster))
        .await;
    runner
        .case("applying the same manifest again changes nothing", apply_again(cluster))
        .await;
    runner.case("Halted stops the VM and is healthy", halted(cluster)).await;
    runner.case("Always starts it again", started(cluster)).await;
    runner.case("restartedAt restarts it once", restarted(cluster)).await;
    runner
        .case("a pod deleted under its VM is replaced", pod_deleted(cluster))
        .await;
    runner
        .case(
            "a VMM killed with -9 is replaced by one VMM, and status and events say so",
            vmm_killed(cluster),
        )
        .await;
    runner
        .case(
            "a VM deleted and recreated under the same name gets a pod of its own",
            recreated(cluster),
        )
        .await;
    runner
        .case(
            "a foreign pod of the VM's name is left alone and explained",
            foreign_pod(cluster),
        )
        .await;
    runner
        .case(
            "a deleted VM leaves nothing in the cluster and on the node",
            deleted(cluster),
        )
        .await;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

async fn ready(cluster: &Cluster) -> Result<Value> {
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await
}

async fn pod_uid(cluster: &Cluster) -> Result<String> {
    let pod = cluster.pods(NAMESPACE).get(VM).await?;
    pod.metadata.uid.context("the pod has no UID")
}

/// Waits for a pod that is not this one, and for the VM to be ready with it.
async fn ready_with_another_pod(cluster: &Cluster, old_uid: &str) -> Result<Value> {
    let another = |pod: &Value| pod["metadata"]["uid"] != old_uid && pod["status"]["phase"] == "Running";
    cluster
        .until(&cluster.pods(NAMESPACE), VM, "running in another pod", another)
        .await?;
    let vm = ready(cluster).await?;
    let pids = cluster.vmm_pids(&cluster.kvm_node().await?).await?;
    ensure!(pids.len() == 1, "the node runs {} VMMs, not one", pids.len());
    Ok(vm)
}

async fn becomes_ready(cluster: &Cluster) -> Result<()> {
    cluster.apply(&small_vm(NAMESPACE, VM)).await?;
    let vm = ready(cluster).await?;
    let status = &vm["status"];
    let node = cluster.kvm_node().await?;
    ensure!(
        status["nodeName"] == node.as_str(),
        "status.nodeName is {}",
        status["nodeName"]
    );
    ensure!(
        status["podIP"].as_str().is_some_and(|ip| !ip.is_empty()),
        "status.podIP is {}",
        status["podIP"]
    );
    let row = cluster.kubectl(&["get", "vm", "-n", NAMESPACE, VM]).await?;
    for column in ["NAME", "STATUS", "READY", "NODE", "IP", "AGE", "Running", &node] {
        ensure!(row.contains(column), "kubectl get vm does not show {column}:\n{row}");
    }
    let guest = |vm: &Value| vm["status"]["guest"]["vcpus"] == 1 && vm["status"]["guest"]["state"].is_string();
    cluster
        .until(
            &cluster.vms(NAMESPACE),
            VM,
            "described by the node agent in status.guest",
            guest,
        )
        .await?;
    Ok(())
}

/// The object but for what writes to its status change: the guest may tell something new of itself at any time.
fn without_status(vm: &DynamicObject) -> Value {
    let mut vm = json!({ "metadata": vm.metadata, "data": vm.data });
    vm["data"]["status"] = Value::Null;
    vm["metadata"]["resourceVersion"] = Value::Null;
    if let Some(managers) = vm["metadata"]["managedFields"].as_array_mut() {
        managers.retain(|manager| manager["subresource"] != "status");
    }
    vm
}

async fn apply_again(cluster: &Cluster) -> Result<()> {
    let before = cluster.vms(NAMESPACE).get(VM).await?;
    cluster.apply(&small_vm(NAMESPACE, VM)).await?;
    let after = cluster.vms(NAMESPACE).get(VM).await?;
    let (was, is) = (without_status(&before), without_status(&after));
    ensure!(was == is, "the object was {was} and is {is}");
    let diff = cluster
        .kubectl_unchecked(&["diff", "-f", "-"], &small_vm(NAMESPACE, VM).to_string())
        .await?;
    ensure!(
        diff.success && diff.stdout.is_empty(),
        "kubectl diff: {}{}",
        diff.stdout,
        diff.stderr
    );
    for entry in after.metadata.managed_fields.unwrap_or_default() {
        let manager = entry.manager.unwrap_or_default();
        let Some(fields) = entry.fields_v1.filter(|_| manager.starts_with("tandem")) else {
            continue;
        };
        let keys: Vec<&String> = fields.0.as_object().map(|map| map.keys().collect()).unwrap_or_default();
        ensure!(keys == ["f:status"], "{manager} owns {keys:?}");
        ensure!(
            entry.subresource.as_deref() == Some("status"),
            "{manager} wrote past the status subresource"
        );
    }
    Ok(())
}

async fn halted(cluster: &Cluster) -> Result<()> {
    cluster
        .apply(&with(small_vm(NAMESPACE, VM), "/spec/runPolicy", json!("Halted")))
        .await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), VM).await?;
    let stopped = |vm: &Value| {
        has_condition(vm, "Ready", "True") && condition(vm, "Ready").is_some_and(|ready| ready.1 == "Stopped")
    };
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "Ready=True with reason Stopped", stopped)
        .await?;
    Ok(())
}

async fn started(cluster: &Cluster) -> Result<()> {
    cluster
        .apply(&with(small_vm(NAMESPACE, VM), "/spec/runPolicy", json!("Always")))
        .await?;
    let running = |pod: &Value| pod["status"]["phase"] == "Running";
    cluster.until(&cluster.pods(NAMESPACE), VM, "running", running).await?;
    ready(cluster).await?;
    Ok(())
}

async fn restarted(cluster: &Cluster) -> Result<()> {
    let old = pod_uid(cluster).await?;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({"spec": {"restartedAt": now}}).to_string();
    cluster
        .kubectl(&["patch", "vm", "-n", NAMESPACE, VM, "--type", "merge", "-p", &patch])
        .await?;
    ready_with_another_pod(cluster, &old).await?;
    Ok(())
}

async fn pod_deleted(cluster: &Cluster) -> Result<()> {
    let old = pod_uid(cluster).await?;
    cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, VM]).await?;
    ready_with_another_pod(cluster, &old).await?;
    Ok(())
}

async fn vmm_killed(cluster: &Cluster) -> Result<()> {
    let old = pod_uid(cluster).await?;
    let node = cluster.kvm_node().await?;
    let pids = cluster.vmm_pids(&node).await?;
    ensure!(pids.len() == 1, "the node runs {} VMMs, not one", pids.len());
    cluster.node_exec(&node, &["kill", "-9", &pids[0].to_string()]).await?;
    let vm = ready_with_another_pod(cluster, &old).await?;
    ensure!(
        vm["status"]["restarts"]["failures"]
            .as_i64()
            .is_some_and(|failures| failures >= 1),
        "status: {}",
        vm["status"]
    );
    let events = cluster
        .kubectl(&[
            "get",
            "events",
            "-n",
            NAMESPACE,
            "--field-selector",
            "involvedObject.kind=VirtualMachine",
            "-o",
            "wide",
        ])
        .await?;
    ensure!(
        events.contains("137") || events.contains("killed"),
        "no event says that the VMM was killed:\n{events}"
    );
    Ok(())
}

async fn recreated(cluster: &Cluster) -> Result<()> {
    let old_pod = pod_uid(cluster).await?;
    let old_vm = cluster.vms(NAMESPACE).get(VM).await?.metadata.uid;
    cluster
        .kubectl(&["delete", "vm", "-n", NAMESPACE, VM, "--wait=false"])
        .await?;
    cluster.until_gone(&cluster.vms(NAMESPACE), VM).await?;
    cluster.apply(&small_vm(NAMESPACE, VM)).await?;
    let vm = ready_with_another_pod(cluster, &old_pod).await?;
    ensure!(
        vm["metadata"]["uid"].as_str().map(str::to_owned) != old_vm,
        "the VM was not recreated"
    );
    let pod = cluster.pods(NAMESPACE).get(VM).await?;
    let owner = pod.metadata.owner_references.unwrap_or_default();
    ensure!(
        owner.iter().any(|owner| vm["metadata"]["uid"] == owner.uid.as_str()),
        "the pod belongs to {owner:?}"
    );
    Ok(())
}

async fn foreign_pod(cluster: &Cluster) -> Result<()> {
    let name = "foreign";
    cluster
        .apply(&pod(NAMESPACE, name, &json!({}), &["sleep", "infinity"]))
        .await?;
    let uid = cluster.pods(NAMESPACE).get(name).await?.metadata.uid;
    cluster.apply(&small_vm(NAMESPACE, name)).await?;
    let explained = |vm: &Value| {
        has_condition(vm, "Stalled", "True") && condition(vm, "Stalled").is_some_and(|it| it.2.contains("pod"))
    };
    cluster
        .until(
            &cluster.vms(NAMESPACE),
            name,
            "stalled by the pod of its name",
            explained,
        )
        .await?;
    ensure!(
        cluster.pods(NAMESPACE).get(name).await?.metadata.uid == uid,
        "the operator touched a pod that is not its own"
    );
    cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, name]).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), name, "ready once the name is free", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, name]).await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), name).await
}

async fn deleted(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, VM]).await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), VM).await?;
    let left = cluster
        .kubectl(&["get", "all,vm,secrets,configmaps", "-n", NAMESPACE, "-o", "name"])
        .await?;
    let left: Vec<&str> = left.lines().filter(|line| !line.contains("kube-root-ca.crt")).collect();
    ensure!(left.is_empty(), "the namespace still has {left:?}");
    let pids = cluster.vmm_pids(&cluster.kvm_node().await?).await?;
    ensure!(pids.is_empty(), "the node still runs VMMs: {pids:?}");
    Ok(())
}
