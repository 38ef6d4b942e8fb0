//! One life of the guest, from power-on to a reset: the chips that have state of their own, and the vCPUs.

use std::sync::Arc;

use node_shim_chips::cpus::Cpus;
use node_shim_protocol::ExitReason;
use node_shim_virtio::console::Port;
use node_shim_virtio::device::Memory;
use node_shim_virtio::wake::Wake;

use crate::acpi::{self, AcpiError, Description};
use crate::boot::{BootError, BootSource};
use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::Clock;
use crate::console::Output;
use crate::cpus::{CpuController, CpuError};
use crate::devices::Handles;
use crate::devices::disk::FilesDisk;
use crate::events::Events;
use crate::kvm::{Host, KvmError, Vm};
use crate::layout;
use crate::mailbox::Mailbox;
use crate::memory::{self, Range};
use crate::panic_port::PanicPort;
use crate::pci::{ConfigPorts, Ecam, PciBus, Window};
use crate::power::{KeyboardController, PowerManagement};
use crate::registers::{self, RegisterError};
use crate::serial::SerialPort;
use crate::slots::SlotController;
use crate::vcpu::{Buses, Processor};
use crate::watchdog::Watchdog;

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
    /// A vCPU cannot be had.
    #[error(transparent)]
    Cpu(CpuError),
    /// The first vCPU's registers cannot be set.
    #[error("vCPU 0: {0}")]
    Registers(RegisterError),
    /// Two devices are in one place: a defect.
    #[error(transparent)]
    Overlap(Overlap),
    /// The machine cannot be as it was saved.
    #[error("failed to restore the VM: {0}")]
    Saved(SavedMachineError),
}

impl MachineError {
    /// For the exit code.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Boot(_) => ExitReason::InvalidBootSource,
            Self::Cpu(CpuError::Cpuid(_) | CpuError::Range { .. }) | Self::Acpi(_) | Self::Overlap(_) => {
                ExitReason::Internal
            }
            Self::Kvm(_) | Self::Cpu(_) | Self::Registers(_) | Self::Saved(_) => ExitReason::HostUnavailable,
        }
    }
}

/// What outlives a reset.
pub(crate) struct Platform {
    /// KVM.
    pub(crate) host: Arc<Host>,
    /// The VM in KVM.
    pub(crate) vm: Arc<Vm>,
    /// Guest RAM.
    pub(crate) memory: Arc<Memory>,
    /// How much memory there is at the start, and later.
    pub(crate) memory_plan: memory::Plan,
    /// Number of vCPUs that the guest starts with.
    pub(crate) vcpus: u8,
    /// Most vCPUs.
    pub(crate) vcpus_max: u8,
    /// Kernel and initrd.
    pub(crate) boot: BootSource,
    /// The virtio devices.
    pub(crate) pci: Arc<PciBus>,
    /// Tells the guest what was plugged.
    pub(crate) events: Arc<Events>,
    /// Plugs and unplugs virtio devices.
    pub(crate) slots: Arc<SlotController>,
    /// The disks that are made anew for each start of the guest.
    pub(crate) files: Vec<FilesDisk>,
    /// Of the devices that are told what to do while the guest runs.
    pub(crate) handles: Handles,
    /// The time.
    pub(crate) clock: Arc<Clock>,
    /// Whether the guest hangs.
    pub(crate) watchdog: Arc<Watchdog>,
    /// What the guest's consoles print.
    pub(crate) output: Output,
    /// The host's end of the virtio console.
    pub(crate) console: Port,
    /// Signalled when the guest has read all input.
    pub(crate) input_drained: Arc<Wake>,
    /// Where vCPUs and devices tell what happened.
    pub(crate) mailbox: Arc<Mailbox>,
}

/// A running machine.
pub(crate) struct Machine {
    /// For the power button.
    pub(crate) power: Arc<PowerManagement>,
    /// For input.
    pub(crate) serial: Arc<SerialPort>,
    /// The vCPUs: to plug and unplug them.
    pub(crate) cpus: Arc<CpuController>,
    config_ports: Arc<ConfigPorts>,
    /// Kept for vCPUs that come later.
    _buses: Arc<Buses>,
}

/// The chips that have state of their own, as devices are not: a reset makes new ones.
struct Chips {
    power: Arc<PowerManagement>,
    serial: Arc<SerialPort>,
    config_ports: Arc<ConfigPorts>,
    cpus: Arc<CpuController>,
}

impl Machine {
    /// Loads the kernel, builds the buses, creates the vCPUs and lets them run, in this order.
    pub(crate) fn start(platform: &Platform) -> Result<Self, MachineError> {
        let description = Description {
            vcpus: platform.vcpus,
            vcpus_max: platform.vcpus_max,
            memory_bytes: platform.memory_plan.size_bytes,
            later_memory: platform.memory_plan.later,
        };
        let rsdp = acpi::write(&platform.memory, &description).map_err(MachineError::Acpi)?;
        let boot = &platform.boot;
        let entry = boot
            .load(&platform.memory, platform.memory_plan.size_bytes, rsdp)
            .map_err(MachineError::Boot)?;
        registers::write_boot_tables(&platform.memory, entry).map_err(MachineError::Registers)?;
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
            cpus: cpu_controller(platform, Cpus::new(platform.vcpus, platform.vcpus_max))?,
        };
        let mut processors = Vec::with_capacity(usize::from(platform.vcpus));
        for index in 0..platform.vcpus {
            let processor = chips.cpus.create(index).map_err(MachineError::Cpu)?;
            if index == 0 {
                registers::set_boot_processor(&processor.descriptor, entry).map_err(MachineError::Registers)?;
            }
            processors.push((index, processor));
        }
        let machine = Self::spawn(platform, chips, processors)?;
        machine.cpus.let_in();
        Ok(machine)
    }

    /// Starts the threads of vCPUs, which wait to be let in.
    fn spawn(platform: &Platform, chips: Chips, processors: Vec<(u8, Processor)>) -> Result<Self, MachineError> {
        let buses = Arc::new(buses(platform, &chips).map_err(MachineError::Overlap)?);
        let Chips {
            power,
            serial,
            config_ports,
            cpus,
        } = chips;
        cpus.set_buses(&buses);
        for (index, processor) in processors {
            if let Err(error) = cpus.run(index, processor) {
                cpus.stop();
                return Err(MachineError::Cpu(error));
            }
        }
        Ok(Self {
            power,
            serial,
            cpus,
            config_ports,
            _buses: buses,
        })
    }

    /// Takes every vCPU out of the guest, each between two instructions, and waits until they are.
    pub(crate) fn pause(&self) {
        self.cpus.pause();
    }

    /// Lets the vCPUs go on.
    pub(crate) fn resume(&self) {
        self.cpus.resume();
    }

    /// Takes every vCPU out of the guest and waits for their threads.
    pub(crate) fn stop(self) {
        self.cpus.stop();
    }
}

fn cpu_controller(platform: &Platform, registers: Cpus) -> Result<Arc<CpuController>, MachineError> {
    let supported = platform.host.supported_cpuid().map_err(MachineError::Kvm)?;
    Ok(Arc::new(CpuController::new(
        Arc::clone(&platform.vm),
        supported,
        registers,
        Arc::clone(&platform.mailbox),
        Arc::clone(&platform.events),
    )))
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
    add_chips(&mut ports, platform, &chips.cpus)?;
    Ok(Buses { memory, ports })
}

/// The small chips: see `node-shim/chips`.
fn add_chips(ports: &mut Bus, platform: &Platform, cpus: &Arc<CpuController>) -> Result<(), Overlap> {
    use node_shim_chips::{cpus as cpu_registers, slots as slot_registers, watchdog};
    let chips: [(u16, u16, Arc<dyn BusDevice>); 6] = [
        (layout::RTC, 2, Arc::<Clock>::clone(&platform.clock)),
        (
            layout::PANIC_PORT,
            1,
            Arc::new(PanicPort::new(Arc::clone(&platform.mailbox))),
        ),
        (
            layout::WATCHDOG,
            watchdog::BYTES,
            Arc::<Watchdog>::clone(&platform.watchdog),
        ),
        (layout::EVENTS, 1, Arc::<Events>::clone(&platform.events)),
        (layout::CPUS, cpu_registers::BYTES, Arc::<CpuController>::clone(cpus)),
        (
            layout::SLOTS,
            slot_registers::BYTES,
            Arc::<SlotController>::clone(&platform.slots),
        ),
    ];
    for (start, size, chip) in chips {
        let range = Range {
            start: u64::from(start),
            size: u64::from(size),
        };
        ports.add(range, chip)?;
    }
    Ok(())
}
