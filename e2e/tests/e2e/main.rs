//! The end-to-end tests, in an order in which they share one cluster: `hack/test` runs them, or by hand
//! `TANDEM_CLUSTER=tandem KUBECONFIG=... cargo test -p e2e --test e2e [MODULE | PART OF A CASE'S NAME]`.

mod bad_manifests;
mod bad_workloads;
mod contract;
mod debian;
mod disks;
mod eviction;
mod guest_agent;
mod hotplug;
mod lifecycle;
mod networks;
mod operator_crash;
mod policies;
mod resize;
mod scheduling;
mod sets;

// Tables that `crds` and the operator are held against as well.
#[path = "../../../crds/tests/manifests/edits.rs"]
mod edits;
#[path = "../../../crds/tests/manifests/place.rs"]
mod place;
#[path = "../../../crds/tests/manifests/refused.rs"]
mod refused;

use anyhow::Result;
use e2e::cluster::Cluster;
use e2e::runner::Runner;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    if std::env::var_os("TANDEM_CLUSTER").is_none() {
        println!("end-to-end tests skipped: no cluster (hack/test makes one, or set TANDEM_CLUSTER and KUBECONFIG)");
        return std::process::ExitCode::SUCCESS;
    }
    match run().await {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:?}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Names of the modules; as an argument, one runs that module's cases alone.
const GROUPS: [&str; 15] = [
    "bad_manifests",
    "scheduling",
    "lifecycle",
    "contract",
    "eviction",
    "sets",
    "policies",
    "bad_workloads",
    "operator_crash",
    "debian",
    "disks",
    "networks",
    "hotplug",
    "guest_agent",
    "resize",
];

async fn run() -> Result<bool> {
    // cargo hands on what follows `--`; flags are libtest's and mean nothing here.
    let argument = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let (group, filter) = match argument {
        Some(name) if GROUPS.contains(&name.as_str()) => (Some(name), None),
        filter => (None, filter),
    };
    let cluster = Cluster::from_environment().await?;
    let mut runner = Runner::new(filter);
    for name in GROUPS
        .into_iter()
        .filter(|name| group.as_deref().is_none_or(|group| group == *name))
    {
        match name {
            "bad_manifests" => bad_manifests::run(&cluster, &mut runner).await?,
            "scheduling" => scheduling::run(&cluster, &mut runner).await?,
            "lifecycle" => lifecycle::run(&cluster, &mut runner).await?,
            "contract" => contract::run(&cluster, &mut runner).await?,
            "eviction" => eviction::run(&cluster, &mut runner).await?,
            "sets" => sets::run(&cluster, &mut runner).await?,
            "policies" => policies::run(&cluster, &mut runner).await?,
            "bad_workloads" => bad_workloads::run(&cluster, &mut runner).await?,
            "operator_crash" => operator_crash::run(&cluster, &mut runner).await?,
            "disks" => disks::run(&cluster, &mut runner).await?,
            "networks" => networks::run(&cluster, &mut runner).await?,
            "hotplug" => hotplug::run(&cluster, &mut runner).await?,
            "debian" => debian::run(&cluster, &mut runner).await?,
            "guest_agent" => guest_agent::run(&cluster, &mut runner).await?,
            _ => resize::run(&cluster, &mut runner).await?,
        }
    }
    Ok(runner.finish())
}
