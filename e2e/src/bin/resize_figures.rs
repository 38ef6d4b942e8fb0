//! Prints how long it takes a running Debian VM to get another size, beyond what the kubelet takes for its pod, and what that costs in writes to
//! the API:
//!
//! ```text
//! TANDEM_CLUSTER=tandem KUBECONFIG=... cargo run -p e2e --bin resize-figures [ROUNDS [FROM_MIB TO_MIB [IDLE_MINUTES]]]
//! ```
//!
//! ```text
//! edit ──operator──► the pod's spec ──kubelet──► the pod's status ──operator, agent, VMM──► the guest sees it      growing
//!   └──────────────────operator, agent, VMM──────────────────► the guest sees it ──► the pod                      shrinking
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use crds::Quantity;
use e2e::cluster::{Cluster, has_condition, value};
use e2e::guest::{Guest, SshKey};
use e2e::resize::{GuestSize, SizeWatch, bytes, edit, growing_vm, is_resized, node_memory_mib};
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::mpsc;

const NAMESPACE: &str = "resize-figures";
const VM: &str = "resized";
const CORES: u32 = 4;

/// What is asked for on the command line.
struct Options {
    rounds: usize,
    from_mib: u64,
    to_mib: u64,
    idle: Duration,
}

/// One resize.
struct Times {
    /// From the edit until the guest has it.
    guest: Duration,
    /// What the kubelet took of that: from the pod's new spec to its status.
    kubelet: Duration,
    /// From the edit until the status says that nothing is left to do.
    settled: Duration,
    /// Writes of Tandem's.
    writes: usize,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut arguments = std::env::args().skip(1);
        let mut number = |what: &'static str, default: u64| {
            let argument = arguments.next();
            argument.map_or(Ok(default), |text| {
                text.parse().with_context(|| format!("{what} is a number, not {text}"))
            })
        };
        Ok(Self {
            rounds: usize::try_from(number("ROUNDS", 3)?)?,
            from_mib: number("FROM_MIB", 1024)?,
            to_mib: number("TO_MIB", 4096)?,
            idle: Duration::from_secs(60 * number("IDLE_MINUTES", 5)?),
        })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse()?;
    let cluster = Cluster::from_environment().await?;
    let (_, free) = node_memory_mib(&cluster).await?;
    ensure!(
        free > options.to_mib + options.to_mib / 32,
        "the node has {free} MiB left for pods, too few for {} MiB: say less, or make the cluster with TANDEM_KVM_NODE_MEMORY=6G",
        options.to_mib
    );
    let directory = std::env::temp_dir().join(format!("tandem-resize-figures-{}", std::process::id()));
    tokio::fs::create_dir_all(&directory).await?;
    let key = SshKey::generate(&directory).await?;
    cluster.restricted_namespace(NAMESPACE).await?;
    let outcome = measure(&cluster, &options, &key).await;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    tokio::fs::remove_dir_all(&directory).await?;
    outcome
}

async fn measure(cluster: &Cluster, options: &Options, key: &SshKey) -> Result<()> {
    let Options { from_mib, to_mib, .. } = *options;
    cluster
        .apply(&growing_vm(NAMESPACE, VM, key, from_mib, (CORES, to_mib)))
        .await?;
    let ready = |vm: &Value| has_condition(vm, "Ready", "True");
    cluster.until(&cluster.vms(NAMESPACE), VM, "ready", ready).await?;
    println!("API writes of Tandem from apply to Ready: {}", writes(cluster).await?);
    let guest = Guest::connect(NAMESPACE, VM, key).await?;
    guest.run("sudo cloud-init status --wait >/dev/null").await?;
    let mut sizes = SizeWatch::start(&guest).await?;
    let start = sizes.size;
    let more = i64::try_from(to_mib - from_mib)?;
    let mut pods = pod_events(cluster);
    let (mut grown, mut shrunk) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let large = |size: GuestSize| size.is(CORES, start, more);
        grown.push(resize(cluster, &mut sizes, &mut pods, (CORES, to_mib), large).await?);
        let small = |size: GuestSize| size.is(1, start, 0);
        shrunk.push(resize(cluster, &mut sizes, &mut pods, (1, from_mib), small).await?);
    }
    print(options, &grown, &shrunk);
    let before = writes(cluster).await?;
    // Nothing is awaited: that nothing happens is what is measured.
    tokio::time::sleep(options.idle).await;
    let idle = writes(cluster).await? - before;
    println!(
        "\nAPI writes in {} minutes in which nothing changes: {idle}",
        options.idle.as_secs() / 60
    );
    Ok(())
}

/// The writes of Tandem's own parts so far.
async fn writes(cluster: &Cluster) -> Result<usize> {
    let writes = e2e::audit::writes_of(&cluster.name, NAMESPACE, VM).await?;
    Ok(writes.iter().filter(|write| write.is_tandems()).count())
}

/// The VM's pod, each time that it changes.
fn pod_events(cluster: &Cluster) -> mpsc::UnboundedReceiver<(Instant, Value)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let only = watcher::Config::default().fields(&format!("metadata.name={VM}"));
    let pods = cluster.pods(NAMESPACE);
    tokio::spawn(async move {
        let mut events = std::pin::pin!(watcher(pods, only).default_backoff().applied_objects());
        while let Some(event) = events.next().await {
            if let Ok(pod) = event
                && sender.send((Instant::now(), value(&pod))).is_err()
            {
                return;
            }
        }
    });
    receiver
}

async fn resize(
    cluster: &Cluster,
    sizes: &mut SizeWatch,
    pods: &mut mpsc::UnboundedReceiver<(Instant, Value)>,
    (cores, mib): (u32, u64),
    has_it: impl Fn(GuestSize) -> bool,
) -> Result<Times> {
    while pods.try_recv().is_ok() {}
    let pod = value(&cluster.pods(NAMESPACE).get(VM).await?);
    let old = resources(&pod["spec"]["containers"][0])?;
    let before = writes(cluster).await?;
    let edited = Instant::now();
    edit(cluster, NAMESPACE, VM, cores, mib).await?;
    let seen = sizes.until("the new size", has_it).await?;
    let resized = |vm: &Value| is_resized(vm, cores, mib);
    cluster.until(&cluster.vms(NAMESPACE), VM, "resized", resized).await?;
    let settled = edited.elapsed();
    let (mut asked, mut given) = (None, None);
    while given.is_none() {
        let (at, pod) = pods.recv().await.context("the watch of the pod ended")?;
        let spec = resources(&pod["spec"]["containers"][0])?;
        if spec != old {
            asked.get_or_insert(at);
            given = (resources(&pod["status"]["containerStatuses"][0])? == spec).then_some(at);
        }
    }
    let (asked, given) = asked.zip(given).context("the pod was not resized")?;
    Ok(Times {
        guest: seen - edited,
        kubelet: given - asked,
        settled,
        writes: writes(cluster).await? - before,
    })
}

/// What is resized of a container: its CPU request in thousandths, and its memory limit in bytes.
fn resources(container: &Value) -> Result<(u64, u64)> {
    let resources = &container["resources"];
    let cpu = resources["requests"]["cpu"].as_str().context("no CPU request")?;
    let cpu = Quantity(cpu.to_owned()).millis();
    let cpu = cpu.map_err(|error| anyhow!("the CPU request is no quantity: {error:?}"))?;
    let memory = resources["limits"]["memory"].as_str().context("no memory limit")?;
    Ok((cpu, bytes(memory)?))
}

/// One of the numbers.
type Figure = fn(&Times) -> f64;

fn print(options: &Options, grown: &[Times], shrunk: &[Times]) {
    let Options {
        rounds,
        from_mib,
        to_mib,
        ..
    } = options;
    println!(
        "\nseconds from the edit, median (least to most) of {rounds} rounds:\n\
         | | {from_mib} to {to_mib} MiB, 1 to {CORES} CPUs | and back |\n|---|---|---|"
    );
    // The kubelet has a part only in the way up: on the way down the guest is first.
    let beyond: Figure = |times| times.guest.saturating_sub(times.kubelet).as_secs_f64();
    let rows: [(&str, Figure, Figure); 5] = [
        (
            "the guest sees it",
            |times| times.guest.as_secs_f64(),
            |times| times.guest.as_secs_f64(),
        ),
        (
            "the kubelet's time for the pod",
            |times| times.kubelet.as_secs_f64(),
            |times| times.kubelet.as_secs_f64(),
        ),
        (
            "the guest sees it, beyond what of that it waits for (bar: 1.0)",
            beyond,
            |times| times.guest.as_secs_f64(),
        ),
        (
            "the status says that all is done",
            |times| times.settled.as_secs_f64(),
            |times| times.settled.as_secs_f64(),
        ),
        ("API writes of Tandem", count, count),
    ];
    for (name, up, down) in rows {
        println!("| {name} | {} | {} |", spread(grown, up), spread(shrunk, down));
    }
}

#[allow(clippy::cast_precision_loss)] // a handful
fn count(times: &Times) -> f64 {
    times.writes as f64
}

fn spread(times: &[Times], figure: Figure) -> String {
    let mut values: Vec<f64> = times.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) => format!("{median:.2} ({least:.2} to {most:.2})"),
        _ => "-".to_owned(),
    }
}
