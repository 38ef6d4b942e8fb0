//! `tandem-operator`: turns each VirtualMachine into one shim pod, and says in its status what became of it.
#![forbid(unsafe_code)]

mod arguments;
mod context;
mod controller;
mod digest;
mod http;
mod leader;
mod metrics;
mod virtual_machine;
mod virtual_machine_set;

use std::sync::{Arc, atomic::AtomicBool};

use anyhow::Context as _;
use clap::Parser;
use kube::Client;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

use crate::{
    arguments::{Arguments, LogFormat},
    http::Health,
    metrics::Metrics,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    init_log(&arguments)?;
    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end");
        stop.send_replace(true);
    });
    run(&arguments, stopped).await
}

/// Serves health, waits for the lease, and controls VMs until it is told to stop or loses the lease.
async fn run(arguments: &Arguments, stopped: watch::Receiver<bool>) -> anyhow::Result<()> {
    let client = Client::try_default()
        .await
        .context("failed to find a cluster: set KUBECONFIG, or run in a pod with a service account")?;
    let health = Health {
        metrics: Metrics::new(),
        ready: Arc::new(AtomicBool::new(false)),
        vms: Arc::default(),
    };
    let server = tokio::spawn(http::serve(
        arguments.http_address,
        health.clone(),
        ended(stopped.clone()),
    ));
    let lease = if arguments.leader_election {
        // A replica that waits for its turn is as ready as it can be.
        health.ready.store(true, std::sync::atomic::Ordering::Release);
        tracing::info!(
            namespace = arguments.lease_namespace,
            name = arguments.lease_name,
            "waiting for the lease"
        );
        let acquired = leader::acquire(
            client.clone(),
            &arguments.lease_namespace,
            &arguments.lease_name,
            arguments.identity.as_deref(),
        );
        tokio::select! {
            lease = acquired => Some(lease?),
            () = ended(stopped.clone()) => return Ok(()),
        }
    } else {
        None
    };
    health.metrics.set_leader(true);
    let control = controller::run(client, arguments, &health, stopped.clone());
    let result = match &lease {
        Some(lease) => tokio::select! {
            result = control => result,
            () = lease.lost() => Err(anyhow::anyhow!("lost the lease {}/{}: another operator leads now", arguments.lease_namespace, arguments.lease_name)),
        },
        None => control.await,
    };
    health.metrics.set_leader(false);
    if let Some(lease) = lease.filter(|_| result.is_ok()) {
        lease.release().await;
    }
    if result.is_ok() {
        server
            .await
            .context("the health server panicked")?
            .context("failed to serve health and metrics")?;
    }
    result
}

/// Ends when the operator is told to stop.
async fn ended(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender has gone, which only happens at the end as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn init_log(arguments: &Arguments) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(&arguments.log).with_context(|| format!("--log {:?} is not a filter", arguments.log))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
