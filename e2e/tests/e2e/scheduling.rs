//! kube-scheduler treats a VM and a container pod alike.

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, condition, has_condition};
use e2e::manifest::{kvm_node, pod, small_vm, with};
use e2e::runner::Runner;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-scheduling";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    runner
        .case(
            "a VM waits for memory that a container pod has",
            vm_waits_for_pod(cluster),
        )
        .await;
    runner
        .case(
            "a container pod waits for memory that a VM has",
            pod_waits_for_vm(cluster),
        )
        .await;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

/// MiB that are more than half of what the KVM node has for pods, so that two such workloads never fit.
async fn more_than_half(cluster: &Cluster) -> Result<u64> {
    let node = cluster.kvm_node().await?;
    let allocatable = cluster
        .kubectl(&["get", "node", &node, "-o", "jsonpath={.status.allocatable.memory}"])
        .await?;
    let kib: u64 = allocatable
        .trim_end_matches("Ki")
        .parse()
        .with_context(|| format!("allocatable memory {allocatable}"))?;
    Ok(kib / 1024 * 55 / 100)
}

fn unschedulable(pod: &Value) -> bool {
    condition(pod, "PodScheduled")
        .is_some_and(|(status, _, message)| status == "False" && message.contains("Insufficient memory"))
}

async fn vm_waits_for_pod(cluster: &Cluster) -> Result<()> {
    let mib = more_than_half(cluster).await?;
    let request = json!(format!("{mib}Mi"));
    let big_pod = pod(NAMESPACE, "pod-first", &kvm_node(), &["sleep", "infinity"]);
    cluster
        .apply(&with(
            big_pod,
            "/spec/containers/0/resources/requests/memory",
            request.clone(),
        ))
        .await?;
    cluster
        .until(&cluster.pods(NAMESPACE), "pod-first", "running", |pod| {
            pod["status"]["phase"] == "Running"
        })
        .await?;
    cluster
        .apply(&with(small_vm(NAMESPACE, "vm-second"), "/spec/memory/size", request))
        .await?;
    let pending = |vm: &Value| {
        condition(vm, "Scheduled")
            .is_some_and(|(status, _, message)| status == "False" && message.contains("Insufficient memory"))
    };
    cluster
        .until(&cluster.vms(NAMESPACE), "vm-second", "waiting for memory", pending)
        .await?;
    let pod = cluster
        .until(&cluster.pods(NAMESPACE), "vm-second", "unschedulable", unschedulable)
        .await?;
    ensure!(
        pod["status"]["phase"] == "Pending",
        "the VM's pod is {}",
        pod["status"]["phase"]
    );
    let events = cluster
        .kubectl(&[
            "get",
            "events",
            "-n",
            NAMESPACE,
            "--field-selector",
            "involvedObject.name=vm-second",
        ])
        .await?;
    ensure!(
        events.contains("FailedScheduling"),
        "the VM's pod has no FailedScheduling event: {events}"
    );
    // The room is given back, and the VM starts by itself.
    cluster
        .kubectl(&["delete", "pod", "-n", NAMESPACE, "pod-first"])
        .await?;
    cluster
        .until(&cluster.vms(NAMESPACE), "vm-second", "ready", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await?;
    Ok(())
}

/// Goes on where the last case ended: the VM has the memory.
async fn pod_waits_for_vm(cluster: &Cluster) -> Result<()> {
    let mib = more_than_half(cluster).await?;
    let big_pod = pod(NAMESPACE, "pod-second", &kvm_node(), &["sleep", "infinity"]);
    cluster
        .apply(&with(
            big_pod,
            "/spec/containers/0/resources/requests/memory",
            json!(format!("{mib}Mi")),
        ))
        .await?;
    cluster
        .until(&cluster.pods(NAMESPACE), "pod-second", "unschedulable", unschedulable)
        .await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, "vm-second"]).await?;
    cluster
        .until(&cluster.pods(NAMESPACE), "pod-second", "running", |pod| {
            pod["status"]["phase"] == "Running"
        })
        .await?;
    cluster
        .kubectl(&["delete", "pod", "-n", NAMESPACE, "pod-second"])
        .await?;
    Ok(())
}
