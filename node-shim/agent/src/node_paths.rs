//! Where things are on a node.

use std::path::{Path, PathBuf};

use node_shim_protocol::paths::AGENT_SOCKET;

/// The directory that both halves of the agent share with the pods, by default `/run/tandem`.
#[derive(Clone, Debug)]
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    /// The directory at `path`.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Parent of the devices' directories.
    pub(crate) fn devices(&self) -> PathBuf {
        self.0.join("devices")
    }

    /// The directory that is mounted into the pod that was given `device`.
    pub(crate) fn device(&self, device: &str) -> PathBuf {
        self.devices().join(device)
    }

    /// The socket on which the pod that was given `device` is served.
    pub(crate) fn device_socket(&self, device: &str) -> PathBuf {
        self.device(device).join(AGENT_SOCKET)
    }

    /// Where `node-agent serve` tells `node-agent device-plugin` whether KVM works.
    pub(crate) fn plugin_socket(&self) -> PathBuf {
        self.0.join("plugin.sock")
    }

    /// Where `node-agent health` asks.
    pub(crate) fn health_socket(&self) -> PathBuf {
        self.0.join("agent-health.sock")
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// The kubelet's root directory, by default `/var/lib/kubelet`.
#[derive(Clone, Debug)]
pub(crate) struct KubeletDir(PathBuf);

impl KubeletDir {
    /// The directory at `path`.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where the kubelet and its device plugins have their sockets.
    pub(crate) fn device_plugins(&self) -> PathBuf {
        self.0.join("device-plugins")
    }

    /// The `PodResourcesLister` service.
    pub(crate) fn pod_resources_socket(&self) -> PathBuf {
        self.0.join("pod-resources").join("kubelet.sock")
    }
}
