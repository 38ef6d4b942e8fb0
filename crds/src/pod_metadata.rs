//! Labels and annotations that a VM's pod carries.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Labels and annotations that a VM's pod carries, so that Services, NetworkPolicies and quotas select it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodMetadata {
    /// Labels of the pod, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('tandem.dev/') && key != 'app.kubernetes.io/managed-by')")
        .message("labels tandem.dev/* and app.kubernetes.io/managed-by belong to Tandem: leave them out"))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('tandem.dev/'))")
        .message("annotations tandem.dev/* belong to Tandem: leave them out"))]
    #[x_kube(validation = Rule::new("!('k8s.v1.cni.cncf.io/networks' in self)")
        .message("the annotation k8s.v1.cni.cncf.io/networks follows from spec.interfaces: write multus.networkName there instead"))]
    pub annotations: BTreeMap<String, String>,
}

/// Schema of a map of labels, as `k8s.io/apimachinery/pkg/util/validation` checks their values.
pub(crate) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
        },
    })
}

/// Schema of a map of annotations.
pub(crate) fn annotations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": { "type": "string", "maxLength": 4096 },
    })
}
