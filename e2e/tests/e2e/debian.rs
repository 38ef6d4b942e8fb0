//! One whole Debian guest, used as people use a VM.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, has_condition};
use e2e::console::Terminal;
use e2e::guest::{Guest, PortForward, SshKey};
use e2e::manifest::{debian_vm, native_node, pod, service};
use e2e::runner::Runner;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const NAMESPACE: &str = "e2e-debian";
const VM: &str = "debian";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("tandem-e2e-guest-{}", std::process::id()));
    tokio::fs::create_dir_all(&directory).await?;
    let key = SshKey::generate(&directory).await?;
    cluster.restricted_namespace(NAMESPACE).await?;
    runner
        .case(
            "a Debian VM becomes ready when its web server answers",
            becomes_ready(cluster, &key),
        )
        .await;
    runner.case("kubectl logs shows the kernel's boot", logs(cluster)).await;
    runner
        .case("the status says which kernel of the disk was started", kernel(cluster))
        .await;
    runner
        .case("the VM can be asked, paused and resumed in its pod", control(cluster))
        .await;
    runner
        .case(
            "a pod on the other node gets the VM's page through its Service",
            service_by_name(cluster),
        )
        .await;
    runner
        .case("kubectl port-forward reaches the guest", port_forward())
        .await;
    runner
        .case("cloud-init made the user, the file and the host name", cloud_init(&key))
        .await;
    runner
        .case(
            "the VM reaches a pod and the API server's Service",
            egress(cluster, &key),
        )
        .await;
    runner.case("kubectl attach -it is the console", attach()).await;
    runner
        .case(
            "an agent that restarts is not noticed by the guest",
            agent_restarts(cluster, &key),
        )
        .await;
    runner
        .case("a VMM killed with -9 comes back with its web page", vmm_killed(cluster))
        .await;
    runner
        .case(
            "kubectl delete vm powers the guest off cleanly",
            clean_power_off(cluster),
        )
        .await;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    tokio::fs::remove_dir_all(&directory).await?;
    Ok(())
}

fn user_data(key: &SshKey) -> String {
    format!(
        "#cloud-config\nhostname: tandem-guest\nusers:\n- name: tandem\n  shell: /bin/bash\n  sudo: ALL=(ALL) NOPASSWD:ALL\n  \
         ssh_authorized_keys: [\"{}\"]\nwrite_files:\n- path: /etc/tandem-test\n  content: written by cloud-init\n",
        key.public
    )
}

async fn becomes_ready(cluster: &Cluster, key: &SshKey) -> Result<()> {
    cluster.apply(&service(NAMESPACE, VM, 80, 80)).await?;
    cluster.apply(&service(NAMESPACE, "web", 80, 8080)).await?;
    cluster
        .apply(&pod(NAMESPACE, "client", &native_node(), &["sleep", "infinity"]))
        .await?;
    let serve =
        "mkdir /tmp/www && echo served by a pod > /tmp/www/index.html && exec busybox httpd -f -p 8080 -h /tmp/www";
    cluster
        .apply(&pod(NAMESPACE, "web", &native_node(), &["sh", "-c", serve]))
        .await?;
    cluster.apply(&debian_vm(NAMESPACE, VM, &user_data(key))).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await?;
    Ok(())
}

async fn logs(cluster: &Cluster) -> Result<()> {
    let log = cluster.kubectl(&["logs", "-n", NAMESPACE, VM]).await?;
    for line in ["Linux version", "Debian", "root=/dev/vda rw console=ttyS0"] {
        ensure!(
            log.contains(line),
            "the log does not show {line:?}:\n{}",
            log.chars().take(2000).collect::<String>()
        );
    }
    Ok(())
}

async fn kernel(cluster: &Cluster) -> Result<()> {
    let table = cluster
        .kubectl(&["get", "vm", "-n", NAMESPACE, VM, "-o", "wide"])
        .await?;
    ensure!(
        table.contains("KERNEL") && table.contains("from /boot/grub/grub.cfg on the whole disk"),
        "{table}"
    );
    Ok(())
}

async fn control(cluster: &Cluster) -> Result<()> {
    for (verb, expected) in [
        ("status", "\"state\":\"Running\""),
        ("pause", "done"),
        ("status", "\"state\":\"Paused\""),
        ("resume", "done"),
        ("status", "\"disks\":[\"root\"],\"interfaces\":[\"default\"]"),
    ] {
        let answer = cluster
            .kubectl(&["exec", "-n", NAMESPACE, VM, "--", "/node-shim", "control", verb])
            .await?;
        ensure!(answer.contains(expected), "{verb}: {answer}");
    }
    Ok(())
}

async fn service_by_name(cluster: &Cluster) -> Result<()> {
    let url = format!("http://{VM}.{NAMESPACE}.svc.cluster.local/");
    let page = cluster
        .kubectl(&[
            "exec",
            "-n",
            NAMESPACE,
            "client",
            "--",
            "curl",
            "-sSf",
            "--max-time",
            "60",
            &url,
        ])
        .await?;
    ensure!(page.contains("Tandem"), "the page is {page}");
    Ok(())
}

async fn port_forward() -> Result<()> {
    let forward = PortForward::start(NAMESPACE, VM, 80).await?;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", forward.port)).await?;
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut status = String::new();
    tokio::time::timeout(e2e::cluster::PATIENCE, stream.read_line(&mut status)).await??;
    ensure!(status.contains("200"), "the guest's web server answered {status:?}");
    Ok(())
}

async fn cloud_init(key: &SshKey) -> Result<()> {
    let guest = Guest::connect(NAMESPACE, VM, key).await?;
    let found = guest
        .run("sudo cloud-init status --wait >/dev/null; id -un; hostname; cat /etc/tandem-test")
        .await?;
    ensure!(
        found == "tandem\ntandem-guest\nwritten by cloud-init",
        "the guest says {found:?}"
    );
    Ok(())
}

async fn egress(cluster: &Cluster, key: &SshKey) -> Result<()> {
    let guest = Guest::connect(NAMESPACE, VM, key).await?;
    // By the short name: the guest has the pod's search domains.
    let page = guest.run("curl -sSf --max-time 60 http://web/").await?;
    ensure!(page == "served by a pod", "the pod's page is {page:?}");
    let version = guest
        .run("curl -sSk --max-time 60 https://kubernetes.default.svc.cluster.local/version")
        .await?;
    ensure!(
        version.contains("gitVersion") || version.contains("Unauthorized") || version.contains("Forbidden"),
        "the API server said {version}"
    );
    let ip = cluster.pods(NAMESPACE).get("web").await?.data["status"]["podIP"]
        .as_str()
        .context("the pod has no address")?
        .to_owned();
    guest.run(&format!("ping -c 3 -W 30 {ip}")).await?;
    Ok(())
}

async fn attach() -> Result<()> {
    let mut terminal = Terminal::start(&format!("kubectl attach -it -n {NAMESPACE} {VM}"))?;
    terminal.send("\r").await?;
    terminal.expect("login:").await?;
    Ok(())
}

/// A session that was open before the agent's restart goes on after it, and the new agent reports this guest's state again.
async fn agent_restarts(cluster: &Cluster, key: &SshKey) -> Result<()> {
    let guest = Guest::connect(NAMESPACE, VM, key).await?;
    let boot_id = guest.run("cat /proc/sys/kernel/random/boot_id").await?;
    let mut session = guest.ssh("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = session.stdin.take().context("no standard input")?;
    let mut output = BufReader::new(session.stdout.take().context("no standard output")?).lines();
    input.write_all(b"before\n").await?;
    ensure!(
        output.next_line().await?.as_deref() == Some("before"),
        "the session does not echo"
    );
    cluster
        .kubectl(&[
            "rollout",
            "restart",
            "-n",
            "tandem-system",
            "daemonset/tandem-node-agent",
        ])
        .await?;
    cluster
        .kubectl(&[
            "rollout",
            "status",
            "-n",
            "tandem-system",
            "daemonset/tandem-node-agent",
            "--timeout=300s",
        ])
        .await?;
    input.write_all(b"after\n").await?;
    ensure!(
        output.next_line().await?.as_deref() == Some("after"),
        "the session did not survive"
    );
    session.kill().await?;
    ensure!(
        guest.run("cat /proc/sys/kernel/random/boot_id").await? == boot_id,
        "the guest was restarted"
    );
    // A reset of the guest is the one change of state that can be had from inside without ending it.
    let resets = cluster.vms(NAMESPACE).get(VM).await?.data["status"]["guest"]["resets"]
        .as_i64()
        .unwrap_or_default();
    // The session ends with the guest, so the command's own status means nothing.
    let _ = guest.run("sudo systemctl reboot").await;
    let reset = |vm: &Value| vm["status"]["guest"]["resets"].as_i64().is_some_and(|now| now > resets);
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "reported as reset by the new agent", reset)
        .await?;
    Ok(())
}

/// In the middle of the boot that the last case began, which spares one.
async fn vmm_killed(cluster: &Cluster) -> Result<()> {
    let node = cluster.kvm_node().await?;
    let old = cluster
        .pods(NAMESPACE)
        .get(VM)
        .await?
        .metadata
        .uid
        .context("the pod has no UID")?;
    for pid in cluster.vmm_pids(&node).await? {
        cluster.node_exec(&node, &["kill", "-9", &pid.to_string()]).await?;
    }
    let another = |pod: &Value| pod["metadata"]["uid"] != old.as_str() && pod["status"]["phase"] == "Running";
    cluster
        .until(&cluster.pods(NAMESPACE), VM, "running in another pod", another)
        .await?;
    cluster
        .until(&cluster.vms(NAMESPACE), VM, "ready again", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await?;
    ensure!(cluster.vmm_pids(&node).await?.len() == 1, "not exactly one VMM runs");
    service_by_name(cluster).await
}

async fn clean_power_off(cluster: &Cluster) -> Result<()> {
    let node = cluster.kvm_node().await?;
    let follow = tokio::process::Command::new("kubectl")
        .args(["logs", "-f", "-n", NAMESPACE, VM, "--tail=5"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, VM]).await?;
    let log = tokio::time::timeout(e2e::cluster::PATIENCE, follow.wait_with_output())
        .await
        .context("the log does not end")??;
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    ensure!(
        log.contains("reboot: Power down"),
        "the guest's log does not show a clean power-off:\n{log}"
    );
    cluster.until_gone(&cluster.pods(NAMESPACE), VM).await?;
    ensure!(cluster.vmm_pids(&node).await?.is_empty(), "the node still runs a VMM");
    let mounts = cluster
        .node_exec(
            &node,
            &[
                "sh",
                "-c",
                "grep -c volumes/kubernetes.io~empty-dir/scratch /proc/mounts || [ $? = 1 ]",
            ],
        )
        .await?;
    ensure!(
        mounts.trim() == "0",
        "the node still has {} scratch mounts",
        mounts.trim()
    );
    Ok(())
}
