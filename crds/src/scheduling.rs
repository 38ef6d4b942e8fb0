//! Schemas of the fields that a VM takes from a pod under their own names.
//!
//! The types are Kubernetes' own, those of scheduling with their real schemas: [`crate::manifest`] leaves their long descriptions out and bounds their lists.

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// Schema of `affinity`.
pub(crate) fn affinity(generator: &mut SchemaGenerator) -> Schema {
    Affinity::json_schema(generator)
}

/// Schema of `tolerations`.
pub(crate) fn tolerations(generator: &mut SchemaGenerator) -> Schema {
    list(&Toleration::json_schema(generator))
}

/// Schema of `topologySpreadConstraints`.
pub(crate) fn topology_spread_constraints(generator: &mut SchemaGenerator) -> Schema {
    list(&TopologySpreadConstraint::json_schema(generator))
}

/// Schema of `imagePullSecrets`.
pub(crate) fn image_pull_secrets(_: &mut SchemaGenerator) -> Schema {
    let name =
        json_schema!({ "type": "string", "description": "Name of the Secret.", "minLength": 1, "maxLength": 253 });
    list(&json_schema!({ "type": "object", "required": ["name"], "properties": { "name": name } }))
}

fn list(item: &Schema) -> Schema {
    json_schema!({ "type": "array", "maxItems": 16, "items": item })
}
