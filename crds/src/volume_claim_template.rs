//! Claims that each VM of a set has for itself.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Quantity, disk::VolumeMode, pod_metadata};

/// A claim that each VM of a set has for itself, named `<template>-<VM>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeClaimTemplate {
    /// Name, labels and annotations.
    pub metadata: ClaimMetadata,
    /// What is claimed.
    pub spec: ClaimSpec,
}

/// Metadata of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimMetadata {
    /// Name of the template: a disk whose `persistentVolumeClaim.claimName` is this has the VM's own claim.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Labels of each claim, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_metadata::labels")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('tandem.dev/') && key != 'app.kubernetes.io/managed-by')")
        .message("labels tandem.dev/* and app.kubernetes.io/managed-by belong to Tandem: leave them out"))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of each claim, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_metadata::annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// What is claimed, under the names that a `PersistentVolumeClaim` has for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSpec {
    /// `ReadWriteOnce` if it is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub access_modes: Vec<AccessMode>,
    /// How much is claimed.
    pub resources: ClaimResources,
    /// The cluster's default if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// Filesystem if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_mode: Option<VolumeMode>,
    /// Attributes that the storage has for the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub volume_attributes_class_name: Option<String>,
    /// What each claim is filled from: a snapshot, or another claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_source_ref: Option<DataSource>,
}

/// How a volume may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// Written on one node at a time.
    ReadWriteOnce,
    /// Written by one pod at a time.
    ReadWriteOncePod,
    /// Written on many nodes.
    ReadWriteMany,
    /// Read on many nodes.
    ReadOnlyMany,
}

impl AccessMode {
    /// The name in the Kubernetes API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadWriteOncePod => "ReadWriteOncePod",
            Self::ReadWriteMany => "ReadWriteMany",
            Self::ReadOnlyMany => "ReadOnlyMany",
        }
    }
}

/// How much is claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimResources {
    /// What the volume has at least.
    pub requests: ClaimRequests,
}

/// What a volume has at least.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRequests {
    /// Bytes, for example `10Gi`.
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))")
        .message("storage is not a number of bytes above zero: write for example 10Gi"))]
    pub storage: Quantity,
}

/// An object in the set's namespace that a claim is filled from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataSource {
    /// Its API group, for example `snapshot.storage.k8s.io`; leave it out for a `PersistentVolumeClaim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub api_group: Option<String>,
    /// Its kind, for example `VolumeSnapshot`.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What becomes of the claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRetentionPolicy {
    /// When the set is deleted; Retain if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_deleted: Option<Retention>,
    /// When the set becomes smaller, those of the VMs that go; Retain if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_scaled: Option<Retention>,
}

/// What becomes of a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Retention {
    /// It stays, and a VM of the same name has it again.
    #[default]
    Retain,
    /// It is deleted, once its VM has gone.
    Delete,
}
