//! Disks that come and go while their VM runs: seen in the guest, on the node, and in what is said.

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, condition, has_condition};
use e2e::guest::ask_agent;
use e2e::manifest::bare_debian_vm;
use e2e::runner::Runner;
use e2e::volumes::Volumes;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-hotplug";
const VM: &str = "plug";
/// What the guest counts up all the time.
const COUNT: &str = "/run/count";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    let node = cluster.kvm_node().await?;
    let volumes = Volumes::make(cluster, NAMESPACE, &node).await?;
    runner
        .case("a VM without other disks becomes ready", starts(cluster))
        .await;
    runner
        .case(
            "disks of each source are plugged and written",
            plugged(cluster, &volumes),
        )
        .await;
    runner
        .case(
            "a claim that is not there is named, and nothing else happens",
            missing(cluster),
        )
        .await;
    runner
        .case(
            "disks are plugged and unplugged while the node agent restarts",
            agent_restarts(cluster),
        )
        .await;
    runner
        .case("what is unplugged is free", unplugged(cluster, &volumes))
        .await;
    runner
        .case(
            "after a restart the VM's own pod has what was plugged",
            restarted(cluster),
        )
        .await;
    cluster
        .kubectl(&["delete", "vm", "-n", NAMESPACE, "--all", "--timeout", "5m"])
        .await?;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--timeout", "5m"])
        .await?;
    volumes.remove(cluster).await
}

/// No udev runs in this guest, which would make links of the serial numbers.
const DISK: &str =
    r#"disk() { for it in /sys/block/vd*; do [ "$(cat $it/serial)" = "$1" ] && echo /dev/${it##*/}; done; true; }; "#;

/// Runs a shell command in the guest, and returns what it printed. It has a function `disk` that finds one by its serial number.
async fn in_guest(cluster: &Cluster, command: &str) -> Result<String> {
    let command = format!("{DISK}{command}");
    let printed = ask_agent(cluster, NAMESPACE, VM, &["exec", "--", "sh", "-c", &command]).await?;
    Ok(printed.trim().to_owned())
}

async fn starts(cluster: &Cluster) -> Result<()> {
    cluster.apply(&bare_debian_vm(NAMESPACE, VM)).await?;
    let ready = |vm: &Value| has_condition(vm, "Ready", "True");
    cluster.until(&cluster.vms(NAMESPACE), VM, "ready", ready).await?;
    let count = format!(
        "nohup sh -c 'n=0; while :; do n=$((n+1)); echo $n > {COUNT}.new; mv {COUNT}.new {COUNT}; sleep 0.2; done' < /dev/null > /dev/null 2>&1 &"
    );
    in_guest(cluster, &count).await?;
    Ok(())
}

/// Waits until the guest has counted on.
async fn goes_on(cluster: &Cluster) -> Result<()> {
    let counted = format!(
        "old=$(cat {COUNT}); for i in $(seq 100); do [ $(cat {COUNT}) -gt $old ] && exit 0; sleep 0.2; done; exit 1"
    );
    in_guest(cluster, &counted).await.context("the guest does not go on")?;
    Ok(())
}

fn file() -> Value {
    json!({"name": "file", "persistentVolumeClaim": {"claimName": "files", "path": "/data.img", "size": "8Mi"}})
}

/// Sets the disks behind the one that the VM boots from.
async fn set_disks(cluster: &Cluster, disks: &[Value]) -> Result<()> {
    let vm = bare_debian_vm(NAMESPACE, VM);
    let mut all = vm["spec"]["disks"].as_array().context("the VM has disks")?.clone();
    all.extend_from_slice(disks);
    let patch = json!({"spec": {"disks": all}}).to_string();
    cluster
        .kubectl(&["patch", "vm", "-n", NAMESPACE, VM, "--type=merge", "-p", &patch])
        .await?;
    Ok(())
}

/// Names of the disks that the guest was given while it runs.
fn given(vm: &Value) -> Vec<&str> {
    let disks = vm["status"]["guest"]["disks"].as_array().into_iter().flatten();
    let mut names: Vec<&str> = disks.filter_map(|disk| disk["name"].as_str()).collect();
    names.sort_unstable();
    names
}

/// Waits until the guest has exactly these, and nothing is pending.
async fn until_given(cluster: &Cluster, names: &[&str]) -> Result<Value> {
    let done = |vm: &Value| {
        let pending = vm["status"]["pendingChanges"].as_array();
        given(vm) == names
            && pending.is_none_or(Vec::is_empty)
            && has_condition(vm, "DisksReady", "True")
            && has_condition(vm, "RestartRequired", "False")
    };
    let what = format!("with the disks {names:?}");
    cluster.until(&cluster.vms(NAMESPACE), VM, &what, done).await
}

async fn uid(cluster: &Cluster) -> Result<String> {
    let pod = cluster.pods(NAMESPACE).get(VM).await?;
    pod.metadata.uid.context("the pod has no uid")
}

async fn plugged(cluster: &Cluster, volumes: &Volumes) -> Result<()> {
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": NAMESPACE},
        "data": {"greeting": "hello"},
    });
    cluster.apply(&settings).await?;
    let before = uid(cluster).await?;
    set_disks(cluster, &everything()).await?;
    until_given(cluster, &["block", "empty", "file", "settings"]).await?;
    for (id, mib) in [("file", 8), ("B-1", 16), ("empty", 32)] {
        let write = format!(
            "disk=$(disk {id}); blockdev --getsize64 $disk; printf 'written to {id}' | dd of=$disk bs=512 seek=9 conv=sync,fsync status=none; \
             dd if=$disk bs=512 skip=9 count=1 iflag=direct status=none | tr -d '\\0'"
        );
        let said = in_guest(cluster, &write).await?;
        ensure!(said == format!("{}\nwritten to {id}", mib << 20), "disk {id}: {said}");
    }
    for (path, id) in [(&volumes.file("data.img"), "file"), (&volumes.device, "B-1")] {
        let read = format!("dd if={path} bs=512 skip=9 count=1 status=none | tr -d '\\0'");
        let found = cluster.node_exec(&volumes.node, &["sh", "-c", &read]).await?;
        ensure!(found == format!("written to {id}"), "{path} has {found:?}");
    }
    let show = "mkdir -p /run/settings && mount -o ro LABEL=settings /run/settings && cat /run/settings/greeting; umount /run/settings";
    let greeting = in_guest(cluster, show).await?;
    ensure!(greeting == "hello", "{greeting}");
    ensure!(uid(cluster).await? == before, "the VM has another pod");
    let services = cluster.pods(NAMESPACE).get(&format!("{VM}.file")).await?;
    let labels = services.metadata.labels.unwrap_or_default();
    ensure!(
        !labels.contains_key("tandem.dev/vm"),
        "a volume pod is labelled as a VM: {labels:?}"
    );
    goes_on(cluster).await
}

async fn missing(cluster: &Cluster) -> Result<()> {
    let mut disks = everything();
    let good = disks.clone();
    disks.push(json!({"name": "nowhere", "persistentVolumeClaim": {"claimName": "missing"}}));
    set_disks(cluster, &disks).await?;
    let said = |vm: &Value| {
        condition(vm, "DisksReady").is_some_and(|(status, reason, message)| {
            (status, reason) == ("False", "HotPlugFailed") && message.contains("\"missing\" not found")
        }) && has_condition(vm, "Ready", "True")
            && has_condition(vm, "RestartRequired", "False")
    };
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "said to lack a claim", said)
        .await?;
    set_disks(cluster, &good).await?;
    until_given(cluster, &["block", "empty", "file", "settings"]).await?;
    cluster
        .until_gone(&cluster.pods(NAMESPACE), &format!("{VM}.nowhere"))
        .await
}

/// A disk of each source.
fn everything() -> Vec<Value> {
    vec![
        file(),
        json!({"name": "block", "serial": "B-1", "persistentVolumeClaim": {"claimName": "device", "volumeMode": "Block"}}),
        json!({"name": "empty", "emptyDisk": {"size": "32Mi"}}),
        json!({"name": "settings", "configMap": {"name": "settings"}}),
    ]
}

async fn agent_restarts(cluster: &Cluster) -> Result<()> {
    let agents = ["-n", "tandem-system", "daemonset/tandem-node-agent"];
    cluster
        .kubectl(&[&["rollout", "restart"], &agents[..]].concat())
        .await?;
    let mut disks = everything();
    disks.retain(|disk| disk["name"] != "empty");
    disks.push(json!({"name": "more", "emptyDisk": {"size": "16Mi"}}));
    set_disks(cluster, &disks).await?;
    cluster
        .kubectl(&[&["rollout", "status", "--timeout=300s"], &agents[..]].concat())
        .await?;
    until_given(cluster, &["block", "file", "more", "settings"]).await?;
    let read = "dd if=$(disk file) bs=512 skip=9 count=1 iflag=direct status=none | tr -d '\\0'";
    let found = in_guest(cluster, read).await?;
    ensure!(found == "written to file", "{found}");
    goes_on(cluster).await
}

async fn unplugged(cluster: &Cluster, volumes: &Volumes) -> Result<()> {
    set_disks(cluster, &[]).await?;
    until_given(cluster, &[]).await?;
    for disk in ["file", "block", "empty", "more", "settings"] {
        cluster
            .until_gone(&cluster.pods(NAMESPACE), &format!("{VM}.{disk}"))
            .await?;
    }
    let left = in_guest(cluster, "for it in file B-1 empty more settings; do disk $it; done").await?;
    ensure!(left.is_empty(), "disks are left in the guest: {left}");
    let free = format!("flock --nonblock {} true", volumes.file("data.img"));
    cluster.node_exec(&volumes.node, &["sh", "-c", &free]).await?;
    goes_on(cluster).await
}

async fn restarted(cluster: &Cluster) -> Result<()> {
    set_disks(cluster, &[file()]).await?;
    until_given(cluster, &["file"]).await?;
    let old = uid(cluster).await?;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({"spec": {"restartedAt": now}}).to_string();
    cluster
        .kubectl(&["patch", "vm", "-n", NAMESPACE, VM, "--type=merge", "-p", &patch])
        .await?;
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready in another pod", |vm| {
            vm["status"]["podUID"].as_str() != Some(&old) && has_condition(vm, "Ready", "True") && given(vm).is_empty()
        })
        .await?;
    cluster
        .until_gone(&cluster.pods(NAMESPACE), &format!("{VM}.file"))
        .await?;
    let read = "dd if=$(disk file) bs=512 skip=9 count=1 status=none | tr -d '\\0'";
    let found = in_guest(cluster, read).await?;
    ensure!(found == "written to file", "{found}");
    Ok(())
}
