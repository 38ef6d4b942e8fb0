//! The cluster under test.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Ends a wait that nothing will satisfy. An emulated node is slow, so this is a bound on being stuck, not on being slow.
pub const PATIENCE: Duration = Duration::from_mins(12);

/// A cluster made by `hack/up`.
#[derive(Clone)]
pub struct Cluster {
    /// A client with the administrator's rights.
    pub client: kube::Client,
    /// Its name, as `hack/up --name` was given it.
    pub name: String,
    /// Root of the checkout.
    pub root: PathBuf,
}

/// What a command printed.
#[derive(Debug)]
pub struct Output {
    /// Exit status was 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cluster {
    /// The cluster that the environment names.
    ///
    /// # Errors
    /// When the environment names none, or it does not answer.
    pub async fn from_environment() -> Result<Self> {
        let name = std::env::var("TANDEM_CLUSTER")
            .context("TANDEM_CLUSTER is not set: run hack/test, which makes a cluster")?;
        let client = kube::Client::try_default().await.context("no cluster at KUBECONFIG")?;
        client
            .apiserver_version()
            .await
            .context("the API server does not answer")?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("e2e has no parent directory")?;
        Ok(Self {
            client,
            name,
            root: root.to_owned(),
        })
    }

    /// Runs `kubectl` with these arguments and this standard input, whatever comes of it.
    ///
    /// # Errors
    /// When kubectl cannot be run.
    pub async fn kubectl_unchecked(&self, arguments: &[&str], stdin: &str) -> Result<Output> {
        run(Command::new("kubectl").args(arguments), stdin).await
    }

    /// Runs `kubectl`, which must succeed, and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_unchecked(arguments, "").await?;
        ensure!(
            output.success,
            "kubectl {} failed: {}",
            arguments.join(" "),
            output.stderr
        );
        Ok(output.stdout)
    }

    /// `kubectl apply -f -` of a manifest, which must be accepted.
    ///
    /// # Errors
    /// When it is refused, with the API server's message.
    pub async fn apply(&self, manifest: &Value) -> Result<()> {
        let output = self
            .kubectl_unchecked(&["apply", "-f", "-"], &manifest.to_string())
            .await?;
        ensure!(output.success, "kubectl apply failed: {}", output.stderr);
        Ok(())
    }

    /// `kubectl apply -f -` of a manifest that must be refused; returns the API server's message.
    ///
    /// # Errors
    /// When it is accepted.
    pub async fn apply_refused(&self, manifest: &Value) -> Result<String> {
        let output = self
            .kubectl_unchecked(&["apply", "-f", "-"], &manifest.to_string())
            .await?;
        ensure!(
            !output.success,
            "the API server accepted what it must refuse: {manifest}"
        );
        Ok(output.stderr)
    }

    /// Makes a namespace that enforces Pod Security `restricted`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn restricted_namespace(&self, name: &str) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/enforce-version": "latest",
            }},
        }))
        .await
    }

    /// Objects of a kind in a namespace.
    pub fn api(&self, group_version: &str, kind: &str, plural: &str, namespace: &str) -> Api<DynamicObject> {
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    /// `VirtualMachines` of a namespace.
    pub fn vms(&self, namespace: &str) -> Api<DynamicObject> {
        self.api("tandem.dev/v1alpha1", "VirtualMachine", "virtualmachines", namespace)
    }

    /// Pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Api<DynamicObject> {
        self.api("v1", "Pod", "pods", namespace)
    }

    /// Waits until the object is as wanted, and returns it.
    ///
    /// # Errors
    /// After [`PATIENCE`], with the object as it then is.
    pub async fn until(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool + Send,
    ) -> Result<Value> {
        let condition = |object: Option<&DynamicObject>| object.is_some_and(|object| wanted(&value(object)));
        if let Ok(found) = tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, condition)).await {
            return Ok(found?.map(|object| value(&object)).unwrap_or_default());
        }
        let now = match api.get_opt(name).await? {
            Some(object) => brief(&value(&object)),
            None => "it does not exist".to_owned(),
        };
        bail!("{name} is still not {what} after {} s: {now}", PATIENCE.as_secs())
    }

    /// Waits until the object is gone.
    ///
    /// # Errors
    /// After [`PATIENCE`], with the object as it then is.
    pub async fn until_gone(&self, api: &Api<DynamicObject>, name: &str) -> Result<()> {
        let wait = await_condition(api.clone(), name, |object: Option<&DynamicObject>| object.is_none());
        if let Ok(outcome) = tokio::time::timeout(PATIENCE, wait).await {
            outcome?;
            return Ok(());
        }
        let now = api
            .get_opt(name)
            .await?
            .map(|object| brief(&value(&object)))
            .unwrap_or_default();
        bail!("{name} is still there after {} s: {now}", PATIENCE.as_secs())
    }

    /// Runs a command on a node and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn node_exec(&self, node: &str, command: &[&str]) -> Result<String> {
        let mut process = Command::new(self.root.join("hack/node-exec"));
        process.args(["--name", &self.name, node]).args(command);
        let output = run(&mut process, "").await?;
        ensure!(
            output.success,
            "on node {node}: {} failed: {}{}",
            command.join(" "),
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Process ids of the VMMs on a node whose pod has this name (its VmConfig names the VM).
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn vmm_pids(&self, node: &str) -> Result<Vec<u32>> {
        // pgrep's exit status 1 says that there is none.
        let listing = self
            .node_exec(node, &["sh", "-c", "pgrep -x node-shim || [ $? = 1 ]"])
            .await?;
        listing
            .split_whitespace()
            .map(|pid| pid.parse().with_context(|| format!("pgrep printed {pid}")))
            .collect()
    }

    /// Name of the node that offers KVM.
    ///
    /// # Errors
    /// When there is none.
    pub async fn kvm_node(&self) -> Result<String> {
        let nodes = self.kubectl(&["get", "nodes", "-o", "json"]).await?;
        let nodes: Value = serde_json::from_str(&nodes)?;
        let offers = |node: &&Value| {
            node.pointer("/status/allocatable/tandem.dev~1kvm")
                .and_then(Value::as_str)
                .is_some_and(|count| count != "0")
        };
        let node = nodes["items"]
            .as_array()
            .into_iter()
            .flatten()
            .find(offers)
            .context("no node offers tandem.dev/kvm")?;
        Ok(node["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }
}

/// An object as plain JSON.
pub fn value(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// The condition of this type: `(status, reason, message)`.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let condition = object
        .pointer("/status/conditions")?
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)?;
    let text = |field: &str| condition[field].as_str().unwrap_or_default();
    Some((text("status"), text("reason"), text("message")))
}

/// Whether the condition of this type has this status, for the object's own generation.
pub fn has_condition(object: &Value, kind: &str, status: &str) -> bool {
    let seen = object
        .pointer("/status/observedGeneration")
        .is_none_or(|seen| *seen == object["metadata"]["generation"]);
    seen && condition(object, kind).is_some_and(|found| found.0 == status)
}

/// What matters of an object in a failure message.
fn brief(object: &Value) -> String {
    serde_json::to_string_pretty(&json!({
        "deletionTimestamp": object["metadata"]["deletionTimestamp"],
        "spec.nodeName": object["spec"]["nodeName"],
        "status": object["status"],
    }))
    .unwrap_or_default()
}

async fn run(command: &mut Command, stdin: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A command that does not read its input is free to close it.
        let _ = pipe.write_all(stdin.as_bytes()).await;
    }
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .with_context(|| format!("{command:?} hangs"))??;
    Ok(Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
