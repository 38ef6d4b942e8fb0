//! A node is drained: what becomes of the VM on it is its `evictionPolicy`.

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Output, condition, has_condition};
use e2e::manifest::{small_vm, with};
use e2e::runner::Runner;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-eviction";
const VM: &str = "stays";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    let node = cluster.kvm_node().await?;
    runner
        .case(
            "Block keeps a VM on its node, and says who waits",
            blocked(cluster, &node),
        )
        .await;
    runner
        .case(
            "Shutdown lets the node go, and the VM starts again",
            let_go(cluster, &node),
        )
        .await;
    runner
        .case("a budget that somebody weakens is mended", weakened(cluster))
        .await;
    runner
        .case("a foreign budget of the VM's name is left alone", foreign(cluster))
        .await;
    cluster.kubectl(&["uncordon", &node]).await?;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

fn vm(name: &str, policy: &str) -> Value {
    with(small_vm(NAMESPACE, name), "/spec/evictionPolicy", json!(policy))
}

async fn set_policy(cluster: &Cluster, policy: &str) -> Result<()> {
    let patch = json!({"spec": {"evictionPolicy": policy}}).to_string();
    cluster
        .kubectl(&["patch", "vm", "-n", NAMESPACE, VM, "--type", "merge", "-p", &patch])
        .await?;
    Ok(())
}

fn budgets(cluster: &Cluster) -> kube::Api<kube::core::DynamicObject> {
    cluster.api("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", NAMESPACE)
}

/// `kubectl drain` of this VM's pod alone: other tests' pods are on the node too.
async fn drain(cluster: &Cluster, node: &str, seconds: u32) -> Result<Output> {
    let timeout = format!("--timeout={seconds}s");
    let selector = format!("--pod-selector=tandem.dev/vm={VM}");
    let arguments = ["drain", node, &selector, &timeout, "--delete-emptydir-data", "--force"];
    cluster.kubectl_unchecked(&arguments, "").await
}

async fn blocked(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.apply(&vm(VM, "Block")).await?;
    let ready = cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await?;
    let said = condition(&ready, "EvictionBlocked");
    ensure!(
        said.is_some_and(|it| (it.0, it.1) == ("True", "Succeeded")),
        "EvictionBlocked is {said:?}"
    );
    // The disruption controller counts the pod as healthy only then.
    let counted = |budget: &Value| budget["status"]["currentHealthy"] == 1;
    cluster
        .until(&budgets(cluster), VM, "a budget that counts its pod", counted)
        .await?;
    let drained = drain(cluster, node, 15).await?;
    ensure!(!drained.success, "the drain went through: {}", drained.stdout);
    ensure!(
        drained.stderr.contains("disruption budget"),
        "the drain does not say why it waits: {}",
        drained.stderr
    );
    let named = |vm: &Value| {
        condition(vm, "EvictionBlocked").is_some_and(|it| it.1 == "NodeCordoned" && it.2.contains("evictionPolicy"))
    };
    let vm = cluster
        .until(&cluster.vms(NAMESPACE), VM, "said to block the drain", named)
        .await?;
    ensure!(has_condition(&vm, "Ready", "True"), "status: {}", vm["status"]);
    let events = cluster
        .kubectl(&[
            "get",
            "events",
            "-n",
            NAMESPACE,
            "--field-selector",
            "reason=DrainBlocked",
        ])
        .await?;
    ensure!(events.contains(VM), "no event tells of the drain: {events}");
    cluster.kubectl(&["uncordon", node]).await?;
    let quiet = |vm: &Value| condition(vm, "EvictionBlocked").is_some_and(|it| it.1 == "Succeeded");
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "left alone again", quiet)
        .await?;
    Ok(())
}

/// Goes on where the last case ended: the VM runs with a budget.
async fn let_go(cluster: &Cluster, node: &str) -> Result<()> {
    let old = cluster.pods(NAMESPACE).get(VM).await?.metadata.uid;
    set_policy(cluster, "Shutdown").await?;
    cluster.until_gone(&budgets(cluster), VM).await?;
    let drained = drain(cluster, node, 300).await?;
    ensure!(drained.success, "the drain failed: {}", drained.stderr);
    let waits =
        |vm: &Value| condition(vm, "Scheduled").is_some_and(|it| it.0 == "False" && it.2.contains("unschedulable"));
    let vm = cluster
        .until(&cluster.vms(NAMESPACE), VM, "waiting for a node", waits)
        .await?;
    ensure!(
        condition(&vm, "EvictionBlocked").is_none(),
        "a VM that lets itself be evicted says otherwise: {}",
        vm["status"]
    );
    cluster.kubectl(&["uncordon", node]).await?;
    let again = |vm: &Value| has_condition(vm, "Ready", "True") && vm["status"]["podUID"].as_str() != old.as_deref();
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready in another pod", again)
        .await?;
    Ok(())
}

async fn weakened(cluster: &Cluster) -> Result<()> {
    set_policy(cluster, "Block").await?;
    let whole = |budget: &Value| budget["spec"]["minAvailable"] == 1;
    cluster.until(&budgets(cluster), VM, "there again", whole).await?;
    cluster
        .kubectl(&[
            "patch",
            "pdb",
            "-n",
            NAMESPACE,
            VM,
            "--type",
            "merge",
            "-p",
            r#"{"spec": {"minAvailable": 0}}"#,
        ])
        .await?;
    cluster.until(&budgets(cluster), VM, "as it was", whole).await?;
    cluster.kubectl(&["delete", "pdb", "-n", NAMESPACE, VM]).await?;
    cluster.until(&budgets(cluster), VM, "there again", whole).await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, VM]).await?;
    cluster.until_gone(&budgets(cluster), VM).await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), VM).await
}

async fn foreign(cluster: &Cluster) -> Result<()> {
    let name = "foreign";
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"minAvailable": 0, "selector": {"matchLabels": {"app": "other"}}},
    });
    cluster.apply(&budget).await?;
    cluster.apply(&vm(name, "Block")).await?;
    let vms = cluster.vms(NAMESPACE);
    let told =
        |vm: &Value| condition(vm, "EvictionBlocked").is_some_and(|it| it.0 == "False" && it.1 == "BudgetNameTaken");
    cluster.until(&vms, name, "said to have no budget", told).await?;
    cluster.kubectl(&["delete", "pdb", "-n", NAMESPACE, name]).await?;
    let protected = |vm: &Value| condition(vm, "EvictionBlocked").is_some_and(|it| it.0 == "True");
    cluster
        .until(&vms, name, "protected once the name is free", protected)
        .await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, name]).await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), name).await
}
