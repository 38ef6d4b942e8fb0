//! The end-to-end tests, in an order in which they share one cluster: `hack/test` runs them, or by hand
//! `TANDEM_CLUSTER=tandem KUBECONFIG=... cargo test -p e2e [NAME]`.

mod bad_manifests;
mod bad_workloads;
mod debian;
mod lifecycle;
mod operator_crash;
mod scheduling;

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

async fn run() -> Result<bool> {
    // cargo hands on what follows `--`; flags are libtest's and mean nothing here.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let cluster = Cluster::from_environment().await?;
    let mut runner = Runner::new(filter);
    bad_manifests::run(&cluster, &mut runner).await?;
    scheduling::run(&cluster, &mut runner).await?;
    bad_workloads::run(&cluster, &mut runner).await?;
    lifecycle::run(&cluster, &mut runner).await?;
    operator_crash::run(&cluster, &mut runner).await?;
    debian::run(&cluster, &mut runner).await?;
    Ok(runner.finish())
}
