//! The operator dies at every single API write between apply and Ready, once before and once after the API server did it; another one
//! takes over, and the end is the same.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, has_condition};
use e2e::fault_proxy::{Cut, FaultProxy};
use e2e::manifest::small_vm;
use e2e::operator_process::OperatorProcess;
use e2e::runner::Runner;
use serde_json::Value;

const NAMESPACE: &str = "e2e-operator-crash";
const CASE: &str = "an operator killed at any write between apply and Ready: the same end";
/// Far more writes than a VM may cost; the design's budget is 6.
const MOST_WRITES: usize = 20;

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    if !runner.wants(CASE) {
        return Ok(());
    }
    cluster.restricted_namespace(NAMESPACE).await?;
    let installed = "deployment/tandem-operator";
    cluster
        .kubectl(&["scale", "-n", "tandem-system", installed, "--replicas=0"])
        .await?;
    cluster
        .kubectl(&[
            "wait",
            "-n",
            "tandem-system",
            "--for=delete",
            "pod",
            "-l",
            "app.kubernetes.io/component=operator",
            "--timeout=120s",
        ])
        .await?;
    runner.case(CASE, every_write(cluster)).await;
    cluster
        .kubectl(&["scale", "-n", "tandem-system", installed, "--replicas=1"])
        .await?;
    cluster
        .kubectl(&["rollout", "status", "-n", "tandem-system", installed, "--timeout=300s"])
        .await?;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

async fn every_write(cluster: &Cluster) -> Result<()> {
    let image = cluster
        .kubectl(&[
            "get",
            "-n",
            "tandem-system",
            "deployment/tandem-operator",
            "-o",
            "jsonpath={.spec.template.spec.containers[0].env[?(@.name==\"TANDEM_SHIM_IMAGE\")].value}",
        ])
        .await?;
    ensure!(!image.is_empty(), "the operator's Deployment names no shim image");
    let directory = std::env::temp_dir().join(format!("tandem-e2e-{}", std::process::id()));
    tokio::fs::create_dir_all(&directory).await?;
    let (expected, writes) = converge(cluster, &directory, &image, "undisturbed", Cut::Never).await?;
    println!("      undisturbed: {writes} writes");
    ensure!(
        (1..=MOST_WRITES).contains(&writes),
        "{writes} writes from apply to Ready"
    );
    for number in 1..=writes {
        for cut in [Cut::Before(number), Cut::After(number)] {
            let name = format!("{cut:?}").to_lowercase().replace(['(', ')'], "-");
            let (end, _) = converge(cluster, &directory, &image, name.trim_end_matches('-'), cut)
                .await
                .with_context(|| format!("{cut:?}"))?;
            ensure!(
                end == expected,
                "{cut:?}: ended as {end:?}, undisturbed as {expected:?}"
            );
        }
    }
    tokio::fs::remove_dir_all(&directory).await?;
    Ok(())
}

/// What a VM that is ready looks like, without what differs between two VMs.
type End = BTreeSet<String>;

async fn converge(
    cluster: &Cluster,
    directory: &std::path::Path,
    image: &str,
    name: &str,
    cut: Cut,
) -> Result<(End, usize)> {
    let proxy = FaultProxy::start(cluster.client.clone(), cut).await?;
    let mut operator = OperatorProcess::start(&proxy.url, directory, image).await?;
    cluster.apply(&small_vm(NAMESPACE, name)).await?;
    let vms = cluster.vms(NAMESPACE);
    let is_ready = |vm: &Value| has_condition(vm, "Ready", "True");
    if cut == Cut::Never {
        cluster.until(&vms, name, "ready", is_ready).await?;
    } else {
        tokio::select! {
            () = proxy.cut() => {}
            ready = cluster.until(&vms, name, "ready or cut", is_ready) => {
                ready?;
                // Writes may be merged when things happen faster than they did undisturbed: then there is nothing to cut.
                println!("      {cut:?}: ready after {} writes", proxy.writes());
            }
        }
    }
    let writes = proxy.writes();
    operator.kill().await?;
    drop(proxy);
    let survivor = FaultProxy::start(cluster.client.clone(), Cut::Never).await?;
    let mut operator = OperatorProcess::start(&survivor.url, directory, image).await?;
    let vm = cluster
        .until(&vms, name, "ready with another operator", is_ready)
        .await?;
    let pids = cluster.vmm_pids(&cluster.kvm_node().await?).await?;
    if pids.len() != 1 {
        bail!("the node runs {} VMMs, not one", pids.len());
    }
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, name]).await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), name).await?;
    operator.kill().await?;
    let conditions = vm["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let end = conditions
        .iter()
        .map(|it| format!("{}={} {}", it["type"], it["status"], it["reason"]))
        .collect();
    Ok((end, writes))
}
