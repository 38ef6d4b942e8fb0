//! One life of the guest, from power-on to a reset: the chips that have state of their own, and the vCPUs.

use std::io;
use std::sync::Arc;

use node_shim_protocol::ExitReason;
use node_shim_virtio::device::Memory;
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::{self, AcpiError};
use crate::boot::{BootError, BootSource};
use crate::bus::{Bus, Overlap};
use crate::console::Output;
use crate::cpuid;
use crate::kvm::{Host, KvmError, Vm};
use crate::layout;
use crate::mailbox::Mailbox;
use crate::memory::Range;
use crate::pci::{ConfigPorts, Ecam, PciBus, Window};
use crate::power::{KeyboardController, PowerManagement};
use crate::registers::{self, RegisterError};
use crate::serial::SerialPort;
use crate::vcpu::gate::Gate;
use crate::vcpu::{Buses, Processor, Vcpu};

pub(crate) mod saved;

use self::saved::SavedMachineError;

/// Why a machine cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// The kernel does not load.
    #[error(transparent)]
    Boot(BootError),
    /// The ACPI tables do not fit: a defect.
    #[error(transparent)]
    Acpi(AcpiError),
    /// KVM refused.
    #[error(transparent)]
    Kvm(KvmError),
    /// A vCPU's registers cannot be set.
    #[error("vCPU {index}: {source}")]
    Registers {
        /// The vCPU.
        index: u8,
        /// Why.
        source: RegisterError,
    },
    /// The CPUID leaves make no list: a defect.
    #[error("failed to build the CPUID leaves: {0}")]
    Cpuid(vmm_sys_util::fam::Error),
    /// Two devices are in one place: a defect.
    #[error(transparent)]
    Overlap(Overlap),
    /// The machine cannot be as it was saved.
    #[error("failed to restore the VM: {0}")]
    Saved(SavedMachineError),
    /// No thread for a vCPU.
    #[error("failed to start the thread of vCPU {index}: {source}")]
    Thread {
        /// The vCPU.
        index: u8,
        /// Why.
        source: io::Error,
    },
}

impl MachineError {
    /// For the exit code.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Boot(_) => ExitReason::InvalidBootSource,
            Self::Kvm(_) | Self::Registers { .. } | Self::Thread { .. } | Self::Saved(_) => ExitReason::HostUnavailable,
            Self::Acpi(_) | Self::Cpuid(_) | Self::Overlap(_) => ExitReason::Internal,
        }
    }
}

/// What outlives a reset.
pub(crate) struct Platform {
    /// KVM.
    pub(crate) host: Host,
    /// The VM in KVM.
    pub(crate) vm: Arc<Vm>,
    /// Guest RAM.
    pub(crate) memory: Arc<Memory>,
    /// Bytes of guest RAM.
    pub(crate) memory_bytes: u64,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// Kernel and initrd.
    pub(crate) boot: BootSource,
    /// The virtio devices.
    pub(crate) pci: Arc<PciBus>,
    /// The console.
    pub(crate) output: Output,
    /// Signalled when the guest has read all input.
    pub(crate) input_drained: Arc<EventFd>,
    /// Where vCPUs and devices tell what happened.
    pub(crate) mailbox: Arc<Mailbox>,
}

/// A running machine.
pub(crate) struct Machine {
    /// For the power button.
    pub(crate) power: Arc<PowerManagement>,
    /// For input.
    pub(crate) serial: Arc<SerialPort>,
    config_ports: Arc<ConfigPorts>,
    vcpus: Vec<Vcpu>,
    gate: Arc<Gate>,
}

/// The chips that have state of their own, as devices are not: a reset makes new ones.
struct Chips {
    power: Arc<PowerManagement>,
    serial: Arc<SerialPort>,
    config_ports: Arc<ConfigPorts>,
}

impl Machine {
    /// Loads the kernel, builds the buses, creates the vCPUs and lets them run, in this order.
    pub(crate) fn start(platform: &Platform) -> Result<Self, MachineError> {
        let rsdp = acpi::write(&platform.memory, platform.vcpus).map_err(MachineError::Acpi)?;
        let boot = &platform.boot;
        let entry = boot
            .load(&platform.memory, platform.memory_bytes, rsdp)
            .map_err(MachineError::Boot)?;
        let register_error = |index| move |source| MachineError::Registers { index, source };
        registers::write_boot_tables(&platform.memory, entry).map_err(register_error(0))?;
        let chips = Chips {
            power: Arc::new(PowerManagement::new(
                Arc::clone(&platform.vm),
                Arc::clone(&platform.mailbox),
            )),
            serial: Arc::new(SerialPort::new(
                Arc::clone(&platform.vm),
                platform.output.clone(),
                Arc::clone(&platform.input_drained),
            )),
            config_ports: Arc::new(ConfigPorts::new(
                Arc::clone(&platform.pci),
                Arc::clone(&platform.mailbox),
            )),
        };
        let supported = platform.host.supported_cpuid().map_err(MachineError::Kvm)?;
        let mut processors = Vec::with_capacity(usize::from(platform.vcpus));
        for index in 0..platform.vcpus {
            let vcpu = platform.vm.create_vcpu(index).map_err(MachineError::Kvm)?;
            let leaves = cpuid::for_vcpu(&supported, index, platform.vcpus).map_err(MachineError::Cpuid)?;
            vcpu.set_cpuid2(&leaves)
                .map_err(|source| RegisterError::Ioctl {
                    what: "KVM_SET_CPUID2",
                    source,
                })
                .and_then(|()| registers::set_common(&vcpu))
                .map_err(register_error(index))?;
            if index == 0 {
                registers::set_boot_processor(&vcpu, entry).map_err(register_error(index))?;
            }
            processors.push(Processor {
                descriptor: vcpu,
                cpuid: leaves.as_slice().to_vec(),
            });
        }
        let machine = Self::spawn(platform, chips, processors)?;
        machine.gate.open();
        Ok(machine)
    }

    /// Starts the threads of vCPUs, which wait to be let in.
    fn spawn(platform: &Platform, chips: Chips, processors: Vec<Processor>) -> Result<Self, MachineError> {
        let buses = Arc::new(buses(platform, &chips).map_err(MachineError::Overlap)?);
        let mut machine = Self {
            power: chips.power,
            serial: chips.serial,
            config_ports: chips.config_ports,
            vcpus: Vec::with_capacity(processors.len()),
            gate: Arc::new(Gate::new()),
        };
        for (index, processor) in (0..).zip(processors) {
            let started = Vcpu::start(
                index,
                processor,
                Arc::clone(&buses),
                Arc::clone(&platform.mailbox),
                Arc::clone(&machine.gate),
            );
            match started {
                Ok(vcpu) => machine.vcpus.push(vcpu),
                Err(source) => {
                    machine.stop();
                    return Err(MachineError::Thread { index, source });
                }
            }
        }
        Ok(machine)
    }

    /// Takes every vCPU out of the guest, each between two instructions, and waits until they are.
    pub(crate) fn pause(&self) {
        self.gate.close();
        self.kick();
        self.gate.await_rest();
    }

    /// Lets the vCPUs go on. Those guests that ask learn that they stood still, so that their watchdogs do not count the time.
    pub(crate) fn resume(&self) {
        for vcpu in &self.vcpus {
            // A guest that has no kvmclock has nothing that could be told.
            let _ = vcpu.descriptor().kvmclock_ctrl();
        }
        self.gate.open();
    }

    /// Takes every vCPU out of the guest and waits for their threads.
    pub(crate) fn stop(self) {
        self.gate.stop();
        self.kick();
        for vcpu in self.vcpus {
            vcpu.join();
        }
    }

    fn kick(&self) {
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
    }
}

/// Puts everything in its place: see [`layout`].
fn buses(platform: &Platform, chips: &Chips) -> Result<Buses, Overlap> {
    let mut memory = Bus::default();
    let range = |start, size| Range { start, size };
    memory.add(
        range(layout::PCI_WINDOW, layout::PCI_WINDOW_SIZE),
        Arc::new(Window(Arc::clone(&platform.pci))),
    )?;
    memory.add(
        range(layout::ECAM, layout::ECAM_SIZE),
        Arc::new(Ecam(Arc::clone(&platform.pci))),
    )?;
    let mut ports = Bus::default();
    let range = |start: u16, size: u16| Range {
        start: u64::from(start),
        size: u64::from(size),
    };
    let keyboard = Arc::new(KeyboardController::new(Arc::clone(&platform.mailbox)));
    ports.add(range(layout::KEYBOARD_COMMAND_PORT, 1), keyboard)?;
    ports.add(
        range(layout::COM1, layout::COM1_PORTS),
        Arc::<SerialPort>::clone(&chips.serial),
    )?;
    ports.add(
        range(layout::PM1A_EVENT, layout::PM1A_PORTS),
        Arc::<PowerManagement>::clone(&chips.power),
    )?;
    ports.add(
        range(layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_PORTS),
        Arc::<ConfigPorts>::clone(&chips.config_ports),
    )?;
    Ok(Buses { memory, ports })
}
