//! The memory of a VM.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Quantity;

/// Least guest memory in bytes: what a small Linux kernel and its initrd need to boot.
pub const MIN_BYTES: u64 = 32 << 20;
/// Most guest memory in bytes: what the VMM maps.
pub const MAX_BYTES: u64 = 512 << 30;
/// Guest memory is a multiple of this many bytes.
pub const STEP_BYTES: u64 = 1 << 20;
/// What is plugged and unplugged while the VM runs is a multiple of this many bytes: a block of virtio-mem.
pub const PLUG_STEP_BYTES: u64 = 2 << 20;

/// The memory of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.maxSize) || !isQuantity(self.size) || !isQuantity(self.maxSize) || quantity(self.maxSize).compareTo(quantity(self.size)) >= 0")
        .message("memory.maxSize is below memory.size: write memory.size or more, or leave it out"),
    validation = Rule::new("!has(self.maxSize) || [self.size, self.maxSize].all(it, !isQuantity(it) || !quantity(it).isInteger() || quantity(it).asInteger() % 2097152 == 0)")
        .message("memory that can change while the VM runs is plugged in blocks of 2 MiB: write memory.size and memory.maxSize as whole multiples of 2Mi"),
    validation = Rule::new("!has(self.hugePages) || [self.size, has(self.maxSize) ? self.maxSize : self.size].all(it, !isQuantity(it) || !quantity(it).isInteger() || quantity(it).asInteger() % (self.hugePages == '1Gi' ? 1073741824 : 2097152) == 0)")
        .message("memory.size and memory.maxSize are not whole huge pages: write multiples of memory.hugePages"),
)]
pub struct Memory {
    /// Memory that the guest sees, for example `2Gi`: from 32Mi to 512Gi, a whole number of MiB. The pod asks for this and for a little more, for the
    /// VMM itself.
    #[x_kube(
        validation = Rule::new("isQuantity(self)").message("memory.size is not a quantity: write for example 512Mi or 2Gi"),
        validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('32Mi')) >= 0")
            .message("memory.size is below what a guest can boot with: write 32Mi or more"),
        validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('512Gi')) <= 0")
            .message("memory.size is above the largest VM: write 512Gi or less"),
        validation = Rule::new("!isQuantity(self) || (quantity(self).isInteger() && quantity(self).asInteger() % 1048576 == 0)")
            .message("memory.size is not a whole number of MiB: write for example 512Mi or 2Gi"),
    )]
    pub size: Quantity,
    /// Most memory that the guest can have without a restart: `size` can be changed up to it, and down to what the VM was started with, while the VM runs.
    /// Both are then whole multiples of 2Mi. `size` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("isQuantity(self)").message("memory.maxSize is not a quantity: write for example 4Gi"),
        validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity('512Gi')) <= 0")
            .message("memory.maxSize is above the largest VM: write 512Gi or less"),
        validation = Rule::new("!isQuantity(self) || quantity(self).isInteger()")
            .message("memory.maxSize is not a whole number of bytes: write for example 4Gi"),
    )]
    pub max_size: Option<Quantity>,
    /// The guest's memory is made of the node's huge pages of this size: all of it, up to `maxSize`, is taken when the VM starts. The node must have
    /// reserved them. If it is left out, the node gives memory as the guest uses it, in large pages where it has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// Size of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HugePages {
    /// 2 MiB.
    #[serde(rename = "2Mi")]
    TwoMebibytes,
    /// 1 GiB.
    #[serde(rename = "1Gi")]
    OneGibibyte,
}

impl HugePages {
    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::TwoMebibytes => 2 << 20,
            Self::OneGibibyte => 1 << 30,
        }
    }
}
