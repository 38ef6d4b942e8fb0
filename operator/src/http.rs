//! `/healthz`, `/readyz` and `/metrics`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use kube::runtime::reflector::Store;
use tokio::net::TcpListener;

use crate::{metrics::Metrics, virtual_machine::Guarded};

/// What the endpoints tell.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) metrics: Metrics,
    /// Set while this replica can do its work: it leads and has seen every object, or it waits for its turn.
    pub(crate) ready: Arc<AtomicBool>,
    /// The VMs, once there is a watch.
    pub(crate) vms: Arc<std::sync::OnceLock<Store<Guarded>>>,
}

/// Serves the endpoints until `stop` ends.
pub(crate) async fn serve(
    address: SocketAddr,
    health: Health,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health);
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving health and metrics");
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let mut counts = BTreeMap::new();
    for vm in health.vms.get().map(Store::state).unwrap_or_default() {
        let word = match &vm.0 {
            Ok(vm) => vm
                .status
                .as_ref()
                .and_then(|status| status.status.clone())
                .unwrap_or_else(|| "New".to_owned()),
            Err(_) => "Invalid".to_owned(),
        };
        *counts.entry(word).or_insert(0) += 1;
    }
    health.metrics.set_virtual_machines(&counts);
    match health.metrics.text() {
        Ok(text) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, content_type)], text)
        }
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            error.to_string(),
        ),
    }
}
