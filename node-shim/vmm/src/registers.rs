//! The registers that a vCPU starts with.
//!
//! * [`Entry::Linux64`]: Linux Documentation/arch/x86/boot.rst, "64-bit boot protocol".
//! * [`Entry::Pvh`]: Xen docs/misc/pvh.pandoc, "x86/HVM direct boot ABI".

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use node_shim_virtio::device::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout;

/// CR0: protection enabled.
const CR0_PE: u64 = 1;
/// CR0: extension type, always set.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled.
const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
/// x87 control word after FNINIT.
const FPU_CONTROL: u16 = 0x37f;
/// MXCSR after reset.
const MXCSR: u32 = 0x1f80;
/// `IA32_MISC_ENABLE`.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// Fast string instructions.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, everything write-back: without them Linux switches PAT off.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// Page-table entry: present and writable.
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
/// Page-directory entry: a page of 2 MiB.
const PAGE_LARGE: u64 = 1 << 7;

/// How and where the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Long mode at `address`, with the zero page in RSI.
    Linux64 {
        /// The kernel's 64-bit entry point.
        address: u64,
    },
    /// Protected mode without paging at `address`, with the start info in EBX.
    Pvh {
        /// The kernel's PVH entry point.
        address: u64,
    },
}

/// Why the registers cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    /// Guest memory below 1 MiB is missing: a defect.
    #[error("failed to write the boot structures: {0}")]
    Memory(#[from] GuestMemoryError),
    /// KVM refused.
    #[error("{what} failed: {source}")]
    Ioctl {
        /// Name of the ioctl.
        what: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// KVM does not know a register that every processor has.
    #[error("KVM accepted only {0} of the model-specific registers")]
    Msrs(usize),
}

/// The descriptors of the GDT: null, unused, code, data, task state. Linux wants code at 0x10 and data at 0x18.
fn descriptors(entry: Entry) -> [u64; 5] {
    let code = match entry {
        Entry::Linux64 { .. } => descriptor(0xa09b),
        Entry::Pvh { .. } => descriptor(0xc09b),
    };
    [
        0,
        0,
        code,
        descriptor(0xc093),
        descriptor(0x008b) & !(0xf << 48) & !0xffff | 0x67,
    ]
}

/// A descriptor with base 0 and limit 4 GiB; `flags` are bits 40 to 55 without the limit (Intel SDM volume 3A, 3.4.5).
const fn descriptor(flags: u64) -> u64 {
    ((flags & 0xf0ff) << 40) | (0xf << 48) | 0xffff
}

/// What KVM wants to know of a descriptor of ours.
#[allow(clippy::cast_possible_truncation, reason = "each field is masked to its width")]
fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let limit = (descriptor & 0xffff) | ((descriptor >> 32) & 0xf_0000);
    let granular = descriptor >> 55 & 1;
    kvm_segment {
        base: 0,
        limit: if granular == 1 {
            (limit << 12 | 0xfff) as u32
        } else {
            limit as u32
        },
        selector,
        type_: (descriptor >> 40 & 0xf) as u8,
        s: (descriptor >> 44 & 1) as u8,
        dpl: (descriptor >> 45 & 3) as u8,
        present: (descriptor >> 47 & 1) as u8,
        avl: (descriptor >> 52 & 1) as u8,
        l: (descriptor >> 53 & 1) as u8,
        db: (descriptor >> 54 & 1) as u8,
        g: granular as u8,
        ..Default::default()
    }
}

/// Writes the GDT and, for long mode, page tables that map the first 4 GiB one to one.
pub(crate) fn write_boot_tables(memory: &Memory, entry: Entry) -> Result<(), RegisterError> {
    for (index, descriptor) in (0_u64..).zip(descriptors(entry)) {
        memory.write_obj(descriptor, GuestAddress(layout::GDT + index * 8))?;
    }
    match entry {
        Entry::Pvh { .. } => {}
        Entry::Linux64 { .. } => {
            memory.write_obj(layout::PDPT | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
            for gib in 0..4_u64 {
                let directory = layout::PAGE_DIRECTORIES + gib * layout::PAGE_SIZE;
                memory.write_obj(directory | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PDPT + gib * 8))?;
                for page in 0..512_u64 {
                    let physical = (gib << 30) | (page << 21);
                    memory.write_obj(
                        physical | PAGE_LARGE | PAGE_PRESENT_WRITABLE,
                        GuestAddress(directory + page * 8),
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn special_registers(sregs: &mut kvm_sregs, entry: Entry) {
    let [_, _, code, data, task] = descriptors(entry);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(code, 0x10);
    for register in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *register = segment(data, 0x18);
    }
    sregs.tr = segment(task, 0x20);
    match entry {
        Entry::Linux64 { .. } => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::PML4;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Entry::Pvh { .. } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
    }
}

fn general_registers(entry: Entry) -> kvm_regs {
    let base = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match entry {
        Entry::Linux64 { address } => kvm_regs {
            rip: address,
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            ..base
        },
        Entry::Pvh { address } => kvm_regs {
            rip: address,
            rbx: layout::PVH_START_INFO,
            ..base
        },
    }
}

/// Sets what every vCPU has after a reset of the machine.
pub(crate) fn set_common(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(|_| RegisterError::Msrs(0))?;
    let accepted = ioctl("KVM_SET_MSRS", vcpu.set_msrs(&msrs))?;
    if accepted != entries.len() {
        return Err(RegisterError::Msrs(accepted));
    }
    let fpu = kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    };
    ioctl("KVM_SET_FPU", vcpu.set_fpu(&fpu))
}

/// Makes KVM look again at which vCPU has which APIC ID. It makes that map while a vCPU is created, but before the vCPU is one of the VM's
/// (`kvm_vm_ioctl_create_vcpu`), so the newest is missing from it until a guest's write to a local APIC makes it anew: INIT would not reach one that is plugged later. Setting a local APIC, even to what
/// it is, makes the map anew (`kvm_apic_set_state`).
pub(crate) fn join_interrupt_map(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let lapic = ioctl("KVM_GET_LAPIC", vcpu.get_lapic())?;
    ioctl("KVM_SET_LAPIC", vcpu.set_lapic(&lapic))
}

/// Sets the first vCPU's registers. The others wait for the guest's INIT and SIPI in KVM's local APIC.
pub(crate) fn set_boot_processor(vcpu: &VcpuFd, entry: Entry) -> Result<(), RegisterError> {
    let mut sregs = ioctl("KVM_GET_SREGS", vcpu.get_sregs())?;
    special_registers(&mut sregs, entry);
    ioctl("KVM_SET_SREGS", vcpu.set_sregs(&sregs))?;
    ioctl("KVM_SET_REGS", vcpu.set_regs(&general_registers(entry)))
}

fn ioctl<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, RegisterError> {
    result.map_err(|source| RegisterError::Ioctl { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_flat_and_present() {
        let code = segment(descriptors(Entry::Linux64 { address: 0 })[2], 0x10);
        assert_eq!((code.l, code.db, code.g, code.present, code.s), (1, 0, 1, 1, 1));
        assert_eq!((code.limit, code.type_), (u32::MAX, 0xb));
        let code = segment(descriptors(Entry::Pvh { address: 0 })[2], 0x10);
        assert_eq!((code.l, code.db, code.limit), (0, 1, u32::MAX));
        let data = segment(descriptors(Entry::Pvh { address: 0 })[3], 0x18);
        assert_eq!((data.type_, data.s, data.limit), (3, 1, u32::MAX));
        let task = segment(descriptors(Entry::Pvh { address: 0 })[4], 0x20);
        assert_eq!((task.type_, task.s, task.limit, task.present), (0xb, 0, 0x67, 1));
    }

    #[test]
    fn the_page_tables_map_four_gib_one_to_one() {
        let memory = crate::memory::map(&crate::memory::Plan::fixed(1 << 20), None).unwrap();
        write_boot_tables(&memory, Entry::Linux64 { address: 0 }).unwrap();
        let read = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        for physical in [0_u64, 0x20_0000, 0x4000_0000, 0xffe0_0000] {
            let pdpt = read(layout::PML4) & !0xfff;
            let directory = read(pdpt + (physical >> 30) * 8) & !0xfff;
            let page = read(directory + (physical >> 21 & 511) * 8);
            assert_eq!(page, physical | 0x83);
        }
    }
}
