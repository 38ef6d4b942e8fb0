//! Tells the device plugin whether KVM works, for as long as both live.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};

use crate::directory_watch::{self, DirectoryWatch};
use crate::kvm_report::Report;
use crate::node_paths::RunDir;

/// Between two attempts to connect when no new plugin.sock appears.
const RETRY: Duration = Duration::from_secs(5);

/// Connects to the device plugin again and again, reports to it, and notifies `linked` at each connection.
pub(super) async fn run(
    run_dir: RunDir,
    mut kvm: watch::Receiver<Result<(), String>>,
    linked: Arc<Notify>,
) -> Result<(), directory_watch::DirectoryWatchError> {
    let path = run_dir.plugin_socket();
    let mut watch = DirectoryWatch::new(run_dir.path(), "plugin.sock")?;
    loop {
        if let Ok(stream) = UnixStream::connect(&path).await {
            tracing::info!("connected to the device plugin");
            linked.notify_one();
            report(stream, &mut kvm).await;
            tracing::info!("lost the device plugin");
        }
        tokio::select! {
            changed = watch.changed() => changed?,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Reports until the connection ends.
async fn report(mut stream: UnixStream, kvm: &mut watch::Receiver<Result<(), String>>) {
    loop {
        let mut line = match serde_json::to_vec(&Report::new(kvm.borrow_and_update().clone())) {
            Ok(line) => line,
            Err(error) => return tracing::error!("a report about KVM is no JSON: {error}"),
        };
        line.push(b'\n');
        if stream.write_all(&line).await.is_err() {
            return;
        }
        tokio::select! {
            changed = kvm.changed() => if changed.is_err() { return },
            // The plugin says nothing: a read ends with the connection.
            _ = stream.read_u8() => return,
        }
    }
}
