//! What the API server must refuse at apply, each with a message that says what to write instead.

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;
use e2e::manifest::{small_vm, with};
use e2e::runner::Runner;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-bad-manifests";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    let two_sources = json!([{"name": "data", "image": {"image": "a"}, "emptyDisk": {"size": "1Gi"}}]);
    let no_source = json!([{"name": "data"}]);
    let two_user_datas = json!({"userData": "#cloud-config", "userDataSecretRef": {"name": "secret"}});
    let same_names =
        json!([{"name": "data", "emptyDisk": {"size": "1Gi"}}, {"name": "data", "emptyDisk": {"size": "1Gi"}}]);
    let cases: [(&'static str, &str, Value, &str); 10] = [
        (
            "an unknown field is refused by name",
            "/spec/memmory",
            json!({"size": "1Gi"}),
            "memmory",
        ),
        (
            "two sources in one disk are refused",
            "/spec/disks",
            two_sources,
            "exactly one source",
        ),
        (
            "a disk without a source is refused",
            "/spec/disks",
            no_source,
            "exactly one source",
        ),
        (
            "two disks of one name are refused",
            "/spec/disks",
            same_names,
            "uplicate",
        ),
        ("zero cores are refused", "/spec/cpu/cores", json!(0), "spec.cpu.cores"),
        (
            "memory below what can boot is refused",
            "/spec/memory/size",
            json!("16Mi"),
            "32Mi",
        ),
        (
            "memory that is no quantity is refused",
            "/spec/memory/size",
            json!("plenty"),
            "spec.memory.size",
        ),
        (
            "inline user data over the limit is refused",
            "/spec/cloudInit",
            json!({"userData": "x".repeat(33_000)}),
            "32 KiB",
        ),
        (
            "two sources of user data are refused",
            "/spec/cloudInit",
            two_user_datas,
            "userDataSecretRef",
        ),
        (
            "an unknown run policy is refused with those there are",
            "/spec/runPolicy",
            json!("Sometimes"),
            "Always",
        ),
    ];
    for (name, pointer, value, says) in cases {
        let case = async {
            let message = cluster
                .apply_refused(&with(small_vm(NAMESPACE, "bad"), pointer, value))
                .await?;
            ensure!(message.contains(says), "the message does not say {says:?}: {message}");
            Ok(())
        };
        runner.case(name, case).await;
    }
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}
