//! The kind `VirtualMachineSet`: a number of VMs that are alike.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::{apis::meta::v1::Condition, util::intstr::IntOrString};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    VirtualMachineSpec, pod_metadata,
    volume_claim_template::{ClaimRetentionPolicy, VolumeClaimTemplate},
};

/// Most VMs of a set.
pub const MAX_REPLICAS: i32 = 1000;

/// A number of VMs that are alike.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "tandem.dev",
    version = "v1alpha1",
    kind = "VirtualMachineSet",
    namespaced,
    status = "VirtualMachineSetStatus",
    derive = "PartialEq",
    doc = "A number of virtual machines that are alike. It has the scale subresource, so that `kubectl scale` and a HorizontalPodAutoscaler set their number.",
    shortname = "vmset",
    category = "all",
    category = "tandem",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas", description = "VMs that there should be"),
    printcolumn(name = "Current", type_ = "integer", json_path = ".status.replicas", description = "VMs that there are"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "VMs that are ready"),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.updatedReplicas", description = "VMs that are of the present template"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since the set was created"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,55}[a-z0-9])?$')").message(
        "metadata.name is the beginning of each VM's name: write at most 57 characters of a-z, 0-9 and -, with a letter or digit at both ends"
    ),
)]
#[cfg_attr(test, kube(cel))]
#[x_kube(
    validation = Rule::new("self.selector.matchLabels.all(key, has(self.template.metadata) && has(self.template.metadata.labels) && key in self.template.metadata.labels && self.template.metadata.labels[key] == self.selector.matchLabels[key])")
        .message("the set would not select its own VMs: write each of selector.matchLabels into template.metadata.labels too"),
    validation = Rule::new("self.selector == oldSelf.selector")
        .message("selector does not change: make another set"),
    validation = Rule::new("!(has(self.stableNames) && self.stableNames && has(self.updateStrategy) && has(self.updateStrategy.maxSurge))")
        .message("a VM with a stable name is replaced by one of the same name: leave updateStrategy.maxSurge out"),
    validation = Rule::new("(has(self.stableNames) && self.stableNames) == (has(oldSelf.stableNames) && oldSelf.stableNames)")
        .message("stableNames does not change: make another set"),
    validation = Rule::new("!has(self.volumeClaimTemplates) || size(self.volumeClaimTemplates) == 0 || (has(self.stableNames) && self.stableNames)")
        .message("claims belong to VMs that get their names back: write stableNames: true"),
    validation = Rule::new("!has(self.volumeClaimTemplates) || self.volumeClaimTemplates.all(claim, has(self.template.spec.disks) && self.template.spec.disks.exists(disk, has(disk.persistentVolumeClaim) && disk.persistentVolumeClaim.claimName == claim.metadata.name))")
        .message("no disk has one of volumeClaimTemplates: write its name as persistentVolumeClaim.claimName of a disk of the template"),
    validation = Rule::new("(has(self.volumeClaimTemplates) ? self.volumeClaimTemplates : []) == (has(oldSelf.volumeClaimTemplates) ? oldSelf.volumeClaimTemplates : [])")
        .message("volumeClaimTemplates do not change, because the claims are there: make another set"),
)]
pub struct VirtualMachineSetSpec {
    /// Number of VMs; 1 if it is left out. Leave it out where a `HorizontalPodAutoscaler` sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Labels by which the set knows its VMs, and an autoscaler their pods.
    pub selector: Selector,
    /// What each VM is.
    pub template: VirtualMachineTemplate,
    /// How VMs are replaced when the template changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategy>,
    /// Seconds for which a VM has been ready before the next one is replaced; 0 if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub min_ready_seconds: Option<i32>,
    /// The VMs are called `<set>-0`, `<set>-1` and so on, and one that is replaced gets its name back; if it is left out, they have names of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_names: Option<bool>,
    /// Claims that each VM has for itself, made before it and there again when it is replaced. They need stable names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.metadata.name == one.metadata.name))")
        .message("two of volumeClaimTemplates have the same name: write another one"))]
    pub volume_claim_templates: Vec<VolumeClaimTemplate>,
    /// What becomes of the claims; they stay, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_retention_policy: Option<ClaimRetentionPolicy>,
}

/// Labels by which a set knows its VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that each VM and its pod have.
    #[schemars(schema_with = "pod_metadata::labels")]
    #[x_kube(validation = Rule::new("size(self) > 0 && self.all(key, !key.startsWith('tandem.dev/') && key != 'app.kubernetes.io/managed-by')")
        .message("selector.matchLabels holds no label of your own: write at least one, for example app: web; tandem.dev/* and app.kubernetes.io/managed-by belong to Tandem"))]
    pub match_labels: BTreeMap<String, String>,
}

/// What each VM of a set is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineTemplate {
    /// Labels and annotations of each VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<pod_metadata::PodMetadata>,
    /// Spec of each VM.
    pub spec: VirtualMachineSpec,
}

/// How VMs are replaced when the template changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.type) || self.type != 'OnDelete' || !(has(self.maxSurge) || has(self.maxUnavailable))")
        .message("with OnDelete VMs are replaced when somebody deletes them: leave maxSurge and maxUnavailable out"),
    validation = Rule::new("!has(self.maxUnavailable) || !(self.maxUnavailable == 0 || self.maxUnavailable == '0%') || (has(self.maxSurge) && !(self.maxSurge == 0 || self.maxSurge == '0%'))")
        .message("with neither maxSurge nor maxUnavailable no VM can be replaced: write 1 or more for one of them"),
)]
pub struct UpdateStrategy {
    /// `RollingUpdate` if it is left out.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<UpdateKind>,
    /// VMs that there may be above `replicas` meanwhile: a number, or a share of `replicas` in percent, rounded up; 0 if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "share")]
    pub max_surge: Option<IntOrString>,
    /// VMs that may be missing of `replicas` meanwhile: a number, or a share of `replicas` in percent, rounded down; 1 if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "share")]
    pub max_unavailable: Option<IntOrString>,
}

/// When VMs are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UpdateKind {
    /// A few at a time, as soon as the template changes.
    #[default]
    RollingUpdate,
    /// When somebody deletes them.
    OnDelete,
}

/// What Tandem says about a set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineSetStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// VMs that there are.
    pub replicas: i32,
    /// VMs that are ready.
    pub ready_replicas: i32,
    /// VMs that have been ready for `minReadySeconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_replicas: Option<i32>,
    /// VMs that are of the present template.
    pub updated_replicas: i32,
    /// The selector as text, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub selector: Option<String>,
    /// Name of the present template, as in the label `tandem.dev/revision` of its VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub revision: Option<String>,
    /// Conditions: `Ready`, `Reconciling` and `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// Schema of a number or a percentage.
fn share(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maximum": MAX_REPLICAS,
        "maxLength": 4,
        "pattern": "^(100|[1-9]?[0-9])%$",
    })
}

impl VirtualMachineSetSpec {
    /// VMs that there should be.
    pub fn replicas(&self) -> i32 {
        self.replicas.unwrap_or(1)
    }

    /// For how long a VM has been ready before it counts as available.
    pub fn min_ready(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.min_ready_seconds.unwrap_or(0)).unwrap_or(0))
    }

    /// Whether VMs get their names back.
    pub fn has_stable_names(&self) -> bool {
        self.stable_names.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests;
