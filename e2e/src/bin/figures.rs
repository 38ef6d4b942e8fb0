//! Prints the figures of one VM beside one container pod on the same node, in one run:
//!
//! ```text
//! TANDEM_CLUSTER=tandem KUBECONFIG=... cargo run -p e2e --bin figures [ROUNDS]
//! ```

use std::time::Instant;

use anyhow::{Context, Result};
use e2e::cluster::{Cluster, has_condition};
use e2e::manifest::{debian_vm, kvm_node, pod};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

const NAMESPACE: &str = "figures";
const USER_DATA: &str = "#cloud-config\n{}\n";

/// Seconds from `kubectl apply` to each point.
#[derive(Default)]
struct Times {
    running: f64,
    first_line: f64,
    ready: f64,
}

/// One of the points.
type Point = fn(&Times) -> f64;

#[tokio::main]
async fn main() -> Result<()> {
    let rounds: usize = std::env::args()
        .nth(1)
        .map_or(Ok(3), |rounds| rounds.parse())
        .context("ROUNDS is a number")?;
    let cluster = Cluster::from_environment().await?;
    cluster.restricted_namespace(NAMESPACE).await?;
    let (mut vms, mut pods) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        pods.push(measure(&cluster, &container(&format!("pod-{round}")), "Pod").await?);
        let vm = debian_vm(NAMESPACE, &format!("vm-{round}"), USER_DATA);
        vms.push(measure(&cluster, &vm, "VirtualMachine").await?);
    }
    println!("seconds from kubectl apply, median (least to most) of {rounds} rounds, same node, alternating:");
    println!("| | container pod | VM (Debian) |\n|---|---|---|");
    let points: [(&str, Point); 3] = [
        ("pod Running", |times| times.running),
        ("first line of its log (the kernel's first, for the VM)", |times| {
            times.first_line
        }),
        ("Ready (the VM: its web server answers)", |times| times.ready),
    ];
    for (name, point) in points {
        println!("| {name} | {} | {} |", spread(&pods, point), spread(&vms, point));
    }
    one_vm(&cluster).await?;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

fn container(name: &str) -> Value {
    let serve =
        "echo started; mkdir -p /tmp/www; echo hello > /tmp/www/index.html; exec busybox httpd -f -p 8080 -h /tmp/www";
    let mut pod = pod(NAMESPACE, name, &kvm_node(), &["sh", "-c", serve]);
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 2});
    pod
}

async fn measure(cluster: &Cluster, manifest: &Value, kind: &str) -> Result<Times> {
    let name = manifest["metadata"]["name"]
        .as_str()
        .context("the manifest has no name")?;
    let began = Instant::now();
    cluster.apply(manifest).await?;
    let mut times = Times::default();
    let pods = cluster.pods(NAMESPACE);
    cluster
        .until(&pods, name, "running", |pod| pod["status"]["phase"] == "Running")
        .await?;
    times.running = began.elapsed().as_secs_f64();
    first_line(name).await?;
    times.first_line = began.elapsed().as_secs_f64();
    let is_ready = |object: &Value| has_condition(object, "Ready", "True");
    if kind == "Pod" {
        cluster.until(&pods, name, "ready", is_ready).await?;
    } else {
        cluster.until(&cluster.vms(NAMESPACE), name, "ready", is_ready).await?;
    }
    times.ready = began.elapsed().as_secs_f64();
    cluster
        .kubectl(&["delete", &kind.to_lowercase(), "-n", NAMESPACE, name])
        .await?;
    cluster.until_gone(&pods, name).await?;
    Ok(times)
}

/// Waits for the first line of a pod's log; for a VM that is the kernel's.
async fn first_line(name: &str) -> Result<()> {
    let mut follow = tokio::process::Command::new("kubectl")
        .args(["logs", "-f", "-n", NAMESPACE, name])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = follow.stdout.take().context("no standard output")?;
    let mut lines = BufReader::new(stdout).split(b'\n');
    while let Some(line) = lines.next_segment().await? {
        if !line.is_empty() && !line.starts_with(b"node-shim:") {
            break;
        }
    }
    Ok(())
}

/// What one VM costs: memory of its VMM beyond the guest's, and writes to the API.
async fn one_vm(cluster: &Cluster) -> Result<()> {
    let name = "one";
    cluster.apply(&debian_vm(NAMESPACE, name, USER_DATA)).await?;
    cluster
        .until(&cluster.vms(NAMESPACE), name, "ready", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await?;
    let writes = e2e::audit::writes_of(&cluster.name, NAMESPACE, name).await?;
    let by_us: Vec<String> = writes
        .iter()
        .filter(|write| write.is_tandems())
        .map(|write| {
            format!(
                "{} {} by {}",
                write.verb,
                write.resource,
                write.user.rsplit(':').next().unwrap_or_default()
            )
        })
        .collect();
    println!("\nAPI writes of Tandem from apply to Ready: {}", by_us.len());
    for write in by_us {
        println!("  {write}");
    }
    let node = cluster.kvm_node().await?;
    let pid = *cluster.vmm_pids(&node).await?.first().context("no VMM runs")?;
    let smaps = cluster
        .node_exec(&node, &["cat", &format!("/proc/{pid}/smaps")])
        .await?;
    let (guest, rest) = resident_kib(&smaps);
    println!(
        "\nresident memory of node-shim: {:.1} MiB beyond {:.0} MiB of the guest's RAM that is touched",
        rest / 1024.0,
        guest / 1024.0
    );
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, name]).await?;
    Ok(())
}

/// Resident KiB of guest RAM (the mappings of 64 MiB and more: nothing else of the VMM is that large) and of everything else.
fn resident_kib(smaps: &str) -> (f64, f64) {
    let (mut guest, mut rest, mut size) = (0.0, 0.0, 0.0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (key, value) = (words.next(), words.next().and_then(|value| value.parse::<f64>().ok()));
        match (key, value) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Rss:"), Some(kib)) if size >= 65536.0 => guest += kib,
            (Some("Rss:"), Some(kib)) => rest += kib,
            _ => {}
        }
    }
    (guest, rest)
}

fn spread(times: &[Times], point: Point) -> String {
    let mut values: Vec<f64> = times.iter().map(point).collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) => format!("{median:.1} ({least:.1} to {most:.1})"),
        _ => "-".to_owned(),
    }
}
