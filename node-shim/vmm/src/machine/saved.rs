//! Saving and restoring a machine that stands still.

use std::sync::Arc;

use node_shim_chips::cpus::Cpus;
use node_shim_virtio::state::RestoreError;

use super::{Chips, Machine, MachineError, Platform, cpu_controller};
use crate::kvm::{KvmError, saved};
use crate::pci::ConfigPorts;
use crate::power::PowerManagement;
use crate::serial::SerialPort;
use crate::snapshot::cpu;
use crate::snapshot::state::{MachineState, SavedVcpu};
use crate::vcpu::Processor;
use crate::vcpu::saved::{self as vcpu_saved, VcpuStateError};

/// Why a machine cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedMachineError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(KvmError),
    /// A vCPU cannot be saved or restored.
    #[error("vCPU {index}: {source}")]
    Vcpu {
        /// The vCPU.
        index: u8,
        /// Why.
        source: VcpuStateError,
    },
    /// A device cannot be restored.
    #[error(transparent)]
    Device(RestoreError),
    /// A disk cannot be flushed.
    #[error("failed to flush {device}: {source}")]
    Flush {
        /// The device.
        device: String,
        /// Why.
        source: std::io::Error,
    },
    /// The processor does not fit.
    #[error(transparent)]
    Cpu(cpu::CpuError),
    /// The state is not one of this VM.
    #[error("the snapshot is damaged: {0}; use another snapshot")]
    Invalid(String),
}

impl Machine {
    /// The state of the machine, which is at rest ([`Machine::pause`]), as its devices are. What disks hold back is in their files
    /// afterwards.
    pub(crate) fn save(&self, platform: &Platform) -> Result<MachineState, SavedMachineError> {
        let vm = &platform.vm;
        for function in platform.pci.functions() {
            function.flush().map_err(|source| SavedMachineError::Flush {
                device: function.name().to_owned(),
                source,
            })?;
        }
        let msrs = platform.host.msr_indices().map_err(SavedMachineError::Kvm)?;
        let host = vcpu_saved::Host {
            msrs: &msrs,
            xsave_bytes: vm.xsave_bytes(),
        };
        let saved = self.cpus.save(&host);
        let (cpus, vcpus) = saved.map_err(|(index, source)| SavedMachineError::Vcpu { index, source })?;
        let clock = self.cpus.with_first(|first| vm.save_clock(first));
        let clock = clock.ok_or_else(|| SavedMachineError::Invalid("it has no vCPU".to_owned()))?;
        Ok(MachineState {
            clock: clock.map_err(SavedMachineError::Kvm)?,
            chips: vm.save_chips().map_err(SavedMachineError::Kvm)?,
            cpus,
            vcpus,
            serial: self.serial.save(),
            power: self.power.save(),
            rtc: platform.clock.save(),
            watchdog: platform.watchdog.save(),
            slots: platform.slots.save(),
            happened: platform.events.save(),
            pci_address: self.config_ports.address(),
            functions: platform
                .pci
                .functions()
                .iter()
                .map(|function| function.save())
                .collect(),
        })
    }

    /// A machine as it was saved, at rest; its memory and its disks are the saved ones. Devices come last: their interrupts go to local
    /// APICs that are there.
    pub(crate) fn restore(platform: &Platform, state: &MachineState) -> Result<Self, MachineError> {
        let processors = restore_vcpus(platform, state).map_err(MachineError::Saved)?;
        let invalid = |what: &str| MachineError::Saved(SavedMachineError::Invalid(what.to_owned()));
        let cpus = Cpus::restore(&state.cpus, platform.vcpus_max);
        let cpus = cpus.ok_or_else(|| invalid("its vCPUs are not those of its configuration"))?;
        if !platform.clock.restore(&state.rtc) {
            return Err(invalid("its clock is no clock"));
        }
        platform.watchdog.restore(state.watchdog);
        platform.slots.restore(state.slots);
        let told = platform.events.restore(state.happened);
        told.map_err(|source| {
            MachineError::Kvm(KvmError::Ioctl {
                what: "KVM_IRQ_LINE",
                source,
            })
        })?;
        let power = PowerManagement::new(Arc::clone(&platform.vm), Arc::clone(&platform.mailbox));
        power.restore(state.power);
        let serial = SerialPort::restore(
            Arc::clone(&platform.vm),
            platform.output.clone(),
            Arc::clone(&platform.input_drained),
            &state.serial,
        );
        let serial = serial.map_err(|what| MachineError::Saved(SavedMachineError::Invalid(what)))?;
        let config_ports = ConfigPorts::new(Arc::clone(&platform.pci), Arc::clone(&platform.mailbox));
        config_ports.set_address(state.pci_address);
        let chips = Chips {
            power: Arc::new(power),
            serial: Arc::new(serial),
            config_ports: Arc::new(config_ports),
            cpus: cpu_controller(platform, cpus)?,
        };
        let functions = platform.pci.functions();
        if functions.len() != state.functions.len() {
            let what = format!("it has {} devices and not {}", state.functions.len(), functions.len());
            return Err(MachineError::Saved(SavedMachineError::Invalid(what)));
        }
        for (function, saved) in functions.iter().zip(&state.functions) {
            let restored = function.restore(saved).map_err(SavedMachineError::Device);
            restored.map_err(MachineError::Saved)?;
        }
        Self::spawn(platform, chips, processors)
    }
}

fn restore_vcpus(platform: &Platform, state: &MachineState) -> Result<Vec<(u8, Processor)>, SavedMachineError> {
    let vm = &platform.vm;
    check_vcpus(state, platform.vcpus_max)?;
    let supported = platform.host.supported_cpuid().map_err(SavedMachineError::Kvm)?;
    for vcpu in &state.vcpus {
        cpu::check(&vcpu.state.cpuid, supported.as_slice()).map_err(SavedMachineError::Cpu)?;
    }
    let host = vcpu_saved::Host {
        msrs: &[],
        xsave_bytes: vm.xsave_bytes(),
    };
    let mut descriptors = Vec::with_capacity(state.vcpus.len());
    for vcpu in &state.vcpus {
        descriptors.push(vm.create_vcpu(vcpu.index).map_err(SavedMachineError::Kvm)?);
    }
    for vcpu in &descriptors {
        vm.restore_tsc_speed(vcpu, &state.clock)
            .map_err(SavedMachineError::Kvm)?;
    }
    vm.restore_chips(&state.chips).map_err(SavedMachineError::Kvm)?;
    let vcpus = || descriptors.iter().zip(&state.vcpus);
    for (vcpu, SavedVcpu { index, state }) in vcpus() {
        let restored = vcpu_saved::restore(vcpu, state, &host);
        restored.map_err(|source| SavedMachineError::Vcpu { index: *index, source })?;
    }
    let elapsed = saved::ticks(state.clock.tsc_khz, saved::elapsed_ns(&state.clock, saved::now_ns()));
    for (vcpu, SavedVcpu { index, state }) in vcpus() {
        let restored = vcpu_saved::restore_time(vcpu, state, elapsed);
        restored.map_err(|source| SavedMachineError::Vcpu { index: *index, source })?;
    }
    vm.restore_clock(&state.clock).map_err(SavedMachineError::Kvm)?;
    let processors = descriptors.into_iter().zip(&state.vcpus);
    let processors = processors.map(|(descriptor, saved)| {
        let cpuid = saved.state.cpuid.clone();
        (saved.index, Processor { descriptor, cpuid })
    });
    Ok(processors.collect())
}

/// Whether the saved vCPUs are those of one machine: each once, in their order, none missing that is there.
fn check_vcpus(state: &MachineState, max: u8) -> Result<(), SavedMachineError> {
    let indices: Vec<u8> = state.vcpus.iter().map(|vcpu| vcpu.index).collect();
    let ascending = indices.windows(2).all(|pair| pair[0] < pair[1]);
    let complete = (0..max).all(|index| !state.cpus.is_present(index) || indices.contains(&index));
    if ascending && complete && indices.first() == Some(&0) && indices.iter().all(|index| *index < max) {
        return Ok(());
    }
    let what = format!("it has the vCPUs {indices:?}, and its configuration allows {max}");
    Err(SavedMachineError::Invalid(what))
}
