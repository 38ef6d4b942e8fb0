//! What CPUID tells the guest: what KVM supports, made true for this vCPU of this many.
//!
//! Leaf numbers: Intel SDM volume 2A (CPUID); AMD APM volume 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1 ECX: the local APIC timer has a TSC deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the package has more than one logical processor.
const HTT: u32 = 1 << 28;
/// `0x8000_0001` ECX: legacy bit for more than one core (AMD).
const CMP_LEGACY: u32 = 1 << 1;

/// The leaves for the vCPU with APIC id `id` of `count`: one package, one core for each vCPU, one thread for each core.
pub(crate) fn for_vcpu(supported: &CpuId, id: u8, count: u8) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .copied()
        .collect();
    for entry in &mut entries {
        adapt(entry, id, count);
    }
    let highest = supported
        .as_slice()
        .iter()
        .map(|entry| entry.function)
        .filter(|leaf| *leaf < 0x4000_0000)
        .max();
    if highest.is_some_and(|leaf| leaf >= 0xb) {
        entries.extend(topology(id, count));
    }
    CpuId::from_entries(&entries)
}

/// Bits of an APIC id that tell `count` cores apart.
fn core_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u8, count: u8) {
    let (id, count_u32) = (u32::from(id), u32::from(count));
    match entry.function {
        0x1 => {
            entry.ebx = (entry.ebx & 0x0000_ffff) | (id << 24) | (count_u32 << 16);
            entry.ecx |= HYPERVISOR | TSC_DEADLINE;
            set(&mut entry.edx, HTT, count > 1);
        }
        // Intel cache parameters: cores in the package, and the processors that share the cache.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { count_u32 - 1 } else { 0 };
            entry.eax = (entry.eax & 0x0000_3fff) | (sharing << 14) | (((count_u32 - 1) & 0x3f) << 26);
        }
        0x8000_0001 => set(&mut entry.ecx, CMP_LEGACY, count > 1),
        0x8000_0008 => entry.ecx = (core_bits(count) << 12) | (count_u32 - 1),
        // AMD cache topology: processors that share the cache.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { count_u32 - 1 } else { 0 };
            entry.eax = (entry.eax & 0x0000_3fff) | (sharing << 14);
        }
        // AMD extended APIC id; this vCPU's core with one thread; one node.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, value: bool) {
    if value {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

/// Leaf 0xb, extended topology: a thread level of one, a core level of all, and the end.
fn topology(id: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    const SIGNIFICANT_INDEX: u32 = 1;
    let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: (kind << 8) | index,
        edx: u32::from(id),
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, core_bits(count), u32::from(count), 2),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0xd, 0, 0, 0),
            leaf(1, 0x0080_0f12, 0x0302_0800, 0, HTT),
            leaf(0xb, 9, 9, 9, 9),
            leaf(0xd, 7, 0, 0, 0),
            leaf(0x4000_0000, 0x4000_0001, 1, 2, 3),
            leaf(0x8000_0001, 0, 0, 0, 0),
            leaf(0x8000_0008, 0x3028, 0, 0x700f, 0),
            leaf(0x8000_001e, 9, 9, 9, 9),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id_and_the_bits_linux_needs() {
        for (id, count) in [(0, 1), (1, 2), (2, 3), (127, 128)] {
            let cpuid = for_vcpu(&supported(), id, count).unwrap();
            let one = leaf(&cpuid, 1, 0);
            assert_eq!(one.ebx, (u32::from(id) << 24) | (u32::from(count) << 16) | 0x0800);
            assert_eq!(one.ecx & (HYPERVISOR | TSC_DEADLINE), HYPERVISOR | TSC_DEADLINE);
            assert_eq!(one.edx & HTT != 0, count > 1);
            assert_eq!(leaf(&cpuid, 0xb, 1).ebx, u32::from(count));
            assert_eq!(leaf(&cpuid, 0xb, 1).edx, u32::from(id));
            assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, u32::from(id));
            assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx & 0xff, u32::from(count) - 1);
        }
    }

    #[test]
    fn core_ids_have_room_for_every_core() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7)] {
            assert_eq!(core_bits(count), bits, "{count}");
        }
    }

    #[test]
    fn the_hypervisor_leaves_are_kvms() {
        let cpuid = for_vcpu(&supported(), 0, 1).unwrap();
        assert_eq!(leaf(&cpuid, 0x4000_0000, 0), leaf(&supported(), 0x4000_0000, 0));
    }
}
