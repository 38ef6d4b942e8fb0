//! Saving and restoring what KVM has of a VM beside its vCPUs, and its log of dirty pages.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, KVM_MEM_LOG_DIRTY_PAGES, kvm_clock_data, kvm_irqchip, kvm_xsave};
use kvm_ioctls::{Cap, VcpuFd};

use super::{Host, KvmError, Vm, memory_slots, named};
use crate::snapshot::state::{ChipsState, ClockState};

/// Registers of `KVM_PVM` guests that are not in `KVM_GET_MSR_INDEX_LIST` (virt-pvm/linux, `asm/pvm_para.h`).
const PVM_MSRS: std::ops::RangeInclusive<u32> = 0x4b56_4df0..=0x4b56_4df7;
/// How far the frequencies of two time stamp counters may be apart, in millionths: what Linux guests put down to drift.
const TSC_TOLERANCE_PPM: u64 = 250;

impl Host {
    /// The model-specific registers that a vCPU may have.
    pub(crate) fn msr_indices(&self) -> Result<Vec<u32>, KvmError> {
        let list = named("KVM_GET_MSR_INDEX_LIST", self.kvm.get_msr_index_list())?;
        let mut indices = list.as_slice().to_vec();
        indices.extend(PVM_MSRS);
        Ok(indices)
    }
}

impl Vm {
    /// Bytes of a vCPU's XSAVE area.
    pub(crate) fn xsave_bytes(&self) -> usize {
        let bytes = self.fd().check_extension_int(Cap::Xsave2);
        usize::try_from(bytes).unwrap_or(0).max(size_of::<kvm_xsave>())
    }

    /// Interrupt controllers and timer. vCPUs and devices are at rest.
    pub(crate) fn save_chips(&self) -> Result<ChipsState, KvmError> {
        let fd = self.fd();
        let mut controllers: [kvm_irqchip; 3] = Default::default();
        for (chip_id, controller) in (0..).zip(&mut controllers) {
            controller.chip_id = chip_id;
            named("KVM_GET_IRQCHIP", fd.get_irqchip(controller))?;
        }
        let timer = named("KVM_GET_PIT2", fd.get_pit2())?;
        Ok(ChipsState { controllers, timer })
    }

    /// Undoes [`Self::save_chips`]: the ids are ours, whatever the state says.
    pub(crate) fn restore_chips(&self, state: &ChipsState) -> Result<(), KvmError> {
        let fd = self.fd();
        for (chip_id, controller) in (0..).zip(&state.controllers) {
            let controller = kvm_irqchip { chip_id, ..*controller };
            named("KVM_SET_IRQCHIP", fd.set_irqchip(&controller))?;
        }
        named("KVM_SET_PIT2", fd.set_pit2(&state.timer))
    }

    /// The clocks now. KVM tells the wall clock of the same moment where it can.
    pub(crate) fn save_clock(&self, vcpu: &VcpuFd) -> Result<ClockState, KvmError> {
        let clock = named("KVM_GET_CLOCK", self.fd().get_clock())?;
        let real_ns = if clock.flags & KVM_CLOCK_REALTIME == 0 {
            now_ns()
        } else {
            clock.realtime
        };
        Ok(ClockState {
            guest_ns: clock.clock,
            real_ns,
            tsc_khz: tsc_khz(vcpu),
        })
    }

    /// Sets kvmclock to what it would be by now: the guest sees the time between as if it had slept, and its wall clock is right.
    pub(crate) fn restore_clock(&self, state: &ClockState) -> Result<(), KvmError> {
        let clock = kvm_clock_data {
            clock: state.guest_ns.saturating_add(elapsed_ns(state, now_ns())),
            ..Default::default()
        };
        named("KVM_SET_CLOCK", self.fd().set_clock(&clock))
    }

    /// Makes a vCPU's time stamp counter run as fast as the saved one. KVM can do that where the processor scales; where it cannot, a
    /// counter that runs at another speed is an error.
    pub(crate) fn restore_tsc_speed(&self, vcpu: &VcpuFd, state: &ClockState) -> Result<(), KvmError> {
        let here = tsc_khz(vcpu);
        if is_same_speed(state.tsc_khz, here) {
            return Ok(());
        }
        if !self.fd().check_extension(Cap::TscControl) {
            return Err(KvmError::TscSpeed {
                saved_khz: state.tsc_khz,
                here_khz: here,
            });
        }
        named("KVM_SET_TSC_KHZ", vcpu.set_tsc_khz(state.tsc_khz))
    }

    /// Starts or ends KVM's log of the pages that the guest writes.
    #[allow(dead_code, reason = "live migration will use it")]
    pub(crate) fn log_dirty_pages(&self, on: bool) -> Result<(), KvmError> {
        let fd = self.fd();
        for mut slot in memory_slots(&self.memory) {
            slot.flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
            // SAFETY: the mapping is live, and `Vm` holds the memory for as long as it has the VM.
            let result = unsafe { fd.set_user_memory_region(slot) };
            named("KVM_SET_USER_MEMORY_REGION", result)?;
        }
        Ok(())
    }

    /// For each region of guest memory, one bit for each page that was written since the last call.
    #[allow(dead_code, reason = "live migration will use it")]
    pub(crate) fn take_dirty_pages(&self) -> Result<Vec<Vec<u64>>, KvmError> {
        let fd = self.fd();
        let slots = memory_slots(&self.memory);
        slots
            .map(|slot| {
                let bytes = usize::try_from(slot.memory_size).unwrap_or(usize::MAX);
                named("KVM_GET_DIRTY_LOG", fd.get_dirty_log(slot.slot, bytes))
            })
            .collect()
    }
}

/// The host's wall clock in nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Time since a snapshot; none when the wall clock was set back.
pub(crate) fn elapsed_ns(state: &ClockState, now_ns: u64) -> u64 {
    now_ns.saturating_sub(state.real_ns)
}

/// Ticks of the saved time stamp counter in so many nanoseconds.
pub(crate) fn ticks(tsc_khz: u32, elapsed_ns: u64) -> u64 {
    let ticks = u128::from(elapsed_ns) * u128::from(tsc_khz) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Frequency of a vCPU's time stamp counter in kHz, 0 where KVM does not tell.
fn tsc_khz(vcpu: &VcpuFd) -> u32 {
    vcpu.get_tsc_khz().unwrap_or(0)
}

fn is_same_speed(saved_khz: u32, here_khz: u32) -> bool {
    if saved_khz == 0 || here_khz == 0 {
        return true;
    }
    let difference = u64::from(saved_khz.abs_diff(here_khz));
    difference * 1_000_000 <= u64::from(saved_khz) * TSC_TOLERANCE_PPM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_goes_on_at_its_own_speed() {
        let clock = |real_ns| ClockState {
            guest_ns: 0,
            real_ns,
            tsc_khz: 2_800_000,
        };
        assert_eq!(elapsed_ns(&clock(1_000), 3_000), 2_000);
        assert_eq!(elapsed_ns(&clock(3_000), 1_000), 0, "the wall clock was set back");
        assert_eq!(ticks(2_800_000, 2_000), 5_600);
        assert_eq!(ticks(u32::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn small_differences_of_speed_are_drift() {
        for (saved, here, same) in [
            (2_800_000, 2_800_000, true),
            (2_800_000, 2_800_700, true),
            (2_800_000, 2_800_701, false),
            (2_800_000, 2_000_000, false),
            (0, 2_000_000, true),
            (2_800_000, 0, true),
        ] {
            assert_eq!(is_same_speed(saved, here), same, "{saved} {here}");
        }
    }

    #[test]
    fn the_log_has_the_page_that_the_guest_wrote() {
        use kvm_ioctls::VcpuExit;
        use vm_memory::{Bytes, GuestAddress};

        use crate::registers::{self, Entry};

        let Ok(host) = Host::open() else {
            eprintln!("*** SKIPPED: this test needs /dev/kvm ***");
            return;
        };
        let memory = crate::memory::map(&crate::memory::Plan::fixed(4 << 20), None).unwrap();
        let vm = host.create_vm(&memory).unwrap();
        let vcpu = vm.create_vcpu(0);
        let mut vcpu = vcpu.unwrap();
        let entry = Entry::Pvh { address: 0x10_0000 };
        // mov byte [0x123456], 1; out 0x80, al
        let code = [0xc6, 0x05, 0x56, 0x34, 0x12, 0x00, 0x01, 0xe6, 0x80];
        memory.write_slice(&code, GuestAddress(0x10_0000)).unwrap();
        registers::write_boot_tables(&memory, entry).unwrap();
        vcpu.set_cpuid2(&host.supported_cpuid().unwrap()).unwrap();
        registers::set_common(&vcpu).unwrap();
        registers::set_boot_processor(&vcpu, entry).unwrap();
        vm.log_dirty_pages(true).unwrap();
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::IoOut(0x80, _)));
        let dirty = vm.take_dirty_pages().unwrap();
        assert_eq!(dirty.len(), 1, "one region");
        assert_eq!(dirty[0][0x123 / 64] >> (0x123 % 64) & 1, 1);
        let pages: u32 = dirty[0].iter().map(|word| word.count_ones()).sum();
        assert!(pages <= 8, "and little else: {pages}");
        let again = vm.take_dirty_pages().unwrap();
        assert_eq!(again[0][0x123 / 64] >> (0x123 % 64) & 1, 0, "it was taken");
        vm.log_dirty_pages(false).unwrap();
    }
}
