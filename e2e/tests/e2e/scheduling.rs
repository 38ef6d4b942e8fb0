//! kube-scheduler treats a VM and a container pod alike, and knows of the node's huge pages.

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
    let node = cluster.kvm_node().await?;
    if has_huge_pages(cluster, &node).await? {
        runner
            .case(
                "a VM's memory is of the node's huge pages",
                huge_pages_taken(cluster, &node),
            )
            .await;
        runner
            .case(
                "a VM waits for huge pages that the node has not",
                huge_pages_missing(cluster),
            )
            .await;
    } else {
        println!("  node {node} has reserved no huge pages: no case of them");
    }
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

/// Whether the node has reserved huge pages of 2 MiB. One that has must offer them too.
async fn has_huge_pages(cluster: &Cluster, node: &str) -> Result<bool> {
    let reserved = cluster
        .node_exec(node, &["cat", "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"])
        .await?;
    Ok(reserved.trim() != "0")
}

/// Huge pages of the node that are neither in use nor promised to who has mapped them.
async fn huge_pages_left(cluster: &Cluster, node: &str) -> Result<u64> {
    let meminfo = cluster.node_exec(node, &["cat", "/proc/meminfo"]).await?;
    let count = |name: &str| -> Result<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        let count = line.with_context(|| format!("/proc/meminfo has no {name}"))?;
        Ok(count.trim().parse()?)
    };
    Ok(count("HugePages_Free:")? - count("HugePages_Rsvd:")?)
}

/// MiB of the VM on huge pages: its kernel and initrd need no more.
const ON_HUGE_PAGES_MIB: u64 = 128;

async fn huge_pages_taken(cluster: &Cluster, node: &str) -> Result<()> {
    const VM: &str = "huge-pages";
    let before = huge_pages_left(cluster, node).await?;
    let memory = json!({"size": format!("{ON_HUGE_PAGES_MIB}Mi"), "hugePages": "2Mi"});
    cluster
        .apply(&with(small_vm(NAMESPACE, VM), "/spec/memory", memory))
        .await?;
    // The VMM says what its guest has when all memory is mapped.
    let runs = |vm: &Value| has_condition(vm, "Ready", "True") && vm["status"]["guest"]["vcpus"] == 1;
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready, with a guest", runs)
        .await?;
    let pod = cluster.pods(NAMESPACE).get(VM).await?;
    let resources = &pod.data["spec"]["containers"][0]["resources"];
    for kind in ["requests", "limits"] {
        ensure!(
            resources[kind]["hugepages-2Mi"] == format!("{ON_HUGE_PAGES_MIB}Mi"),
            "the pod's resources are {resources}"
        );
    }
    let left = huge_pages_left(cluster, node).await?;
    ensure!(
        before - left == ON_HUGE_PAGES_MIB / 2,
        "of {before} huge pages {left} are left"
    );
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, VM]).await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), VM).await?;
    let after = huge_pages_left(cluster, node).await?;
    ensure!(after == before, "of {before} huge pages {after} came back");
    Ok(())
}

async fn huge_pages_missing(cluster: &Cluster) -> Result<()> {
    const VM: &str = "too-many-huge-pages";
    let memory = json!({"size": "64Gi", "hugePages": "2Mi"});
    cluster
        .apply(&with(small_vm(NAMESPACE, VM), "/spec/memory", memory))
        .await?;
    let waits = |vm: &Value| {
        condition(vm, "Scheduled").is_some_and(|(status, reason, message)| {
            (status, reason) == ("False", "Unschedulable") && message.contains("Insufficient hugepages-2Mi")
        })
    };
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "waiting for huge pages", waits)
        .await?;
    let pod = cluster.pods(NAMESPACE).get(VM).await?;
    ensure!(
        pod.data["status"]["phase"] == "Pending",
        "the VM's pod is {}",
        pod.data["status"]["phase"]
    );
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, VM]).await?;
    Ok(())
}
