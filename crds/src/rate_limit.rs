//! How much a device may move.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::Quantity;

/// How much a device may move. What is left out has no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.bytesBurst) || has(self.bytesPerSecond)")
        .message("bytesBurst is what a limit lets pass at once: write bytesPerSecond too, or leave it out"),
    validation = Rule::new("!has(self.operationsBurst) || has(self.operationsPerSecond)")
        .message("operationsBurst is what a limit lets pass at once: write operationsPerSecond too, or leave it out"),
)]
pub struct RateLimit {
    /// Bytes in a second, for example `100M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isInteger() && quantity(self).isGreaterThan(quantity('0'))")
        .message("bytesPerSecond is not a number of bytes above zero: write for example 100M"))]
    pub bytes_per_second: Option<Quantity>,
    /// Most bytes at once after a pause; what passes in a second if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isInteger() && quantity(self).isGreaterThan(quantity('0'))")
        .message("bytesBurst is not a number of bytes above zero: write for example 200M"))]
    pub bytes_burst: Option<Quantity>,
    /// Requests of a disk, or packets of an interface, in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub operations_per_second: Option<i64>,
    /// Most requests or packets at once after a pause; what passes in a second if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub operations_burst: Option<i64>,
}
