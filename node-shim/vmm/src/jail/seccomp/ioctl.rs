//! Numbers of the `ioctl` requests that are made (Linux include/uapi: `asm-generic/ioctl.h`, `linux/kvm.h`, `linux/if_tun.h`, `linux/fs.h`).

use kvm_bindings as kvm;

const WRITE: u32 = 1;
const READ: u32 = 2;
/// `KVMIO`.
const KVM: u32 = 0xae;

/// `_IOC`: direction, size of what the argument points to, type, number.
#[allow(clippy::cast_possible_truncation, reason = "a size of 14 bits")]
const fn number<T>(direction: u32, kind: u32, number: u32) -> u32 {
    direction << 30 | (size_of::<T>() as u32 & 0x3fff) << 16 | kind << 8 | number
}

const fn plain(number: u32) -> u32 {
    KVM << 8 | number
}

const fn write<T>(request: u32) -> u32 {
    number::<T>(WRITE, KVM, request)
}

const fn read<T>(request: u32) -> u32 {
    number::<T>(READ, KVM, request)
}

const fn both<T>(request: u32) -> u32 {
    number::<T>(READ | WRITE, KVM, request)
}

pub(super) const KVM_RUN: u32 = plain(0x80);
pub(super) const KVM_IRQ_LINE: u32 = write::<kvm::kvm_irq_level>(0x61);
pub(super) const KVM_IOEVENTFD: u32 = write::<kvm::kvm_ioeventfd>(0x79);
pub(super) const KVM_IRQFD: u32 = write::<kvm::kvm_irqfd>(0x76);
pub(super) const KVM_SET_GSI_ROUTING: u32 = write::<kvm::kvm_irq_routing>(0x6a);
pub(super) const KVM_SET_MP_STATE: u32 = write::<kvm::kvm_mp_state>(0x99);
pub(super) const KVM_GET_REGS: u32 = read::<kvm::kvm_regs>(0x81);
pub(super) const KVM_GET_SREGS: u32 = read::<kvm::kvm_sregs>(0x83);

/// What a machine's start, its reset, its state and its end take, beside what its vCPUs do themselves.
pub(super) const MACHINE: &[u32] = &[
    // Of /dev/kvm.
    plain(0x01),                     // KVM_CREATE_VM
    plain(0x03),                     // KVM_CHECK_EXTENSION
    plain(0x04),                     // KVM_GET_VCPU_MMAP_SIZE
    both::<kvm::kvm_msr_list>(0x02), // KVM_GET_MSR_INDEX_LIST
    both::<kvm::kvm_cpuid2>(0x05),   // KVM_GET_SUPPORTED_CPUID
    // Of the VM.
    plain(0x41),                                     // KVM_CREATE_VCPU
    write::<kvm::kvm_dirty_log>(0x42),               // KVM_GET_DIRTY_LOG
    write::<kvm::kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
    plain(0x47),                                     // KVM_SET_TSS_ADDR
    write::<u64>(0x48),                              // KVM_SET_IDENTITY_MAP_ADDR
    plain(0x60),                                     // KVM_CREATE_IRQCHIP
    both::<kvm::kvm_irqchip>(0x62),                  // KVM_GET_IRQCHIP
    read::<kvm::kvm_irqchip>(0x63),                  // KVM_SET_IRQCHIP: its direction is the wrong way round
    write::<kvm::kvm_pit_config>(0x77),              // KVM_CREATE_PIT2
    read::<kvm::kvm_pit_state2>(0x9f),               // KVM_GET_PIT2
    write::<kvm::kvm_pit_state2>(0xa0),              // KVM_SET_PIT2
    write::<kvm::kvm_clock_data>(0x7b),              // KVM_SET_CLOCK
    read::<kvm::kvm_clock_data>(0x7c),               // KVM_GET_CLOCK
    // Of a vCPU.
    plain(0xad),                         // KVM_KVMCLOCK_CTRL
    plain(0xa2),                         // KVM_SET_TSC_KHZ
    plain(0xa3),                         // KVM_GET_TSC_KHZ
    write::<kvm::kvm_cpuid2>(0x90),      // KVM_SET_CPUID2
    both::<kvm::kvm_msrs>(0x88),         // KVM_GET_MSRS
    write::<kvm::kvm_msrs>(0x89),        // KVM_SET_MSRS
    write::<kvm::kvm_regs>(0x82),        // KVM_SET_REGS
    write::<kvm::kvm_sregs>(0x84),       // KVM_SET_SREGS
    write::<kvm::kvm_fpu>(0x8d),         // KVM_SET_FPU
    read::<kvm::kvm_lapic_state>(0x8e),  // KVM_GET_LAPIC
    write::<kvm::kvm_lapic_state>(0x8f), // KVM_SET_LAPIC
    read::<kvm::kvm_mp_state>(0x98),     // KVM_GET_MP_STATE
    read::<kvm::kvm_vcpu_events>(0x9f),  // KVM_GET_VCPU_EVENTS
    write::<kvm::kvm_vcpu_events>(0xa0), // KVM_SET_VCPU_EVENTS
    read::<kvm::kvm_debugregs>(0xa1),    // KVM_GET_DEBUGREGS
    write::<kvm::kvm_debugregs>(0xa2),   // KVM_SET_DEBUGREGS
    read::<kvm::kvm_xsave>(0xa4),        // KVM_GET_XSAVE
    read::<kvm::kvm_xsave>(0xcf),        // KVM_GET_XSAVE2
    write::<kvm::kvm_xsave>(0xa5),       // KVM_SET_XSAVE
    read::<kvm::kvm_xcrs>(0xa6),         // KVM_GET_XCRS
    write::<kvm::kvm_xcrs>(0xa7),        // KVM_SET_XCRS
];

/// `tcsetattr(3)`: `TCSETS2` and, where that is refused, `TCSETS`.
pub(super) const TERMINAL_RESTORE: [u32; 2] = [0x402c_542b, 0x5402];
pub(super) const TIOCGWINSZ: u32 = 0x5413;
pub(super) const FIONBIO: u32 = 0x5421;
pub(super) const BLKDISCARD: u32 = 0x1277;
pub(super) const FICLONE: u32 = 0x4004_9409;
pub(super) const TUNSETOFFLOAD: u32 = 0x4004_54d0;
pub(super) const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
pub(super) const TUNSETQUEUE: u32 = 0x4004_54d9;
