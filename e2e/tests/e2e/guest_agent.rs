//! Tandem's agent in a guest: installed from a disk by cloud-init, used by probes and from outside; and a guest that has none.

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, has_condition};
use e2e::guest::ask_agent;
use e2e::manifest::{GUEST_AGENT_IMAGE, debian_vm, small_vm};
use e2e::runner::Runner;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-guest-agent";
const VM: &str = "agent";
const WITHOUT: &str = "without";
/// As docs/guest-agent.md says it is done.
const USER_DATA: &str = "#cloud-config
runcmd:
- mkdir -p /run/tandem-agent
- mount -o ro LABEL=TANDEM-AGENT /run/tandem-agent
- /run/tandem-agent/install.sh
- umount /run/tandem-agent
";
/// What the readiness probe looks for in the guest.
const MARK: &str = "/run/ready-for-work";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    runner
        .case(
            "a startup probe waits for the agent that cloud-init installs",
            starts(cluster),
        )
        .await;
    runner
        .case("an exec probe runs its command in the guest", probed(cluster))
        .await;
    runner
        .case(
            "kubectl exec asks the agent what the guest is",
            asked_from_outside(cluster),
        )
        .await;
    runner.case("file systems are frozen and thawed", frozen(cluster)).await;
    runner
        .case(
            "a guest without the agent is not ready, and it is said why",
            without(cluster),
        )
        .await;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

async fn starts(cluster: &Cluster) -> Result<()> {
    let mut vm = debian_vm(NAMESPACE, VM, USER_DATA);
    vm["spec"]["disks"]
        .as_array_mut()
        .context("the VM has disks")?
        .push(json!({"name": "agent", "readOnly": true, "image": {"image": GUEST_AGENT_IMAGE}}));
    vm["spec"]["startupProbe"] =
        json!({"guestAgentPing": {}, "periodSeconds": 2, "timeoutSeconds": 10, "failureThreshold": 300});
    vm["spec"]["readinessProbe"] =
        json!({"exec": {"command": ["/usr/bin/test", "-e", MARK]}, "periodSeconds": 1, "timeoutSeconds": 10});
    cluster.apply(&vm).await?;
    let started = |pod: &Value| pod.pointer("/status/containerStatuses/0/started") == Some(&json!(true));
    cluster.until(&cluster.pods(NAMESPACE), VM, "started", started).await?;
    let vm = cluster.vms(NAMESPACE).get(VM).await?;
    ensure!(
        !has_condition(&e2e::cluster::value(&vm), "Ready", "True"),
        "the VM is ready without {MARK}"
    );
    Ok(())
}

async fn probed(cluster: &Cluster) -> Result<()> {
    for (command, ready) in [("touch", "True"), ("rm", "False"), ("touch", "True")] {
        agent(cluster, &["exec", "--", command, MARK]).await?;
        cluster
            .until(&cluster.vms(NAMESPACE), VM, "as its probe says", |vm| {
                has_condition(vm, "Ready", ready)
            })
            .await?;
    }
    Ok(())
}

async fn asked_from_outside(cluster: &Cluster) -> Result<()> {
    let info = agent(cluster, &["info"]).await?;
    let pod = cluster.pods(NAMESPACE).get(VM).await?;
    for expected in ["\"id\":\"debian\"", "\"cpus\":1,", "-cloud-amd64"] {
        ensure!(info.contains(expected), "no {expected} in {info}");
    }
    ensure!(pod.data["status"]["podIP"].is_string(), "the pod has no address");
    let kernel = agent(cluster, &["exec", "--", "uname", "-r"]).await?;
    ensure!(info.contains(kernel.trim()), "uname says {kernel}, the agent {info}");
    let refused = cluster
        .kubectl_unchecked(
            &[
                "exec",
                "-n",
                NAMESPACE,
                VM,
                "--",
                "/node-shim",
                "control",
                "guest",
                "exec",
                "--",
                "false",
            ],
            "",
        )
        .await?;
    ensure!(!refused.success, "the exit code of `false` is lost");
    Ok(())
}

async fn frozen(cluster: &Cluster) -> Result<()> {
    let answer = agent(cluster, &["freeze", "--thaw-after", "120"]).await?;
    ensure!(answer.contains("\"fileSystems\":1"), "{answer}");
    let answer = agent(cluster, &["thaw"]).await?;
    ensure!(answer.contains("\"thawed\""), "{answer}");
    agent(
        cluster,
        &["exec", "--", "sh", "-c", "echo written >/root/after && sync"],
    )
    .await?;
    Ok(())
}

async fn without(cluster: &Cluster) -> Result<()> {
    let mut vm = small_vm(NAMESPACE, WITHOUT);
    // Time for the VMM's own answer, also where starting the probe takes long.
    vm["spec"]["readinessProbe"] = json!({"guestAgentPing": {}, "periodSeconds": 5, "timeoutSeconds": 10});
    cluster.apply(&vm).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), WITHOUT, "running", |vm| {
            vm["status"]["status"] == "Running" && has_condition(vm, "Ready", "False")
        })
        .await?;
    let events = cluster.api("v1", "Event", "events", NAMESPACE);
    let unhealthy = kube::api::ListParams::default().fields("reason=Unhealthy,involvedObject.name=without");
    let said = tokio::time::timeout(e2e::cluster::PATIENCE, async {
        loop {
            let found = events.list(&unhealthy).await?.items;
            let text = found
                .iter()
                .filter_map(|event| event.data["message"].as_str())
                .find(|text| text.contains("tandem-guest-agent"));
            if let Some(text) = text {
                return anyhow::Ok(text.to_owned());
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    })
    .await
    .context("no event says that the agent does not answer")??;
    ensure!(said.contains("Readiness probe failed"), "{said}");
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, WITHOUT]).await?;
    Ok(())
}

/// `control guest` in the VM's pod.
async fn agent(cluster: &Cluster, verb: &[&str]) -> Result<String> {
    ask_agent(cluster, NAMESPACE, VM, verb).await
}
