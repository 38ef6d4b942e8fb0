//! What the API server must refuse at apply, each with a message that says what to write instead: the table that `crds` holds against its schemas.

use std::sync::LazyLock;

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;
use e2e::runner::Runner;
use serde_json::{Value, json};

use crate::refused::{Case, NAME, Table};

const NAMESPACE: &str = "e2e-bad-manifests";
static TABLE: LazyLock<Table> = LazyLock::new(Table::read);

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    for (kind, case) in TABLE.cases() {
        runner.case(&case.name, is_refused(cluster, kind, case)).await;
    }
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

async fn is_refused(cluster: &Cluster, kind: &str, case: &Case) -> Result<()> {
    let placed = |mut manifest: Value| {
        if kind != "VirtualMachineInstanceType" {
            manifest["metadata"]["namespace"] = json!(NAMESPACE);
        }
        manifest
    };
    let stored = TABLE.stored(kind, case).map(placed);
    if let Some(stored) = &stored {
        cluster.apply(stored).await?;
    }
    let refused = cluster.apply_refused(&placed(TABLE.refused(kind, case))).await;
    if stored.is_some() {
        cluster.kubectl(&["delete", kind, NAME, "-n", NAMESPACE]).await?;
    }
    let (message, says) = (refused?, &case.says);
    ensure!(message.contains(says), "the message does not say {says:?}: {message}");
    Ok(())
}
