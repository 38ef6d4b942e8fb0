//! Each source of a disk, as a guest has it: contents written to claims, and contents of a `ConfigMap` and a Secret that change.

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, PATIENCE, condition, has_condition};
use e2e::guest::ask_agent;
use e2e::manifest::{IGNITION_IMAGE, bare_debian_vm, small_vm};
use e2e::runner::Runner;
use e2e::volumes::Volumes;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-disks";
const VM: &str = "disks";
const MIB: u64 = 1 << 20;
const IGNITION: &str = r#"{"ignition":{"version":"3.4.0"},
"storage":{"files":[{"path":"/etc/ignited","mode":416,"contents":{"source":"data:,from%20the%20seed"}}]},
"systemd":{"units":[{"name":"ignited.service","enabled":true,"contents":"[Service]\nExecStart=true\n[Install]\nWantedBy=multi-user.target\n"}]}}"#;

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    runner
        .case("a VM whose claim is missing says so", claim_missing(cluster))
        .await;
    let node = cluster.kvm_node().await?;
    let volumes = Volumes::make(cluster, NAMESPACE, &node).await?;
    runner
        .case("a guest has a disk of each source", each_source(cluster, &volumes))
        .await;
    runner
        .case("Ignition does in the guest what the seed says", ignited(cluster))
        .await;
    runner
        .case(
            "a second VM does not get a claim's file that is in use",
            in_use(cluster),
        )
        .await;
    runner
        .case(
            "a changed ConfigMap and a changed Secret are seen after a reboot",
            changed_contents(cluster, &volumes),
        )
        .await;
    runner
        .case(
            "what was written to claims is there after a restart of the VM",
            restarted(cluster, &volumes),
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

fn config_map(greeting: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "settings", "namespace": NAMESPACE},
        "data": {"greeting": greeting, "a-file.with-a-longer-name": "kept\n"},
    })
}

fn secret(password: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "password", "namespace": NAMESPACE},
        "stringData": {"password": password},
    })
}

async fn claim_missing(cluster: &Cluster) -> Result<()> {
    let mut vm = small_vm(NAMESPACE, "no-claim");
    vm["spec"]["disks"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "missing"}}]);
    cluster.apply(&vm).await?;
    let says = |vm: &Value, kind: &str, reason: &str| {
        condition(vm, kind).is_some_and(|(status, found, message)| {
            (status, found) == ("False", reason) && message.contains("\"missing\" not found")
        })
    };
    cluster
        .until(&cluster.vms(NAMESPACE), "no-claim", "waiting for its claim", |vm| {
            says(vm, "Scheduled", "Unschedulable") && says(vm, "DisksReady", "ClaimNotReady")
        })
        .await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, "no-claim"]).await?;
    Ok(())
}

/// Runs a shell command in the guest, and returns what it printed.
async fn in_guest(cluster: &Cluster, command: &str) -> Result<String> {
    let printed = ask_agent(cluster, NAMESPACE, VM, &["exec", "--", "sh", "-c", command]).await?;
    Ok(printed.trim().to_owned())
}

/// Mounts a file system by its label, read-only, and prints its files.
fn show(label: &str) -> String {
    format!(
        "mkdir -p /media/{label} && {{ mountpoint -q /media/{label} || mount -o ro LABEL={label} /media/{label}; }} && \
         cd /media/{label} && head -v *"
    )
}

async fn each_source(cluster: &Cluster, volumes: &Volumes) -> Result<()> {
    cluster.apply(&config_map("the first greeting")).await?;
    cluster.apply(&secret("the first password")).await?;
    let mut vm = bare_debian_vm(NAMESPACE, VM);
    let disks = vm["spec"]["disks"].as_array_mut().context("the VM has disks")?;
    disks.extend([
        json!({"name": "made", "cache": "None", "persistentVolumeClaim": {"claimName": "files", "path": "/data.img", "size": "64Mi"}}),
        json!({"name": "device", "discard": "Ignore", "io": "Threads", "persistentVolumeClaim": {"claimName": "device", "volumeMode": "Block"}}),
        json!({"name": "empty", "emptyDisk": {"size": "32Mi"}}),
        json!({"name": "settings", "configMap": {"name": "settings"}}),
        json!({"name": "password", "secret": {"secretName": "password"}}),
        json!({"name": "ignition", "readOnly": true, "image": {"image": IGNITION_IMAGE}}),
    ]);
    vm["spec"]["ignition"] = json!({"config": IGNITION});
    cluster.apply(&vm).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready", |vm| {
            has_condition(vm, "Ready", "True") && has_condition(vm, "DisksReady", "True")
        })
        .await?;
    for (name, mib) in [("made", 64), ("device", 16), ("empty", 32)] {
        let disk = format!("/dev/disk/by-id/virtio-{name}");
        let write = format!(
            "blockdev --getsize64 {disk}; printf 'written to {name}' | dd of={disk} bs=512 seek=9 conv=sync,fsync status=none; \
             dd if={disk} bs=512 skip=9 count=1 iflag=direct status=none | tr -d '\\0'"
        );
        let said = in_guest(cluster, &write).await?;
        ensure!(
            said == format!("{}\nwritten to {name}", mib * MIB),
            "disk {name}: {said}"
        );
    }
    for (path, name) in [(&volumes.file("data.img"), "made"), (&volumes.device, "device")] {
        let read = format!("dd if={path} bs=512 skip=9 count=1 status=none | tr -d '\\0'");
        let found = cluster.node_exec(&volumes.node, &["sh", "-c", &read]).await?;
        ensure!(found == format!("written to {name}"), "{path} has {found:?}");
    }
    let settings = in_guest(cluster, &show("settings")).await?;
    ensure!(
        settings.contains("the first greeting") && settings.contains("==> a-file.with-a-longer-name <==\nkept"),
        "{settings}"
    );
    let password = in_guest(cluster, &show("password")).await?;
    ensure!(password.contains("the first password"), "{password}");
    Ok(())
}

/// Runs Ignition's stages as the initrd of an image for Proxmox VE does. It finds the seed by itself.
async fn ignited(cluster: &Cluster) -> Result<()> {
    // In an emulated machine's guest a program of 44 MB takes its time to start.
    let run = "mkdir -p /media/ignition && mount -o ro LABEL=IGNITION /media/ignition && \
               for stage in fetch-offline files; do \
               /media/ignition/ignition -platform proxmoxve -stage $stage -root / -log-to-stdout 2>&1 || exit; done";
    let log = ask_agent(
        cluster,
        NAMESPACE,
        VM,
        &["exec", "--timeout", "300", "--", "sh", "-c", run],
    )
    .await?;
    let left = in_guest(
        cluster,
        "cd /etc && cat ignited; stat -c ' %a %U' ignited; cat systemd/system-preset/20-ignition.preset systemd/system/ignited.service",
    )
    .await;
    let expected = "from the seed 640 root\nenable ignited.service\n[Service]\nExecStart=true\n";
    ensure!(
        left.as_ref().is_ok_and(|left| left.starts_with(expected)),
        "Ignition left {left:?}, and said {log}"
    );
    Ok(())
}

async fn in_use(cluster: &Cluster) -> Result<()> {
    let mut vm = small_vm(NAMESPACE, "second");
    vm["spec"]["disks"] =
        json!([{"name": "made", "persistentVolumeClaim": {"claimName": "files", "path": "/data.img"}}]);
    cluster.apply(&vm).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), "second", "refused its disk", |vm| {
            condition(vm, "Ready").is_some_and(|(_, _, message)| {
                message.contains("DiskUnavailable") && message.contains("in use by another process")
            })
        })
        .await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, "second"]).await?;
    Ok(())
}

/// Waits until the node shows this text as a file of a volume of the VM's pod.
async fn until_on_node(cluster: &Cluster, node: &str, kind: &str, file: &str, text: &str) -> Result<()> {
    let pod = cluster.pods(NAMESPACE).get(VM).await?;
    let uid = pod.metadata.uid.context("the pod has no uid")?;
    let look = format!(
        "grep -rqF '{text}' /var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~{kind}/*/..data/{file} && echo yes || true"
    );
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // The kubelet says nowhere when it has written it.
    while cluster.node_exec(node, &["sh", "-c", &look]).await?.trim() != "yes" {
        if tokio::time::Instant::now() > deadline {
            bail!("the node does not show {text:?} in {kind} {file}");
        }
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    }
    Ok(())
}

const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

async fn changed_contents(cluster: &Cluster, volumes: &Volumes) -> Result<()> {
    cluster.apply(&config_map("the second greeting")).await?;
    cluster.apply(&secret("the second password")).await?;
    until_on_node(cluster, &volumes.node, "configmap", "greeting", "the second greeting").await?;
    until_on_node(cluster, &volumes.node, "secret", "password", "the second password").await?;
    let settings = in_guest(cluster, &show("settings")).await?;
    ensure!(
        settings.contains("the first greeting"),
        "it changed under a running guest: {settings}"
    );
    let before = in_guest(cluster, BOOT_ID).await?;
    // The answer is lost with the guest.
    let _ = in_guest(cluster, "reboot -ff").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !in_guest(cluster, BOOT_ID).await.is_ok_and(|now| now != before) {
        ensure!(tokio::time::Instant::now() < deadline, "the guest does not reboot");
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
    let settings = in_guest(cluster, &show("settings")).await?;
    ensure!(
        settings.contains("the second greeting") && settings.contains("kept"),
        "{settings}"
    );
    let password = in_guest(cluster, &show("password")).await?;
    ensure!(password.contains("the second password"), "{password}");
    let status = cluster
        .kubectl(&["exec", "-n", NAMESPACE, VM, "--", "/node-shim", "control", "status"])
        .await?;
    ensure!(
        status.contains("\"resets\":1"),
        "the VM was restarted, not its guest: {status}"
    );
    Ok(())
}

async fn restarted(cluster: &Cluster, volumes: &Volumes) -> Result<()> {
    let old = cluster.pods(NAMESPACE).get(VM).await?.metadata.uid;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({"spec": {"restartedAt": now}}).to_string();
    cluster
        .kubectl(&["patch", "vm", "-n", NAMESPACE, VM, "--type=merge", "-p", &patch])
        .await?;
    cluster
        .until(&cluster.pods(NAMESPACE), VM, "another pod that is ready", |pod| {
            pod["metadata"]["uid"].as_str() != old.as_deref() && has_condition(pod, "Ready", "True")
        })
        .await?;
    for (name, expected) in [
        ("made", "written to made"),
        ("device", "written to device"),
        ("empty", ""),
    ] {
        let read = format!("dd if=/dev/disk/by-id/virtio-{name} bs=512 skip=9 count=1 status=none | tr -d '\\0'");
        let found = in_guest(cluster, &read).await?;
        ensure!(found == expected, "disk {name} has {found:?}");
    }
    let owner = cluster
        .node_exec(&volumes.node, &["stat", "-c", "%g", &volumes.file("data.img")])
        .await?;
    ensure!(owner.trim() == "65532", "the claim's file is of group {owner}");
    Ok(())
}
