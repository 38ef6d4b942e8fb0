//! VMs that are resized while they run: seen in the guest, in the pod, and in the status; and what is said where that cannot be.

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, condition, has_condition};
use e2e::guest::{Guest, SshKey};
use e2e::manifest::{kvm_node, pod, small_vm};
use e2e::resize::{GuestSize, SizeWatch, bytes, edit, growing_vm, is_resized, is_resizing, node_memory_mib};
use e2e::runner::Runner;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-resize";
const VM: &str = "grow";
/// What the VM starts with, and has between the cases.
const START_MIB: u64 = 512;
/// What it grows by.
const MORE_MIB: u64 = 1024;
/// What a guest that works writes, ever anew.
const COUNT: &str = "/tmp/count";

/// The one VM of most cases, and what is known of it.
struct Grown<'a> {
    cluster: &'a Cluster,
    key: &'a SshKey,
    /// What the node can never give.
    too_much_mib: u64,
}

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("tandem-e2e-resize-{}", std::process::id()));
    tokio::fs::create_dir_all(&directory).await?;
    let key = SshKey::generate(&directory).await?;
    cluster.restricted_namespace(NAMESPACE).await?;
    let (allocatable_mib, _) = node_memory_mib(cluster).await?;
    let vm = Grown {
        cluster,
        key: &key,
        too_much_mib: (allocatable_mib + 512).next_multiple_of(2),
    };
    runner
        .case(
            "a VM that can grow becomes ready, and its guest works",
            vm.becomes_ready(),
        )
        .await;
    runner
        .case("it grows while its guest works: first the pod, then the guest", vm.up())
        .await;
    runner
        .case("it shrinks again: first the guest, then the pod", vm.down())
        .await;
    runner
        .case(
            "a size that the node has no room for is deferred, and done once there is",
            vm.deferred(),
        )
        .await;
    runner
        .case(
            "a size that the node can never give is said to need a restart",
            vm.infeasible(),
        )
        .await;
    runner
        .case(
            "a size that is asked for while the node agent restarts is had",
            vm.agent_restarts(),
        )
        .await;
    runner.case("a guest that reboots keeps its size", vm.reboots()).await;
    runner
        .case(
            "a guest without a driver is named as what is waited for",
            no_driver(cluster),
        )
        .await;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    tokio::fs::remove_dir_all(&directory).await?;
    Ok(())
}

impl Grown<'_> {
    async fn guest(&self) -> Result<Guest<'_>> {
        Guest::connect(NAMESPACE, VM, self.key).await
    }

    async fn edit(&self, cores: u32, mib: u64) -> Result<()> {
        edit(self.cluster, NAMESPACE, VM, cores, mib).await
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool + Send) -> Result<Value> {
        self.cluster.until(&self.cluster.vms(NAMESPACE), VM, what, wanted).await
    }

    async fn until_resized(&self, cores: u32, mib: u64) -> Result<Value> {
        self.until(&format!("resized to {cores} CPUs and {mib} MiB"), |vm| {
            is_resized(vm, cores, mib)
        })
        .await
    }

    async fn becomes_ready(&self) -> Result<()> {
        let max = (4, self.too_much_mib);
        let vm = growing_vm(NAMESPACE, VM, self.key, START_MIB, max);
        self.cluster.apply(&vm).await?;
        self.until("ready", |vm| has_condition(vm, "Ready", "True")).await?;
        let guest = self.guest().await?;
        guest
            .run(&format!(
                "sudo cloud-init status --wait >/dev/null; test -e /etc/udev/rules.d/90-tandem-online.rules; \
                 setsid -f bash -c 'for ((n = 0; ; n++)); do echo $n >{COUNT}.new; mv {COUNT}.new {COUNT}; sleep 0.2; done' >/dev/null 2>&1 </dev/null"
            ))
            .await?;
        self.works(&guest).await?;
        Ok(())
    }

    /// The guest's program goes on: returns the guest's boot and its pod, which stay the same.
    async fn works(&self, guest: &Guest<'_>) -> Result<(String, String)> {
        guest
            .run(&format!(
                "old=$(cat {COUNT}); timeout 60 bash -c 'until [ \"$(cat {COUNT})\" -gt '$old' ]; do sleep 0.1; done'"
            ))
            .await
            .context("the guest's program does not go on")?;
        let boot = guest.run("cat /proc/sys/kernel/random/boot_id").await?;
        let pod = self.cluster.pods(NAMESPACE).get(VM).await?;
        let restarts = &pod.data["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "the container was restarted {restarts} times");
        Ok((boot, pod.metadata.uid.context("the pod has no UID")?))
    }

    /// What the pod may use: its spec's, and what the kubelet says of it, in MiB.
    async fn pod_mib(&self) -> Result<(u64, u64)> {
        let pod = self.cluster.pods(NAMESPACE).get(VM).await?;
        let mib = |value: &Value| -> Result<u64> {
            let text = value["limits"]["memory"].as_str().context("no memory limit")?;
            Ok(bytes(text)? >> 20)
        };
        Ok((
            mib(&pod.data["spec"]["containers"][0]["resources"])?,
            mib(&pod.data["status"]["containerStatuses"][0]["resources"])?,
        ))
    }

    async fn up(&self) -> Result<()> {
        let guest = self.guest().await?;
        let (before, old_pod) = (self.works(&guest).await?, self.pod_mib().await?);
        let mut watch = SizeWatch::start(&guest).await?;
        let old = watch.size;
        ensure!(old.cpus == 1, "the guest begins with {old:?}");
        self.edit(3, START_MIB + MORE_MIB).await?;
        watch
            .until("grown", |size| size.is(3, old, MORE_MIB.cast_signed()))
            .await?;
        let vm = self.until_resized(3, START_MIB + MORE_MIB).await?;
        ensure!(
            vm["status"]["pendingChanges"].as_array().is_none_or(Vec::is_empty),
            "pending: {}",
            vm["status"]["pendingChanges"]
        );
        let (spec, actual) = self.pod_mib().await?;
        ensure!(
            spec >= old_pod.0 + MORE_MIB && actual == spec,
            "the pod has {actual} MiB and its spec {spec}, after {old_pod:?}"
        );
        ensure!(
            self.works(&guest).await? == before,
            "the guest or its pod was restarted"
        );
        // More than it had before can be used.
        let filled_mib = START_MIB + START_MIB / 2;
        guest
            .run(&format!(
                "sudo sh -c 'mkdir -p /tmp/m && mount -t tmpfs -o size=90% none /tmp/m && head -c {filled_mib}M /dev/zero >/tmp/m/file \
                 && umount /tmp/m'"
            ))
            .await
            .context("the guest cannot use its memory")?;
        Ok(())
    }

    async fn down(&self) -> Result<()> {
        let guest = self.guest().await?;
        let (before, old_pod) = (self.works(&guest).await?, self.pod_mib().await?);
        let mut watch = SizeWatch::start(&guest).await?;
        let old = watch.size;
        self.edit(1, START_MIB).await?;
        watch
            .until("shrunk", |size| size.is(1, old, -MORE_MIB.cast_signed()))
            .await?;
        self.until_resized(1, START_MIB).await?;
        let (spec, actual) = self.pod_mib().await?;
        ensure!(
            spec + MORE_MIB <= old_pod.0 && actual == spec,
            "the pod has {actual} MiB and its spec {spec}, after {old_pod:?}"
        );
        ensure!(
            self.works(&guest).await? == before,
            "the guest or its pod was restarted"
        );
        Ok(())
    }

    async fn deferred(&self) -> Result<()> {
        let guest = self.guest().await?;
        let before = self.works(&guest).await?;
        let mut watch = SizeWatch::start(&guest).await?;
        let old = watch.size;
        let (_, free) = node_memory_mib(self.cluster).await?;
        let filler_mib = free.checked_sub(MORE_MIB / 4).context("the node has no room")?;
        let mut filler = pod(NAMESPACE, "filler", &kvm_node(), &["sleep", "infinity"]);
        filler["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!(format!("{filler_mib}Mi"));
        self.cluster.apply(&filler).await?;
        let pods = self.cluster.pods(NAMESPACE);
        self.cluster
            .until(&pods, "filler", "running", |pod| pod["status"]["phase"] == "Running")
            .await?;
        self.edit(2, START_MIB + MORE_MIB).await?;
        let vm = self.until("deferred", |vm| is_resizing(vm, "Deferred")).await?;
        let waits: Vec<&Value> = vm["status"]["pendingChanges"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        ensure!(
            !waits.is_empty() && waits.iter().all(|change| change["waitsFor"] == "Resize"),
            "pending: {waits:?}"
        );
        ensure!(
            self.works(&guest).await? == before,
            "the guest or its pod was restarted"
        );
        let now = SizeWatch::start(&guest).await?.size;
        ensure!(now.is(1, old, 0), "the guest has {now:?}, after {old:?}");
        self.cluster
            .kubectl(&["delete", "pod", "-n", NAMESPACE, "filler"])
            .await?;
        watch
            .until("grown", |size| size.is(2, old, MORE_MIB.cast_signed()))
            .await?;
        self.until_resized(2, START_MIB + MORE_MIB).await?;
        self.back(&mut watch, old).await?;
        ensure!(
            self.works(&guest).await? == before,
            "the guest or its pod was restarted"
        );
        Ok(())
    }

    /// Back to what the VM started with.
    async fn back(&self, watch: &mut SizeWatch, old: GuestSize) -> Result<()> {
        self.edit(1, START_MIB).await?;
        watch.until("shrunk", |size| size.is(1, old, 0)).await?;
        self.until_resized(1, START_MIB).await?;
        Ok(())
    }

    async fn infeasible(&self) -> Result<()> {
        let guest = self.guest().await?;
        let before = self.works(&guest).await?;
        self.edit(1, self.too_much_mib).await?;
        // By the kubelet, or before that by an API server that compares it with what the node has.
        let refused = |vm: &Value| is_resizing(vm, "Infeasible") || is_resizing(vm, "ResizeRejected");
        let vm = self.until("infeasible", refused).await?;
        let restart = condition(&vm, "RestartRequired").context("no condition RestartRequired")?;
        ensure!(
            restart.0 == "True" && restart.2.contains("spec.memory.size"),
            "RestartRequired is {restart:?}"
        );
        ensure!(
            self.works(&guest).await? == before,
            "the guest or its pod was restarted"
        );
        self.edit(1, START_MIB).await?;
        let vm = self.until_resized(1, START_MIB).await?;
        ensure!(has_condition(&vm, "RestartRequired", "False"), "RestartRequired stays");
        ensure!(
            self.works(&guest).await? == before,
            "the guest or its pod was restarted"
        );
        Ok(())
    }

    async fn agent_restarts(&self) -> Result<()> {
        let guest = self.guest().await?;
        let before = self.works(&guest).await?;
        let mut watch = SizeWatch::start(&guest).await?;
        let old = watch.size;
        let agents = ["-n", "tandem-system", "daemonset/tandem-node-agent"];
        self.cluster
            .kubectl(&[&["rollout", "restart"], &agents[..]].concat())
            .await?;
        self.edit(2, START_MIB + MORE_MIB).await?;
        watch
            .until("grown", |size| size.is(2, old, MORE_MIB.cast_signed()))
            .await?;
        self.until_resized(2, START_MIB + MORE_MIB).await?;
        self.cluster
            .kubectl(&[&["rollout", "status", "--timeout=300s"], &agents[..]].concat())
            .await?;
        // The agent that is left knows what its predecessor has asked for.
        self.back(&mut watch, old).await?;
        ensure!(
            self.works(&guest).await? == before,
            "the guest or its pod was restarted"
        );
        Ok(())
    }

    /// A reset begins with what the VM started with, and the guest plugs the rest again.
    async fn reboots(&self) -> Result<()> {
        let guest = self.guest().await?;
        let boot = self.works(&guest).await?.0;
        let old = SizeWatch::start(&guest).await?.size;
        self.edit(2, START_MIB + MORE_MIB).await?;
        let vm = self.until_resized(2, START_MIB + MORE_MIB).await?;
        let resets = vm["status"]["guest"]["resets"].as_i64().unwrap_or_default();
        // The session ends with the guest, so the command's own status means nothing.
        let _ = guest.run("sudo systemctl reboot").await;
        self.until("reset", |vm| {
            vm["status"]["guest"]["resets"].as_i64().is_some_and(|now| now > resets)
        })
        .await?;
        let guest = self.guest().await?;
        ensure!(
            guest.run("cat /proc/sys/kernel/random/boot_id").await? != boot,
            "the guest was not restarted"
        );
        let mut watch = SizeWatch::start(&guest).await?;
        watch
            .until("its size again", |size| size.is(2, old, MORE_MIB.cast_signed()))
            .await?;
        self.until_resized(2, START_MIB + MORE_MIB).await?;
        self.cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, VM]).await?;
        self.cluster.until_gone(&self.cluster.pods(NAMESPACE), VM).await
    }
}

/// The initrd's shell alone has loaded no module; CPUs need none.
async fn no_driver(cluster: &Cluster) -> Result<()> {
    const NAME: &str = "no-driver";
    let mut vm = small_vm(NAMESPACE, NAME);
    vm["spec"]["cpu"]["maxCores"] = json!(2);
    vm["spec"]["memory"]["maxSize"] = json!("512Mi");
    cluster.apply(&vm).await?;
    let vms = cluster.vms(NAMESPACE);
    cluster
        .until(&vms, NAME, "running", |vm| vm["status"]["guest"]["vcpus"] == 1)
        .await?;
    edit(cluster, NAMESPACE, NAME, 2, 512).await?;
    let named = |vm: &Value| {
        is_resizing(vm, "ResizingGuest")
            && condition(vm, "Resizing").is_some_and(|found| found.2.contains("virtio-mem"))
            && vm["status"]["guest"]["vcpus"] == 2
    };
    let vm = cluster
        .until(&vms, NAME, "waiting for the guest's driver", named)
        .await?;
    ensure!(
        vm["status"]["acknowledgedTarget"]["sequence"] == vm["status"]["target"]["sequence"],
        "the VMM was not told: {}",
        vm["status"]
    );
    edit(cluster, NAMESPACE, NAME, 1, 256).await?;
    cluster
        .until(&vms, NAME, "as it was", |vm| is_resized(vm, 1, 256))
        .await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, NAME]).await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), NAME).await
}
