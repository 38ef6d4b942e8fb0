//! The kubelet's gRPC interfaces: the device plugin API v1beta1 and the `PodResources` API v1, both on Unix sockets.

use std::path::{Path, PathBuf};

use tonic::transport::{Channel, Endpoint};

/// Device plugin API, generated from `proto/device_plugin.proto`.
#[allow(clippy::pedantic, missing_docs, unreachable_pub)]
pub(crate) mod device_plugin {
    tonic::include_proto!("v1beta1");

    /// The version that a plugin names when it registers.
    pub(crate) const VERSION: &str = "v1beta1";
    /// [`Device::health`] of a device that may be allocated.
    pub(crate) const HEALTHY: &str = "Healthy";
    /// [`Device::health`] of a device that may not.
    pub(crate) const UNHEALTHY: &str = "Unhealthy";
}

/// `PodResources` API, generated from `proto/pod_resources.proto`.
#[allow(clippy::pedantic, missing_docs, unreachable_pub)]
pub(crate) mod pod_resources {
    tonic::include_proto!("v1");
}

/// Failure to reach the kubelet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeletError {
    /// The path cannot be part of a URI.
    #[error("{} is no path for a kubelet socket: it must be absolute UTF-8", .0.display())]
    Path(PathBuf),
    /// Nobody answers.
    #[error("failed to connect to the kubelet at {}: is the kubelet running, and is its directory mounted?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: tonic::transport::Error,
    },
}

/// Connects to the gRPC server on the Unix socket `path`.
pub(crate) async fn connect(path: &Path) -> Result<Channel, KubeletError> {
    let uri = path
        .to_str()
        .filter(|path| path.starts_with('/'))
        .map(|path| format!("unix://{path}"));
    let endpoint = uri
        .and_then(|uri| Endpoint::from_shared(uri).ok())
        .ok_or_else(|| KubeletError::Path(path.to_owned()))?;
    endpoint
        .connect_timeout(std::time::Duration::from_secs(5))
        .timeout(std::time::Duration::from_secs(10))
        .connect()
        .await
        .map_err(|source| KubeletError::Connect {
            path: path.to_owned(),
            source,
        })
}
