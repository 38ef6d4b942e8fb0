//! Saving and restoring one vCPU (Linux Documentation/virt/kvm/api.rst). The order counts: what KVM has on its way is flushed into the
//! state by `KVM_GET_MP_STATE`, and a timer's deadline means something only to a local APIC that is there.

use kvm_bindings::{CpuId, Msrs, Xsave, kvm_cpuid_entry2, kvm_msr_entry, kvm_xsave};
use kvm_ioctls::VcpuFd;

use crate::snapshot::state::VcpuState;

/// Most registers of one `KVM_GET_MSRS`.
const MSRS_MAX: usize = 128;
/// Time stamp counter.
const MSR_TSC: u32 = 0x10;
/// Deadline of the local APIC's timer, by the time stamp counter.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// EFER: AMD's virtualisation is on.
const EFER_SVME: u64 = 1 << 12;
/// CR4: Intel's virtualisation is on.
const CR4_VMXE: u64 = 1 << 13;
/// 32-bit words of the XSAVE area that every KVM has.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / 4;
/// Largest XSAVE area in bytes that we believe: with everything that x86 has so far it is 11 KiB.
const XSAVE_MAX_BYTES: usize = 64 * 1024;

/// Why a vCPU cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuStateError {
    /// KVM refused.
    #[error("{what} failed: {source}")]
    Ioctl {
        /// Name of the ioctl.
        what: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// The guest is a hypervisor.
    #[error("the guest runs virtual machines of its own, which cannot be saved; stop them first")]
    Nested,
    /// KVM does not take a register's value.
    #[error(
        "this host's KVM does not take {value:#x} for the model-specific register {index:#x}; restore on a host like the one that the VM was saved on"
    )]
    Msr {
        /// The register.
        index: u32,
        /// Its value.
        value: u64,
    },
    /// The processor's extended state is larger there than here.
    #[error(
        "the VM's extended processor state has {saved} bytes and this host's has {here}; restore on a host like the one that it was saved on"
    )]
    Xsave {
        /// In the snapshot.
        saved: usize,
        /// Here.
        here: usize,
    },
    /// A list is too long.
    #[error("the state of a vCPU has too many {0}")]
    TooMany(&'static str),
}

fn ioctl<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, VcpuStateError> {
    result.map_err(|source| VcpuStateError::Ioctl { what, source })
}

/// What of the host's KVM a vCPU's state depends on.
pub(crate) struct Host<'a> {
    /// Registers that a vCPU may have.
    pub(crate) msrs: &'a [u32],
    /// Bytes of the XSAVE area, at least those of `kvm_xsave`.
    pub(crate) xsave_bytes: usize,
}

/// The state of a vCPU that is at rest, whose guest was told `cpuid`.
pub(crate) fn save(vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2], host: &Host<'_>) -> Result<VcpuState, VcpuStateError> {
    let mp_state = ioctl("KVM_GET_MP_STATE", vcpu.get_mp_state())?;
    let regs = ioctl("KVM_GET_REGS", vcpu.get_regs())?;
    let sregs = ioctl("KVM_GET_SREGS", vcpu.get_sregs())?;
    if sregs.efer & EFER_SVME != 0 || sregs.cr4 & CR4_VMXE != 0 {
        return Err(VcpuStateError::Nested);
    }
    let xsave = save_xsave(vcpu, host.xsave_bytes)?;
    let xcrs = ioctl("KVM_GET_XCRS", vcpu.get_xcrs())?;
    let debug_registers = ioctl("KVM_GET_DEBUGREGS", vcpu.get_debug_regs())?;
    let lapic = ioctl("KVM_GET_LAPIC", vcpu.get_lapic())?;
    let mut msrs = read_msrs(vcpu, host.msrs)?;
    arm_expired_timer(&mut msrs);
    let events = ioctl("KVM_GET_VCPU_EVENTS", vcpu.get_vcpu_events())?;
    Ok(VcpuState {
        cpuid: cpuid.to_vec(),
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_registers,
        lapic,
        msrs,
        events,
    })
}

/// Sets everything of a new vCPU but what [`restore_time`] does.
pub(crate) fn restore(vcpu: &VcpuFd, state: &VcpuState, host: &Host<'_>) -> Result<(), VcpuStateError> {
    let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| VcpuStateError::TooMany("CPUID leaves"))?;
    ioctl("KVM_SET_CPUID2", vcpu.set_cpuid2(&cpuid))?;
    ioctl("KVM_SET_MP_STATE", vcpu.set_mp_state(state.mp_state))?;
    ioctl("KVM_SET_REGS", vcpu.set_regs(&state.regs))?;
    ioctl("KVM_SET_SREGS", vcpu.set_sregs(&state.sregs))?;
    restore_xsave(vcpu, &state.xsave, host.xsave_bytes)?;
    ioctl("KVM_SET_XCRS", vcpu.set_xcrs(&state.xcrs))?;
    ioctl("KVM_SET_DEBUGREGS", vcpu.set_debug_regs(&state.debug_registers))?;
    ioctl("KVM_SET_LAPIC", vcpu.set_lapic(&state.lapic))?;
    let plain = state.msrs.iter().filter(|(index, _)| !is_time(*index));
    write_msrs(vcpu, &plain.copied().collect::<Vec<_>>())?;
    ioctl("KVM_SET_VCPU_EVENTS", vcpu.set_vcpu_events(&state.events))
}

const fn is_time(index: u32) -> bool {
    matches!(index, MSR_TSC | MSR_TSC_DEADLINE)
}

/// Sets the time stamp counter to what it would be by now, `elapsed_ticks` after the snapshot, and then the timer's deadline.
///
/// Where KVM has no say over the counter (`KVM_PVM`: the guest reads the host's) its writes have no effect, and guests use kvmclock.
pub(crate) fn restore_time(vcpu: &VcpuFd, state: &VcpuState, elapsed_ticks: u64) -> Result<(), VcpuStateError> {
    for time in [MSR_TSC, MSR_TSC_DEADLINE] {
        for (index, value) in state.msrs.iter().filter(|(index, _)| *index == time) {
            let value = match *index {
                MSR_TSC => value.wrapping_add(elapsed_ticks),
                _ => *value,
            };
            write_msrs(vcpu, &[(*index, value)])?;
        }
    }
    Ok(())
}

/// A deadline that has passed reads as zero, though its interrupt may still be on its way: it is set to a time that has passed, so that
/// the timer fires again. One interrupt too many does no harm, one too few stops a guest's clock.
fn arm_expired_timer(msrs: &mut [(u32, u64)]) {
    let now = msrs
        .iter()
        .find(|(index, _)| *index == MSR_TSC)
        .map(|(_, value)| *value);
    let deadline = msrs.iter_mut().find(|(index, _)| *index == MSR_TSC_DEADLINE);
    if let (Some(now), Some((_, deadline @ 0))) = (now, deadline) {
        *deadline = now;
    }
}

fn save_xsave(vcpu: &VcpuFd, bytes: usize) -> Result<Vec<u32>, VcpuStateError> {
    let mut xsave = new_xsave(bytes)?;
    // SAFETY: the area has the size that KVM_CAP_XSAVE2 tells, or more.
    ioctl("KVM_GET_XSAVE2", unsafe { get_xsave(vcpu, bytes, &mut xsave) })?;
    let mut words = xsave.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(xsave.as_slice());
    Ok(words)
}

/// `KVM_GET_XSAVE2`, or its predecessor where the area has no more than that one's.
///
/// # Safety
/// As of `VcpuFd::get_xsave2`.
unsafe fn get_xsave(vcpu: &VcpuFd, bytes: usize, xsave: &mut Xsave) -> Result<(), kvm_ioctls::Error> {
    if bytes > size_of::<kvm_xsave>() {
        // SAFETY: the caller's.
        return unsafe { vcpu.get_xsave2(xsave) };
    }
    let plain = vcpu.get_xsave()?;
    // SAFETY: only the area is replaced; the length stays.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region = plain.region;
    Ok(())
}

fn new_xsave(bytes: usize) -> Result<Xsave, VcpuStateError> {
    if bytes > XSAVE_MAX_BYTES {
        return Err(VcpuStateError::TooMany("bytes of extended state"));
    }
    let extra = (bytes / 4).saturating_sub(XSAVE_WORDS);
    Xsave::new(extra).map_err(|_| VcpuStateError::TooMany("bytes of extended state"))
}

fn restore_xsave(vcpu: &VcpuFd, words: &[u32], bytes: usize) -> Result<(), VcpuStateError> {
    let (Some((area, extra)), true) = (words.split_first_chunk::<XSAVE_WORDS>(), words.len() * 4 <= bytes) else {
        return Err(VcpuStateError::Xsave {
            saved: words.len() * 4,
            here: bytes,
        });
    };
    let mut xsave = new_xsave(bytes)?;
    for (to, from) in xsave.as_mut_slice().iter_mut().zip(extra) {
        *to = *from;
    }
    // SAFETY: only the area is replaced; the length stays.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region = *area;
    // SAFETY: the area has the size that KVM_CAP_XSAVE2 tells.
    ioctl("KVM_SET_XSAVE", unsafe { vcpu.set_xsave2(&xsave) })
}

fn msrs_of(values: &[(u32, u64)]) -> Result<Msrs, VcpuStateError> {
    let entries: Vec<kvm_msr_entry> = values
        .iter()
        .map(|(index, data)| kvm_msr_entry {
            index: *index,
            data: *data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| VcpuStateError::TooMany("registers"))
}

/// Reads those registers that the vCPU has.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, VcpuStateError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk: Vec<(u32, u64)> = rest.iter().take(MSRS_MAX).map(|index| (*index, 0)).collect();
        let mut msrs = msrs_of(&chunk)?;
        let read = ioctl("KVM_GET_MSRS", vcpu.get_msrs(&mut msrs))?;
        let entries = msrs.as_slice().iter().take(read);
        values.extend(entries.map(|entry| (entry.index, entry.data)));
        // KVM stops at the first that this vCPU does not have.
        let done = if read < chunk.len() { read + 1 } else { read };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(values)
}

/// Writes registers. KVM stops at the first whose value it does not take; that is no error if it has the value already, as read-only
/// registers do.
fn write_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), VcpuStateError> {
    let mut rest = values;
    while !rest.is_empty() {
        let chunk = rest.get(..MSRS_MAX).unwrap_or(rest);
        let written = ioctl("KVM_SET_MSRS", vcpu.set_msrs(&msrs_of(chunk)?))?;
        rest = rest.get(written..).unwrap_or_default();
        if written == chunk.len() {
            continue;
        }
        let Some(((index, value), after)) = rest.split_first() else {
            break;
        };
        if read_msrs(vcpu, &[*index])?.first() != Some(&(*index, *value)) {
            return Err(VcpuStateError::Msr {
                index: *index,
                value: *value,
            });
        }
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_deadline_that_has_passed_is_armed_again() {
        let mut msrs = [(MSR_TSC, 1000), (MSR_TSC_DEADLINE, 0)];
        arm_expired_timer(&mut msrs);
        assert_eq!(msrs[1], (MSR_TSC_DEADLINE, 1000));
        let mut msrs = [(MSR_TSC, 1000), (MSR_TSC_DEADLINE, 2000)];
        arm_expired_timer(&mut msrs);
        assert_eq!(msrs[1], (MSR_TSC_DEADLINE, 2000));
        let mut msrs = [(MSR_TSC_DEADLINE, 0)];
        arm_expired_timer(&mut msrs);
        assert_eq!(msrs[0], (MSR_TSC_DEADLINE, 0));
    }
}
