//! What the chart's admission policies refuse to somebody whom RBAC lets do everything with VMs in his namespace.

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Output};
use e2e::manifest::{small_vm, with};
use e2e::runner::Runner;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-policies";
const USER: &str = "e2e-owner";
const ADMINISTRATOR: &str = "e2e-administrator";
const SET: &str = "set";
const MEMBER: &str = "set-0";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    for manifest in [role(), binding(), administrators(), set()] {
        cluster.apply(&manifest).await?;
    }
    let made = |vm: &Value| vm["metadata"]["uid"].is_string();
    cluster.until(&cluster.vms(NAMESPACE), MEMBER, "made", made).await?;
    runner
        .case("a user cannot write status, whatever RBAC says", status(cluster))
        .await;
    runner.case("an administrator can", administrator(cluster)).await;
    runner
        .case("a set's VM keeps the labels by which the set knows it", labels(cluster))
        .await;
    runner
        .case("a set's VM keeps its owner reference", owner(cluster))
        .await;
    runner.case("who edits a set's VM is warned", warned(cluster)).await;
    cluster
        .kubectl(&["delete", "clusterrolebinding", ADMINISTRATOR])
        .await?;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

fn role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": USER, "namespace": NAMESPACE},
        "rules": [{"apiGroups": ["tandem.dev"], "resources": ["*"], "verbs": ["*"]}],
    })
}

fn binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": USER, "namespace": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": USER},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}],
    })
}

/// Of a cluster's administrators most are in no group that the API server knows by itself.
fn administrators() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": ADMINISTRATOR},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": ADMINISTRATOR}],
    })
}

/// One VM, which does not run.
fn set() -> Value {
    let spec = small_vm(NAMESPACE, SET)["spec"].clone();
    json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachineSet",
        "metadata": {"name": SET, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "stableNames": true,
            "selector": {"matchLabels": {"app": SET}},
            "template": {"metadata": {"labels": {"app": SET}}, "spec": with(spec, "/runPolicy", json!("Halted"))},
        },
    })
}

/// A merge patch of the member, by this user.
async fn patch(cluster: &Cluster, user: &str, subresource: Option<&str>, patch: &Value) -> Result<Output> {
    let text = patch.to_string();
    let mut arguments = vec![
        "patch", "vm", "-n", NAMESPACE, MEMBER, "--type", "merge", "-p", &text, "--as", user,
    ];
    arguments.extend(
        subresource
            .iter()
            .flat_map(|subresource| ["--subresource", *subresource]),
    );
    cluster.kubectl_unchecked(&arguments, "").await
}

async fn status(cluster: &Cluster) -> Result<()> {
    let refused = patch(
        cluster,
        USER,
        Some("status"),
        &json!({"status": {"nodeName": "another"}}),
    )
    .await?;
    ensure!(
        !refused.success && refused.stderr.contains("status is written by Tandem alone"),
        "the user wrote status: {}{}",
        refused.stdout,
        refused.stderr
    );
    Ok(())
}

async fn administrator(cluster: &Cluster) -> Result<()> {
    let mended = patch(
        cluster,
        ADMINISTRATOR,
        Some("status"),
        &json!({"status": {"status": "Mended"}}),
    )
    .await?;
    ensure!(mended.success, "the administrator could not: {}", mended.stderr);
    Ok(())
}

async fn labels(cluster: &Cluster) -> Result<()> {
    for value in [Value::Null, json!("other")] {
        let labels = json!({"metadata": {"labels": {"tandem.dev/vm-set": value}}});
        let refused = patch(cluster, USER, None, &labels).await?;
        ensure!(
            !refused.success && refused.stderr.contains("leave them as they are"),
            "the label was changed: {}{}",
            refused.stdout,
            refused.stderr
        );
    }
    let own = patch(cluster, USER, None, &json!({"metadata": {"labels": {"note": "a"}}})).await?;
    ensure!(own.success, "a label of the user's own was refused: {}", own.stderr);
    ensure!(!own.stderr.contains("Warning"), "a label is no edit: {}", own.stderr);
    Ok(())
}

async fn owner(cluster: &Cluster) -> Result<()> {
    let refused = patch(cluster, USER, None, &json!({"metadata": {"ownerReferences": null}})).await?;
    ensure!(
        !refused.success && refused.stderr.contains("knows its VM by its owner reference"),
        "the owner reference was removed: {}{}",
        refused.stdout,
        refused.stderr
    );
    Ok(())
}

async fn warned(cluster: &Cluster) -> Result<()> {
    let edit = json!({"spec": {"terminationGracePeriodSeconds": 5}});
    let edited = patch(cluster, USER, None, &edit).await?;
    ensure!(edited.success, "the edit was refused: {}", edited.stderr);
    ensure!(
        edited.stderr.contains("edit the set's template"),
        "nobody warns: {}{}",
        edited.stdout,
        edited.stderr
    );
    Ok(())
}
