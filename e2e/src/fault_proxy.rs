//! A proxy between an operator and the API server that cuts the line at one exact write: before the API server gets it, or after
//! the API server did it and before the operator hears of it. Reads and watches pass through.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::Notify;

/// When the line is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The write does not reach the API server.
    Before(usize),
    /// The write is done; its answer does not reach the operator.
    After(usize),
    /// Never.
    Never,
}

struct Shared {
    client: kube::Client,
    cut: Cut,
    writes: AtomicUsize,
    is_cut: Notify,
}

/// A running proxy; it ends with this value.
pub struct FaultProxy {
    /// Where it listens.
    pub url: String,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy on a free port of loopback.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(client: kube::Client, cut: Cut) -> Result<Self> {
        let shared = Arc::new(Shared {
            client,
            cut,
            writes: AtomicUsize::new(0),
            is_cut: Notify::new(),
        });
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = axum::Router::new().fallback(forward).with_state(shared.clone());
        let server = tokio::spawn(async move {
            // Ends when the task is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, shared, server })
    }

    /// Writes that the operator has tried so far.
    pub fn writes(&self) -> usize {
        self.shared.writes.load(Ordering::SeqCst)
    }

    /// Resolves when the line has been cut.
    pub async fn cut(&self) {
        self.shared.is_cut.notified().await;
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn forward(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let counted = is_counted_write(request.method(), request.uri().path());
    let number = if counted {
        shared.writes.fetch_add(1, Ordering::SeqCst) + 1
    } else {
        0
    };
    if counted && shared.cut == Cut::Before(number) {
        return cut(&shared).await;
    }
    let answer = send(&shared.client, request).await;
    if counted && shared.cut == Cut::After(number) {
        return cut(&shared).await;
    }
    answer.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, error.to_string()).into_response())
}

/// Events and leases come and go with time; what they say is not what the operator decides on.
fn is_counted_write(method: &Method, path: &str) -> bool {
    let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    writes.contains(method) && !path.contains("/events") && !path.contains("/leases")
}

/// Tells the test, and never answers: the test kills the operator that waits.
async fn cut(shared: &Shared) -> Response {
    shared.is_cut.notify_one();
    std::future::pending().await
}

async fn send(client: &kube::Client, request: Request) -> Result<Response> {
    let (mut parts, body) = request.into_parts();
    let bytes = body.collect().await?.to_bytes();
    // The client fills in the host and the credentials of the real server.
    parts.headers.remove(http::header::HOST);
    parts.headers.remove(http::header::CONTENT_LENGTH);
    let response = client
        .send(http::Request::from_parts(
            parts,
            kube::client::Body::from(bytes.to_vec()),
        ))
        .await?;
    Ok(response.map(Body::new))
}
