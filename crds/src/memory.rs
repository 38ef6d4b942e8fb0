//! The memory of a VM.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::Quantity;

/// Least guest memory in bytes: what a small Linux kernel and its initrd need to boot.
pub const MIN_BYTES: u64 = 32 << 20;
/// Most guest memory in bytes.
pub const MAX_BYTES: u64 = 1 << 40;
/// Guest memory is a multiple of this many bytes.
pub const STEP_BYTES: u64 = 1 << 20;

/// The memory of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Memory that the guest sees, for example `2Gi`: from 32Mi to 1Ti, a whole number of MiB. The pod asks for this and for a little more, for the
    /// VMM itself.
    #[x_kube(
        validation = Rule::new("isQuantity(self)").message("memory.size is not a quantity: write for example 512Mi or 2Gi"),
        validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('32Mi')) >= 0")
            .message("memory.size is below what a guest can boot with: write 32Mi or more"),
        validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('1Ti')) <= 0")
            .message("memory.size is above the largest VM: write 1Ti or less"),
        validation = Rule::new("!isQuantity(self) || (quantity(self).isInteger() && quantity(self).asInteger() % 1048576 == 0)")
            .message("memory.size is not a whole number of MiB: write for example 512Mi or 2Gi"),
    )]
    pub size: Quantity,
}
