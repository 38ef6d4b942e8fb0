//! `node-agent device-plugin`: offers three extended resources to the kubelet, without any capability of its own.
//!
//! ```text
//! node-agent serve --plugin.sock: does KVM work?--> health ──devices──► plugin ◄──Allocate, ListAndWatch── kubelet
//!                            host's /dev: is there a kvm? ──┘                └──Register, again when kubelet.sock is new──►
//! ```

mod health;
mod plugin;
mod reports;
pub(crate) mod resource;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::directory_watch::DirectoryWatch;
use crate::node_paths::{KubeletDir, RunDir};
use health::{KvmHealth, Verdict};
use plugin::Plugin;
use reports::{ReportEvent, ReportListener};
use resource::Resource;

/// How long the plugin waits for the first report about KVM before it registers, so that its own restart does not take the node's
/// devices away for a moment.
const FIRST_REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What `node-agent device-plugin` is started with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Shared with `node-agent serve` and the pods.
    pub(crate) run_dir: RunDir,
    /// The kubelet's root directory.
    pub(crate) kubelet_dir: KubeletDir,
    /// The node's `/dev`, as this process sees it.
    pub(crate) host_dev: PathBuf,
    /// How many of each kind the node may have.
    pub(crate) most: Most,
}

/// How many VMs and volume pods a node may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    /// VMs.
    pub(crate) vms: u16,
    /// Volume pods: disks that are plugged into running VMs.
    pub(crate) volumes: u16,
}

/// Why the device plugin ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevicePluginError {
    /// The shared directory is unusable.
    #[error("failed to make the device directory {}: is its parent mounted writable?", path.display())]
    DeviceDirectory {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// No events from a directory.
    #[error("a directory that the device plugin depends on cannot be watched")]
    Watch(#[source] crate::directory_watch::DirectoryWatchError),
    /// No reports.
    #[error("reports about KVM cannot be received")]
    Reports(#[source] reports::ReportsError),
    /// A resource ended.
    #[error("the resource {resource} cannot be served")]
    Plugin {
        /// Its name.
        resource: &'static str,
        /// Why.
        source: plugin::PluginError,
    },
}

/// Serves the resources until something fails that a restart may mend. Dropping the future ends everything that it started.
pub(crate) async fn run(options: Options) -> Result<(), DevicePluginError> {
    make_device_directories(&options)?;
    let listener = ReportListener::bind(&options.run_dir.plugin_socket()).map_err(DevicePluginError::Reports)?;
    let dev_watch = DirectoryWatch::new(&options.host_dev, "kvm").map_err(DevicePluginError::Watch)?;
    let kubelet_watch =
        DirectoryWatch::new(&options.kubelet_dir.device_plugins(), "kubelet.sock").map_err(DevicePluginError::Watch)?;

    let (verdicts, mut verdict) = watch::channel(Verdict::Unknown);
    let (restarts, kubelet_restarts) = watch::channel(0u64);
    let mut tasks = JoinSet::new();
    tasks.spawn(judge(options.host_dev.clone(), listener, dev_watch, verdicts));
    tasks.spawn(count_restarts(kubelet_watch, restarts));

    let known = tokio::time::timeout(
        FIRST_REPORT_TIMEOUT,
        verdict.wait_for(|verdict| *verdict != Verdict::Unknown),
    );
    if known.await.is_err() {
        tracing::info!("the node agent has not yet said whether KVM works; registering without usable devices");
    }
    for resource in Resource::ALL {
        let plugin = Plugin::new(resource, options.clone(), verdict.clone());
        let kubelet_restarts = kubelet_restarts.clone();
        tasks.spawn(async move {
            plugin
                .run(kubelet_restarts)
                .await
                .map_err(|source| DevicePluginError::Plugin {
                    resource: resource.name(),
                    source,
                })
        });
    }
    match tasks.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        None => Ok(()),
    }
}

/// Makes the directory of each device, so that the kubelet finds something to mount.
fn make_device_directories(options: &Options) -> Result<(), DevicePluginError> {
    resource::sockets(options.most).try_for_each(|id| {
        let path = options.run_dir.device(&id);
        resource::make_device_directory(&path).map_err(|source| DevicePluginError::DeviceDirectory { path, source })
    })
}

/// Owns [`KvmHealth`]: turns what is heard and seen into the verdict that the devices follow.
async fn judge(
    host_dev: PathBuf,
    mut listener: ReportListener,
    mut dev_watch: DirectoryWatch,
    verdicts: watch::Sender<Verdict>,
) -> Result<(), DevicePluginError> {
    let kvm_device = host_dev.join("kvm");
    let mut health = KvmHealth::new(kvm_device.exists());
    loop {
        let now = tokio::time::Instant::now();
        let verdict = health.verdict(now.into_std());
        verdicts.send_if_modified(|old| {
            let changed = *old != verdict;
            if changed {
                verdict.log();
                *old = verdict;
            }
            changed
        });
        let grace = health.grace_ends();
        tokio::select! {
            event = listener.next() => match event.map_err(DevicePluginError::Reports)? {
                ReportEvent::Said(probe) => health.said(probe),
                ReportEvent::Lost => health.lost(tokio::time::Instant::now().into_std()),
            },
            changed = dev_watch.changed() => {
                changed.map_err(DevicePluginError::Watch)?;
                health.device_seen(kvm_device.exists());
            }
            () = async { tokio::time::sleep_until(grace.unwrap_or_else(std::time::Instant::now).into()).await }, if grace.is_some() => {}
        }
    }
}

/// Counts how often a kubelet made its socket.
async fn count_restarts(mut watch: DirectoryWatch, restarts: watch::Sender<u64>) -> Result<(), DevicePluginError> {
    loop {
        watch.changed().await.map_err(DevicePluginError::Watch)?;
        restarts.send_modify(|count| *count += 1);
    }
}
