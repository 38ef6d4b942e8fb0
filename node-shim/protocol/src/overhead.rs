//! How much memory a VM costs beyond its guest's RAM: what the shim pod requests on top of it.
//!
//! | part | bytes | why |
//! |---|---|---|
//! | VMM | 12 MiB | `node-shim`'s text, heap and stacks (about 4 MiB resident), the pause container, a reserve |
//! | page tables | 2 × RAM / 512 | 8 bytes for each 4 KiB page, once in KVM's tables and once in the process's |
//! | each vCPU | 1 MiB | thread stack, KVM's vCPU, FPU and LAPIC state |
//! | each device | 1 MiB | buffers in flight, an overlay's block map |

const MIB: u64 = 1 << 20;
const VMM_BYTES: u64 = 12 * MIB;
const VCPU_BYTES: u64 = MIB;
const DEVICE_BYTES: u64 = MIB;
/// A page-table entry of 8 bytes maps a page of 4096.
const PAGE_TABLE_RATIO: u64 = 512;

/// Bytes that a VM needs beyond `memory_bytes` of guest RAM, rounded up to a MiB.
pub const fn overhead_bytes(memory_bytes: u64, vcpus: u64, devices: u64) -> u64 {
    let bytes = VMM_BYTES + 2 * (memory_bytes / PAGE_TABLE_RATIO) + vcpus * VCPU_BYTES + devices * DEVICE_BYTES;
    bytes.div_ceil(MIB) * MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gib_with_two_vcpus_and_three_devices_costs_21_mib() {
        assert_eq!(overhead_bytes(1 << 30, 2, 3), 21 * MIB);
    }
}
