//! `node-agent serve`: opens for each VM pod of this node what the pod may not open itself, and says what its guest does.
//!
//! ```text
//! kvm ──works?──► plugin_link ──plugin.sock──► node-agent device-plugin
//!  │
//!  └──works?──► device_socket (one for each device id) ─► session ─► network, /dev/kvm ─► shim
//!                      └──whose id is it?── identity ◄── kubelet   │ ▲
//!                      │                                           │ └──Resize, disks── guest_status ◄── VirtualMachine.status.{target,targetDisks}
//!                      │                                           └──GuestStatus─────► (board)      ──► .guest, .acknowledgedTarget
//!                      └─► session ◄──a disk── node-shim lend, in a volume pod ──────────► │
//! ```
//!
//! Nothing here must survive a restart: taps belong to the shims, rules to their namespaces, and the shims connect again.

mod board;
mod device_socket;
mod guest_status;
mod health;
mod identity;
mod kvm;
mod pace;
mod packet;
mod plugin_link;
mod report;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::device_plugin::resource::{ALLOCATED, HOST_DEVICES};
use crate::node_paths::{KubeletDir, RunDir};
pub(crate) use health::ask as ask_health;
use session::Services;

/// Reports of guests that wait for the API server's attention.
const QUEUED_REPORTS: usize = 1024;
/// Most device ids that are served.
const MAX_DEVICES: usize = 2000;

/// What `node-agent serve` is started with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Shared with `node-agent device-plugin` and the pods.
    pub(crate) run_dir: RunDir,
    /// The kubelet's root directory.
    pub(crate) kubelet_dir: KubeletDir,
    /// Name of this node's Node object.
    pub(crate) node_name: String,
    /// Whether a KVM that cannot boot Linux is good enough.
    pub(crate) allow_paravirtual_kvm: bool,
}

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The kubelet started this container without what it asked for.
    #[error(
        "the kubelet started this container without tandem.dev/host-devices, as it does after a reboot of a node whose disk is new, while the \
         device plugin has not registered; it is to start it again"
    )]
    NoDevices,
    /// No client.
    #[error("the agent's access to the API server is not configured: does its pod have a service account token?")]
    Client(#[source] Box<kube::Error>),
    /// The devices' directories cannot be read.
    #[error("failed to read the directory {}: is it mounted?", path.display())]
    ReadDevices {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A device's socket.
    #[error("a VM pod cannot be served")]
    Device(#[source] device_socket::DeviceSocketError),
    /// Health.
    #[error("the health probe cannot be answered")]
    Health(#[source] health::HealthError),
    /// The device plugin's socket.
    #[error("the device plugin cannot be told about KVM")]
    PluginLink(#[source] crate::directory_watch::DirectoryWatchError),
}

/// Serves until something fails that a restart may mend. Dropping the future ends everything that it started; sockets keep their names,
/// for the successor to take.
pub(crate) async fn run(options: Options) -> Result<(), ServeError> {
    if !was_given_devices(std::env::var_os(ALLOCATED).is_some(), |name| {
        Path::new("/dev").join(name).exists()
    }) {
        return Err(ServeError::NoDevices);
    }
    let client = kube::Client::try_default()
        .await
        .map_err(|source| ServeError::Client(Box::new(source)))?;
    let (reports, guest_reports) = mpsc::channel(QUEUED_REPORTS);
    let (kvm, kvm_works) = watch::channel(kvm::trial(options.allow_paravirtual_kvm));
    let services = Services {
        kvm: kvm_works.clone(),
        reports,
        pod_resources: options.kubelet_dir.pod_resources_socket().into(),
        namespaces: Arc::new(tokio::sync::Semaphore::new(session::CONCURRENT_NAMESPACES)),
    };
    let linked = Arc::new(Notify::new());
    let health_listener = health::bind(&options.run_dir).map_err(ServeError::Health)?;

    let mut tasks: JoinSet<Result<(), ServeError>> = JoinSet::new();
    tasks.spawn(kvm::watch(options.allow_paravirtual_kvm, kvm));
    tasks.spawn(guest_status::run(client, options.node_name, guest_reports));
    tasks.spawn(async move { health::answer(health_listener).await.map_err(ServeError::Health) });
    let link = plugin_link::run(options.run_dir.clone(), kvm_works, linked.clone());
    tasks.spawn(async move { link.await.map_err(ServeError::PluginLink) });
    tasks.spawn(serve_devices(options.run_dir, services, linked));
    match tasks.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        None => Ok(()),
    }
}

/// Whether the kubelet has asked the device plugin about this container. A device plugin of an earlier version says nothing, but gives devices;
/// a node without any has nothing to give.
fn was_given_devices(told: bool, exists: impl Fn(&str) -> bool) -> bool {
    told || HOST_DEVICES.iter().any(|name| exists(name))
}

/// Serves the devices that have a directory; looks for new ones whenever the device plugin, which makes the directories, was started.
async fn serve_devices(run_dir: RunDir, services: Services, linked: Arc<Notify>) -> Result<(), ServeError> {
    let mut served = BTreeSet::new();
    let mut sockets: JoinSet<Result<(), device_socket::DeviceSocketError>> = JoinSet::new();
    loop {
        for device in device_ids(&run_dir.devices())?.difference(&served.clone()) {
            let socket =
                device_socket::DeviceSocket::bind(&run_dir, device, services.clone()).map_err(ServeError::Device)?;
            sockets.spawn(socket.serve());
            served.insert(device.clone());
        }
        tracing::info!(devices = served.len(), "listening for VM pods");
        tokio::select! {
            () = linked.notified() => {}
            Some(ended) = sockets.join_next() => match ended {
                Ok(result) => result.map_err(ServeError::Device)?,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            },
        }
    }
}

/// The names of the directories in `devices`: none while the device plugin has not made it.
fn device_ids(devices: &Path) -> Result<BTreeSet<String>, ServeError> {
    let fail = |source| ServeError::ReadDevices {
        path: devices.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(devices) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.map_err(fail)?,
    };
    let mut ids = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        if let (true, Ok(name)) = (
            entry.file_type().map_err(fail)?.is_dir(),
            entry.file_name().into_string(),
        ) && ids.len() < MAX_DEVICES
        {
            ids.insert(name);
        }
    }
    Ok(ids)
}
