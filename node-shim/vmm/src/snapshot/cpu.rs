//! Whether the processor here has what the guest was told on the processor where it was saved (Intel SDM volume 2A, CPUID; AMD APM
//! volume 3, appendix E).

use kvm_bindings::kvm_cpuid_entry2;

/// Why a guest cannot run here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CpuError {
    /// Another manufacturer.
    #[error("the VM was saved on a {saved} processor and this one is {here}; restore it on a {saved} host")]
    Vendor {
        /// There.
        saved: String,
        /// Here.
        here: String,
    },
    /// Features that the guest may use are missing.
    #[error("this host's processor lacks what the VM was started with: {0}; restore it on a host that has it")]
    Features(String),
}

/// A register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Words of feature bits: leaf, subleaf, register, and the bits that are no features of the processor (set by the VMM, by the operating
/// system, or for this vCPU).
const WORDS: [(u32, u32, Register, u32); 15] = [
    // TSC deadline, OSXSAVE, hypervisor.
    (0x1, 0, Register::Ecx, 1 << 24 | 1 << 27 | 1 << 31),
    // HTT.
    (0x1, 0, Register::Edx, 1 << 28),
    (0x7, 0, Register::Ebx, 0),
    // OSPKE.
    (0x7, 0, Register::Ecx, 1 << 4),
    (0x7, 0, Register::Edx, 0),
    (0x7, 1, Register::Eax, 0),
    (0x7, 1, Register::Edx, 0),
    (0xd, 0, Register::Eax, 0),
    (0xd, 1, Register::Eax, 0),
    (0x4000_0001, 0, Register::Eax, 0),
    // CMP legacy.
    (0x8000_0001, 0, Register::Ecx, 1 << 1),
    (0x8000_0001, 0, Register::Edx, 0),
    (0x8000_0007, 0, Register::Edx, 0),
    (0x8000_0008, 0, Register::Ebx, 0),
    (0x8000_0021, 0, Register::Eax, 0),
];

/// Names of the features that differ most often between hosts, as /proc/cpuinfo has them.
const NAMES: [(u32, u32, Register, u32, &str); 26] = [
    (0x1, 0, Register::Ecx, 0, "pni"),
    (0x1, 0, Register::Ecx, 1, "pclmulqdq"),
    (0x1, 0, Register::Ecx, 9, "ssse3"),
    (0x1, 0, Register::Ecx, 12, "fma"),
    (0x1, 0, Register::Ecx, 17, "pcid"),
    (0x1, 0, Register::Ecx, 19, "sse4_1"),
    (0x1, 0, Register::Ecx, 20, "sse4_2"),
    (0x1, 0, Register::Ecx, 21, "x2apic"),
    (0x1, 0, Register::Ecx, 23, "popcnt"),
    (0x1, 0, Register::Ecx, 25, "aes"),
    (0x1, 0, Register::Ecx, 26, "xsave"),
    (0x1, 0, Register::Ecx, 28, "avx"),
    (0x1, 0, Register::Ecx, 30, "rdrand"),
    (0x7, 0, Register::Ebx, 3, "bmi1"),
    (0x7, 0, Register::Ebx, 5, "avx2"),
    (0x7, 0, Register::Ebx, 8, "bmi2"),
    (0x7, 0, Register::Ebx, 10, "invpcid"),
    (0x7, 0, Register::Ebx, 16, "avx512f"),
    (0x7, 0, Register::Ebx, 18, "rdseed"),
    (0x7, 0, Register::Ebx, 29, "sha_ni"),
    (0x7, 0, Register::Ecx, 3, "pku"),
    (0x7, 0, Register::Ecx, 9, "vaes"),
    (0x7, 0, Register::Edx, 4, "fsrm"),
    (0xd, 1, Register::Eax, 3, "xsaves"),
    (0x8000_0001, 0, Register::Edx, 26, "pdpe1gb"),
    (0x8000_0007, 0, Register::Edx, 8, "constant_tsc"),
];

/// Most features that a message names.
const NAMED_MAX: usize = 8;

/// Checks that everything that `saved` tells a guest is in `here`, which is what this host's KVM supports.
pub(crate) fn check(saved: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), CpuError> {
    let (saved_vendor, here_vendor) = (vendor(saved), vendor(here));
    if saved_vendor != here_vendor {
        return Err(CpuError::Vendor {
            saved: saved_vendor,
            here: here_vendor,
        });
    }
    let mut missing = Vec::new();
    for (leaf, subleaf, register, ignored) in WORDS {
        let lacking = word(saved, leaf, subleaf, register) & !word(here, leaf, subleaf, register) & !ignored;
        missing.extend(
            (0..32)
                .filter(|bit| lacking >> bit & 1 == 1)
                .map(|bit| name(leaf, subleaf, register, bit)),
        );
    }
    if missing.is_empty() {
        return Ok(());
    }
    let more = missing.len().saturating_sub(NAMED_MAX);
    missing.truncate(NAMED_MAX);
    let list = missing.join(", ");
    Err(CpuError::Features(match more {
        0 => list,
        more => format!("{list} and {more} more"),
    }))
}

fn entry(leaves: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
    leaves
        .iter()
        .find(|entry| entry.function == leaf && entry.index == subleaf)
}

fn word(leaves: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32, register: Register) -> u32 {
    entry(leaves, leaf, subleaf).map_or(0, |entry| match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    })
}

/// The manufacturer's name, twelve letters in leaf 0.
fn vendor(leaves: &[kvm_cpuid_entry2]) -> String {
    let Some(entry) = entry(leaves, 0, 0) else {
        return "unknown".to_owned();
    };
    let bytes: Vec<u8> = [entry.ebx, entry.edx, entry.ecx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    String::from_utf8_lossy(&bytes).escape_default().to_string()
}

fn name(leaf: u32, subleaf: u32, register: Register, bit: u32) -> String {
    let known = NAMES
        .iter()
        .find(|(a, b, c, d, _)| (*a, *b, *c, *d) == (leaf, subleaf, register, bit));
    match known {
        Some((_, _, _, _, name)) => (*name).to_owned(),
        None => format!("CPUID {leaf:x}h.{subleaf} {register:?} bit {bit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn intel() -> kvm_cpuid_entry2 {
        leaf(0, 0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69])
    }

    #[test]
    fn a_processor_with_more_fits_and_one_with_less_is_refused_by_name() {
        let saved = [intel(), leaf(1, 0, [0, 0, 1 << 28, 0]), leaf(7, 0, [0, 1 << 5, 0, 0])];
        let more = [
            intel(),
            leaf(1, 0, [0, 0, u32::MAX, 0]),
            leaf(7, 0, [0, u32::MAX, 0, 0]),
        ];
        assert_eq!(check(&saved, &saved), Ok(()));
        assert_eq!(check(&saved, &more), Ok(()));
        let error = check(&more, &saved).unwrap_err().to_string();
        assert!(error.contains("pni") && error.contains("more"), "{error}");
        let less = [intel(), leaf(1, 0, [0, 0, 1 << 28, 0])];
        assert_eq!(check(&saved, &less), Err(CpuError::Features("avx2".to_owned())));
    }

    #[test]
    fn bits_that_are_not_the_processors_do_not_count() {
        let saved = [intel(), leaf(1, 0, [0, 0, 1 << 31 | 1 << 27 | 1 << 24, 1 << 28])];
        assert_eq!(check(&saved, &[intel()]), Ok(()));
    }

    #[test]
    fn another_manufacturer_is_refused() {
        let amd = leaf(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
        let error = check(&[amd], &[intel()]).unwrap_err();
        let expected = CpuError::Vendor {
            saved: "AuthenticAMD".to_owned(),
            here: "GenuineIntel".to_owned(),
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn a_feature_without_a_name_is_numbered() {
        assert_eq!(name(7, 0, Register::Edx, 31), "CPUID 7h.0 Edx bit 31");
    }
}
