//! A set of VMs: scaled by people and by an autoscaler, rolled, and its claims with their members.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, has_condition, value};
use e2e::manifest::{small_vm, with};
use e2e::runner::Runner;
use kube::{Api, core::DynamicObject};
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-sets";
const SET: &str = "web";
/// Where the node keeps the volumes.
const DIRECTORY: &str = "/var/lib/tandem-e2e-sets";
/// Most VMs at a time: what the emulated node has memory for beside everything else.
const MOST: usize = 2;
/// A set whose VMs never run, so that its claims need no volumes.
const HALTED_SET: &str = "halted";
/// How long discovery may take to know a new kind.
const DISCOVERY_PATIENCE: Duration = Duration::from_secs(30);
const METRIC: &str = "queue";
const METRICS_GROUP: &str = "external.metrics.k8s.io";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    let node = cluster.kvm_node().await?;
    make_volumes(cluster, &node).await?;
    runner
        .case("kubectl scale makes VMs with claims of their own", scaled_up(cluster))
        .await;
    runner
        .case(
            "a smaller set keeps the claims, and a larger one has them again",
            scaled_down_and_up(cluster),
        )
        .await;
    runner
        .case(
            "a roll with maxUnavailable 1 keeps the other VM ready, and each its claim",
            rolled(cluster),
        )
        .await;
    runner
        .case("an autoscaler follows a metric, up and down", autoscaled(cluster))
        .await;
    // One that a failed case left would go on scaling the set.
    cluster
        .kubectl(&["delete", "hpa", "-n", NAMESPACE, SET, "--ignore-not-found"])
        .await?;
    runner
        .case("with whenScaled and whenDeleted Delete the claims go", deleted(cluster))
        .await;
    runner
        .case(
            "a set that is deleted keeps its claims, and the next of its name has them",
            kept(cluster),
        )
        .await;
    runner
        .case(
            "a policy that comes later deletes no claim that was kept",
            kept_under_another_policy(cluster),
        )
        .await;
    let crd = format!("{METRIC}.{METRICS_GROUP}");
    cluster.kubectl(&["delete", "crd", &crd, "--ignore-not-found"]).await?;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    for number in 0..MOST {
        cluster
            .kubectl(&["delete", "pv", &volume_name(number), "--wait=false"])
            .await?;
    }
    // The VMs' pods hold the volumes until they have gone.
    for number in 0..MOST {
        cluster
            .until_gone(&cluster.pods(NAMESPACE), &format!("{SET}-{number}"))
            .await?;
    }
    cluster.node_exec(&node, &["rm", "-rf", DIRECTORY]).await?;
    Ok(())
}

fn volume_name(number: usize) -> String {
    format!("{NAMESPACE}-{number}")
}

fn claim_name(number: usize) -> String {
    format!("data-{SET}-{number}")
}

/// A local volume for the claim of each member.
async fn make_volumes(cluster: &Cluster, node: &str) -> Result<()> {
    for number in 0..MOST {
        let path = format!("{DIRECTORY}/{number}");
        cluster.node_exec(node, &["mkdir", "-p", &path]).await?;
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume_name(number)},
            "spec": {
                "capacity": {"storage": "16Mi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "claimRef": {"namespace": NAMESPACE, "name": claim_name(number)},
                "local": {"path": path},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
                ]}]}},
            },
        });
        cluster.apply(&volume).await?;
    }
    Ok(())
}

fn sets(cluster: &Cluster) -> Api<DynamicObject> {
    cluster.api(
        "tandem.dev/v1alpha1",
        "VirtualMachineSet",
        "virtualmachinesets",
        NAMESPACE,
    )
}

fn claims(cluster: &Cluster) -> Api<DynamicObject> {
    cluster.api("v1", "PersistentVolumeClaim", "persistentvolumeclaims", NAMESPACE)
}

fn set() -> Value {
    let mut spec = small_vm(NAMESPACE, SET)["spec"].clone();
    spec["disks"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data", "size": "8Mi"}}]);
    json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachineSet",
        "metadata": {"name": SET, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "stableNames": true,
            "selector": {"matchLabels": {"app": SET}},
            "updateStrategy": {"maxUnavailable": 1},
            "minReadySeconds": 2,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"storageClassName": "", "resources": {"requests": {"storage": "16Mi"}}}}],
            "template": {"metadata": {"labels": {"app": SET}}, "spec": spec},
        },
    })
}

/// Waits until the set has so many VMs, all of them of the present template and ready for long enough.
async fn complete(cluster: &Cluster, replicas: usize) -> Result<Value> {
    let what = format!("complete with {replicas} VMs");
    let is = |set: &Value| has_condition(set, "Ready", "True") && set["status"]["availableReplicas"] == replicas;
    cluster.until(&sets(cluster), SET, &what, is).await
}

async fn scale(cluster: &Cluster, replicas: usize) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    cluster
        .kubectl(&["scale", "-n", NAMESPACE, "vmset", SET, &replicas])
        .await?;
    Ok(())
}

async fn uid(api: &Api<DynamicObject>, name: &str) -> Result<String> {
    let object = api.get(name).await.with_context(|| name.to_owned())?;
    object.metadata.uid.with_context(|| format!("{name} has no UID"))
}

async fn scaled_up(cluster: &Cluster) -> Result<()> {
    cluster.apply(&set()).await?;
    complete(cluster, 1).await?;
    scale(cluster, MOST).await?;
    complete(cluster, MOST).await?;
    for number in 0..MOST {
        let name = format!("{SET}-{number}");
        let pod = value(&cluster.pods(NAMESPACE).get(&name).await?);
        let volumes = pod["spec"]["volumes"].as_array().context("a pod has volumes")?;
        let named: Vec<&Value> = volumes
            .iter()
            .filter_map(|volume| volume.pointer("/persistentVolumeClaim/claimName"))
            .collect();
        ensure!(named == [&json!(claim_name(number))], "{name} has the claims {named:?}");
        let claim = value(&claims(cluster).get(&claim_name(number)).await?);
        ensure!(claim["status"]["phase"] == "Bound", "claim: {claim}");
    }
    Ok(())
}

async fn scaled_down_and_up(cluster: &Cluster) -> Result<()> {
    let last = MOST - 1;
    let before = uid(&claims(cluster), &claim_name(last)).await?;
    scale(cluster, last).await?;
    cluster
        .until_gone(&cluster.vms(NAMESPACE), &format!("{SET}-{last}"))
        .await?;
    complete(cluster, last).await?;
    ensure!(
        uid(&claims(cluster), &claim_name(last)).await? == before,
        "the claim of a VM that went was replaced"
    );
    scale(cluster, MOST).await?;
    complete(cluster, MOST).await?;
    ensure!(
        uid(&claims(cluster), &claim_name(last)).await? == before,
        "a VM that came again has another claim"
    );
    Ok(())
}

async fn rolled(cluster: &Cluster) -> Result<()> {
    let mut before = Vec::new();
    for number in 0..MOST {
        let vm = uid(&cluster.vms(NAMESPACE), &format!("{SET}-{number}")).await?;
        before.push((vm, uid(&claims(cluster), &claim_name(number)).await?));
    }
    let old = value(&sets(cluster).get(SET).await?)["status"]["revision"].clone();
    let next = with(set(), "/spec/replicas", json!(MOST));
    cluster
        .apply(&with(
            next,
            "/spec/template/spec/terminationGracePeriodSeconds",
            json!(3),
        ))
        .await?;
    let least = AtomicU64::new(u64::MAX);
    let done = |set: &Value| {
        least.fetch_min(set["status"]["readyReplicas"].as_u64().unwrap_or(0), Ordering::Relaxed);
        set["status"]["revision"] != old
            && has_condition(set, "Ready", "True")
            && set["status"]["updatedReplicas"] == MOST
    };
    cluster.until(&sets(cluster), SET, "rolled", done).await?;
    let least = usize::try_from(least.into_inner())?;
    ensure!(least >= MOST - 1, "only {least} VMs were ready meanwhile");
    for (number, (vm, claim)) in before.iter().enumerate() {
        ensure!(
            uid(&cluster.vms(NAMESPACE), &format!("{SET}-{number}")).await? != *vm,
            "{SET}-{number} is the old one"
        );
        ensure!(
            uid(&claims(cluster), &claim_name(number)).await? == *claim,
            "{SET}-{number} has another claim"
        );
    }
    Ok(())
}

/// What an adapter of a metrics system would serve: here the values are objects of their own, under the same address.
fn metrics_api() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{METRIC}.{METRICS_GROUP}"),
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": METRICS_GROUP,
            "scope": "Namespaced",
            "names": {"plural": METRIC, "singular": METRIC, "kind": "ExternalMetricValue", "listKind": "ExternalMetricValueList"},
            "versions": [{
                "name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

async fn measure(cluster: &Cluster, length: &str) -> Result<()> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    cluster
        .apply(&json!({
            "apiVersion": format!("{METRICS_GROUP}/v1beta1"),
            "kind": "ExternalMetricValue",
            "metadata": {"name": "length", "namespace": NAMESPACE, "labels": {"of": SET}},
            "metricName": METRIC, "metricLabels": {"of": SET}, "timestamp": now, "value": length,
        }))
        .await
}

/// The first value. Nothing tells when discovery, by which kubectl finds the kind, knows of an established CRD.
async fn measure_first(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    loop {
        match measure(cluster, "500m").await {
            Err(_) if started.elapsed() < DISCOVERY_PATIENCE => tokio::time::sleep(Duration::from_secs(1)).await,
            outcome => return outcome,
        }
    }
}

async fn autoscaled(cluster: &Cluster) -> Result<()> {
    cluster.apply(&metrics_api()).await?;
    let crds = Api::<DynamicObject>::all_with(
        cluster.client.clone(),
        &kube::api::ApiResource::from_gvk_with_plural(
            &kube::api::GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            "customresourcedefinitions",
        ),
    );
    let established = |crd: &Value| has_condition(crd, "Established", "True");
    let crd = format!("{METRIC}.{METRICS_GROUP}");
    cluster.until(&crds, &crd, "established", established).await?;
    measure_first(cluster).await?;
    cluster
        .apply(&json!({
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": SET, "namespace": NAMESPACE},
            "spec": {
                "scaleTargetRef": {"apiVersion": "tandem.dev/v1alpha1", "kind": "VirtualMachineSet", "name": SET},
                "minReplicas": 1,
                "maxReplicas": MOST,
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
                "metrics": [{"type": "External", "external": {
                    "metric": {"name": METRIC, "selector": {"matchLabels": {"of": SET}}},
                    // Of the metric as a whole: so the autoscaler counts the pods that the set's selector finds.
                    "target": {"type": "Value", "value": "1"},
                }}],
            },
        }))
        .await?;
    complete(cluster, 1).await?;
    measure(cluster, "2").await?;
    complete(cluster, 2).await?;
    let autoscaler = cluster.api(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        NAMESPACE,
    );
    let sees = |hpa: &Value| hpa["status"]["currentReplicas"] == 2 && has_condition(hpa, "ScalingActive", "True");
    cluster.until(&autoscaler, SET, "aware of two VMs", sees).await?;
    Ok(())
}

async fn deleted(cluster: &Cluster) -> Result<()> {
    let policy =
        json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Delete"}}});
    cluster
        .kubectl(&[
            "patch",
            "vmset",
            "-n",
            NAMESPACE,
            SET,
            "--type",
            "merge",
            "-p",
            &policy.to_string(),
        ])
        .await?;
    scale(cluster, 1).await?;
    cluster.until_gone(&claims(cluster), &claim_name(1)).await?;
    let owned = |claim: &Value| {
        let owners = claim["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners
            .into_iter()
            .any(|owner| owner["kind"] == "VirtualMachineSet" && owner["name"] == SET)
    };
    cluster
        .until(&claims(cluster), &claim_name(0), "owned by the set", owned)
        .await?;
    cluster.kubectl(&["delete", "vmset", "-n", NAMESPACE, SET]).await?;
    cluster.until_gone(&cluster.vms(NAMESPACE), &format!("{SET}-0")).await?;
    cluster.until_gone(&claims(cluster), &claim_name(0)).await
}

fn halted_set(replicas: usize) -> Value {
    let set = with(set(), "/metadata/name", json!(HALTED_SET));
    let set = with(set, "/spec/replicas", json!(replicas));
    with(set, "/spec/template/spec/runPolicy", json!("Halted"))
}

/// Waits until the operator has done what the set's spec says now, and has so many VMs.
async fn observed(cluster: &Cluster, replicas: usize) -> Result<()> {
    let is = |set: &Value| {
        set["status"]["observedGeneration"] == set["metadata"]["generation"] && set["status"]["replicas"] == replicas
    };
    let what = format!("observed with {replicas} VMs");
    cluster.until(&sets(cluster), HALTED_SET, &what, is).await?;
    Ok(())
}

/// The UID of a claim that nobody deletes, now or with its owner.
async fn kept_claim(cluster: &Cluster, number: usize) -> Result<String> {
    let name = format!("data-{HALTED_SET}-{number}");
    let claim = claims(cluster).get(&name).await.with_context(|| name.clone())?.metadata;
    ensure!(
        claim.deletion_timestamp.is_none() && claim.owner_references.as_ref().is_none_or(Vec::is_empty),
        "{name} does not stay: {claim:?}"
    );
    claim.uid.with_context(|| format!("{name} has no UID"))
}

async fn kept(cluster: &Cluster) -> Result<()> {
    cluster.apply(&halted_set(1)).await?;
    observed(cluster, 1).await?;
    let before = kept_claim(cluster, 0).await?;
    cluster
        .kubectl(&["delete", "vmset", "-n", NAMESPACE, HALTED_SET])
        .await?;
    let vms = cluster.vms(NAMESPACE);
    cluster.until_gone(&vms, &format!("{HALTED_SET}-0")).await?;
    ensure!(kept_claim(cluster, 0).await? == before, "the claim was replaced");
    cluster.apply(&halted_set(1)).await?;
    observed(cluster, 1).await?;
    ensure!(
        kept_claim(cluster, 0).await? == before,
        "the next set has another claim"
    );
    Ok(())
}

async fn kept_under_another_policy(cluster: &Cluster) -> Result<()> {
    cluster.apply(&halted_set(2)).await?;
    observed(cluster, 2).await?;
    let before = kept_claim(cluster, 1).await?;
    cluster.apply(&halted_set(1)).await?;
    observed(cluster, 1).await?;
    let vms = cluster.vms(NAMESPACE);
    cluster.until_gone(&vms, &format!("{HALTED_SET}-1")).await?;
    let policy = json!({"whenScaled": "Delete"});
    let deletes = |replicas| {
        with(
            halted_set(replicas),
            "/spec/persistentVolumeClaimRetentionPolicy",
            policy.clone(),
        )
    };
    cluster.apply(&deletes(1)).await?;
    observed(cluster, 1).await?;
    cluster.apply(&deletes(0)).await?;
    cluster.until_gone(&vms, &format!("{HALTED_SET}-0")).await?;
    // It went with its VM; so the garbage collector has looked.
    cluster
        .until_gone(&claims(cluster), &format!("data-{HALTED_SET}-0"))
        .await?;
    ensure!(
        kept_claim(cluster, 1).await? == before,
        "the claim that was kept was replaced"
    );
    cluster.apply(&deletes(2)).await?;
    observed(cluster, 2).await?;
    ensure!(kept_claim(cluster, 1).await? == before, "the VM has another claim");
    cluster
        .kubectl(&["delete", "vmset", "-n", NAMESPACE, HALTED_SET])
        .await?;
    Ok(())
}
