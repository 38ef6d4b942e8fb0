//! Leader election by a Lease.
//!
//! The lease spares work and noise; nothing relies on it for correctness. Pod names are deterministic, pods are created and never
//! applied, and deletions name the UID: two operators at once do no harm.

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use thiserror::Error;
use tokio::{sync::watch, task::JoinHandle};

/// Seconds after which a lease that is not renewed is free.
const DURATION_SECONDS: u64 = 15;
/// Seconds before the end of the lease at which it is renewed.
const GRACE_SECONDS: u64 = 5;

/// Why there is no lease.
#[derive(Debug, Error)]
pub(crate) enum LeaseError {
    #[error("failed to set up the lease {namespace}/{name}")]
    Setup {
        namespace: String,
        name: String,
        source: LeaseManagerError,
    },
    #[error("the lease cannot be watched any more")]
    Watch,
}

/// A lease that this replica holds.
pub(crate) struct Lease {
    state: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

/// Waits until this replica holds the lease.
pub(crate) async fn acquire(
    client: Client,
    namespace: &str,
    name: &str,
    identity: Option<&str>,
) -> Result<Lease, LeaseError> {
    let mut builder = LeaseManagerBuilder::new(client, name)
        .with_namespace(namespace)
        .with_duration(DURATION_SECONDS)
        .with_grace(GRACE_SECONDS);
    if let Some(identity) = identity {
        // The pod's name alone would let a restarted container take its predecessor for itself, which is right: it has gone.
        builder = builder.with_identity(identity);
    }
    let setup = |source| LeaseError::Setup {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        source,
    };
    let manager = builder.build().await.map_err(setup)?;
    let (mut state, task) = manager.watch().await;
    state.wait_for(|leads| *leads).await.map_err(|_| LeaseError::Watch)?;
    Ok(Lease { state, task })
}

impl Lease {
    /// Ends when the lease is lost.
    pub(crate) async fn lost(&self) {
        let mut state = self.state.clone();
        // An error means that nobody renews the lease any more, which is the same.
        let _ = state.wait_for(|leads| !*leads).await;
    }

    /// Gives the lease back, so that the next replica need not wait for its end.
    pub(crate) async fn release(self) {
        drop(self.state);
        match self.task.await {
            Ok(Ok(_)) => tracing::info!("gave the lease back"),
            Ok(Err(error)) => tracing::warn!(%error, "failed to give the lease back"),
            Err(error) => tracing::warn!(%error, "failed to give the lease back"),
        }
    }
}
