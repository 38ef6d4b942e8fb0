//! KVM: the only file with VM ioctls. Memory slots, the interrupt chips and their routes, irqfds, ioeventfds.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use node_shim_virtio::device::Memory;
use node_shim_virtio::transport::{Interrupts, MsiMessage};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::layout;
use node_shim_virtio::lock::lock;

pub(crate) mod saved;

/// Most MSI routes: 32 devices with 64 vectors each.
const MSI_ROUTES_MAX: u32 = 2048;

/// Why the host's KVM is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    /// `/dev/kvm` cannot be opened.
    #[error("failed to open /dev/kvm: {0}; run this where KVM is available and may be used")]
    Open(io::Error),
    /// Another API than the stable one.
    #[error("KVM speaks API version {0}, not {KVM_API_VERSION}; the host's kernel is too old")]
    ApiVersion(i32),
    /// A capability is missing.
    #[error("KVM lacks {0}; the host's kernel is too old, or its KVM is not a complete one")]
    Missing(&'static str),
    /// The time stamp counter of a snapshot runs at another speed.
    #[error(
        "the time stamp counter runs at {here_khz} kHz here and at {saved_khz} kHz where the VM was saved, and this host cannot scale it; restore on a host of the same kind"
    )]
    TscSpeed {
        /// There.
        saved_khz: u32,
        /// Here.
        here_khz: u32,
    },
    /// An ioctl failed.
    #[error("{what} failed: {source}")]
    Ioctl {
        /// Name of the ioctl.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// An ioctl's result, with its name where it failed.
fn named<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, KvmError> {
    result.map_err(|error| KvmError::Ioctl {
        what,
        source: error.into(),
    })
}

/// `/dev/kvm`, checked for what this VMM needs.
pub(crate) struct Host {
    kvm: Kvm,
    /// What [`Self::supported_cpuid`] found: the host's processor is asked for each leaf, which takes a while inside of a VM.
    cpuid: Mutex<Option<CpuId>>,
}

impl Host {
    /// Opens `/dev/kvm`.
    pub(crate) fn open() -> Result<Self, KvmError> {
        Self::checked(Kvm::new().map_err(|error| KvmError::Open(error.into()))?)
    }

    /// Takes a descriptor of `/dev/kvm` that somebody else opened.
    pub(crate) fn from_descriptor(descriptor: OwnedFd) -> Result<Self, KvmError> {
        use std::os::fd::FromRawFd;
        // SAFETY: the descriptor is owned and handed over; what it is shows the API version's ioctl.
        Self::checked(unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) })
    }

    fn checked(kvm: Kvm) -> Result<Self, KvmError> {
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(KvmError::ApiVersion(version));
        }
        let needed = [
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Pit2, "KVM_CAP_PIT2"),
            (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
            (Cap::Irqfd, "KVM_CAP_IRQFD"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        ];
        for (capability, name) in needed {
            if !kvm.check_extension(capability) {
                return Err(KvmError::Missing(name));
            }
        }
        Ok(Self {
            kvm,
            cpuid: Mutex::default(),
        })
    }

    /// Most vCPUs of one VM.
    pub(crate) fn vcpus_max(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// The CPUID leaves that KVM can show to a guest.
    pub(crate) fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        let mut known = lock(&self.cpuid);
        if let Some(leaves) = &*known {
            return Ok(leaves.clone());
        }
        let leaves = named(
            "KVM_GET_SUPPORTED_CPUID",
            self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES),
        )?;
        Ok(known.insert(leaves).clone())
    }

    /// Creates a VM with its interrupt chips and its memory.
    pub(crate) fn create_vm(&self, memory: &Arc<Memory>) -> Result<Arc<Vm>, KvmError> {
        Ok(Arc::new(Vm {
            fd: RwLock::new(self.create_vm_fd(memory)?),
            routes: Mutex::new(Routes::default()),
            memory: Arc::clone(memory),
        }))
    }

    fn create_vm_fd(&self, memory: &Memory) -> Result<VmFd, KvmError> {
        let fd = named("KVM_CREATE_VM", self.kvm.create_vm())?;
        // Before anything that registers devices on KVM's buses: a slot that is set waits for every reader of the VM's SRCU, and
        // those that the chips leave behind take milliseconds.
        set_memory(&fd, memory)?;
        named("KVM_SET_TSS_ADDR", fd.set_tss_address(layout::KVM_TSS))?;
        named(
            "KVM_SET_IDENTITY_MAP_ADDR",
            fd.set_identity_map_address(layout::KVM_IDENTITY_MAP),
        )?;
        named("KVM_CREATE_IRQCHIP", fd.create_irq_chip())?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        named("KVM_CREATE_PIT2", fd.create_pit2(pit))?;
        Ok(fd)
    }
}

/// One slot for each region of guest memory.
fn memory_slots(memory: &Memory) -> impl Iterator<Item = kvm_userspace_memory_region> {
    (0_u32..)
        .zip(memory.iter())
        .map(|(slot, region)| kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        })
}

fn set_memory(fd: &VmFd, memory: &Memory) -> Result<(), KvmError> {
    for slot in memory_slots(memory) {
        // SAFETY: the mapping is live, and `Vm` holds the memory for as long as it has the VM.
        let result = unsafe { fd.set_user_memory_region(slot) };
        named("KVM_SET_USER_MEMORY_REGION", result)?;
    }
    Ok(())
}

/// One VM. A reset replaces what KVM has of it, so that nothing of the guest's last life is left, while devices keep their
/// vectors and doorbells.
pub(crate) struct Vm {
    fd: RwLock<VmFd>,
    routes: Mutex<Routes>,
    /// Mapped for as long as KVM knows its addresses.
    memory: Arc<Memory>,
}

impl Vm {
    /// Starts anew. The caller has ended the vCPUs and reset the devices, which took back their routes and doorbells.
    pub(crate) fn reset(&self, host: &Host) -> Result<(), KvmError> {
        let fresh = host.create_vm_fd(&self.memory)?;
        *self.fd.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        lock(&self.routes).msi.clear();
        Ok(())
    }

    fn fd(&self) -> RwLockReadGuard<'_, VmFd> {
        self.fd.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the vCPU with this APIC id.
    pub(crate) fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        named("KVM_CREATE_VCPU", self.fd().create_vcpu(u64::from(id)))
    }

    /// Sets the level of an interrupt line.
    pub(crate) fn set_line(&self, irq: u32, active: bool) -> io::Result<()> {
        self.fd().set_irq_line(irq, active).map_err(io::Error::from)
    }

    /// Pulses an edge-triggered interrupt line, as ISA devices have.
    pub(crate) fn pulse_line(&self, irq: u32) -> io::Result<()> {
        self.set_line(irq, true)?;
        self.set_line(irq, false)
    }

    /// Signals `event` whenever the guest writes to `address`.
    pub(crate) fn add_doorbell(&self, event: &EventFd, address: u64) -> io::Result<()> {
        self.fd()
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(io::Error::from)
    }

    /// Undoes [`Self::add_doorbell`].
    pub(crate) fn remove_doorbell(&self, event: &EventFd, address: u64) -> io::Result<()> {
        self.fd()
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(io::Error::from)
    }

    /// Interrupts for a device with this many MSI-X vectors.
    pub(crate) fn msi_vectors(self: &Arc<Self>, count: u16) -> io::Result<MsiVectors> {
        let first = lock(&self.routes).reserve(u32::from(count))?;
        let vectors = (first..)
            .take(usize::from(count))
            .map(|gsi| {
                Ok(Vector {
                    gsi,
                    event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
                    attached: Mutex::new(false),
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(MsiVectors {
            vm: Arc::clone(self),
            vectors,
        })
    }

    /// Points an MSI route to a message, and tells KVM where it changed.
    fn set_route(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut routes = lock(&self.routes);
        if routes.msi.insert(gsi, message) == Some(message) {
            return Ok(());
        }
        let table =
            KvmIrqRouting::from_entries(&routes.table()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.fd().set_gsi_routing(&table).map_err(io::Error::from)
    }
}

/// The routes from global system interrupts to the chips' pins and to MSI messages.
#[derive(Default)]
struct Routes {
    msi: BTreeMap<u32, MsiMessage>,
    /// First interrupt and number of each function's, without [`layout::IO_APIC_PINS`].
    reserved: BTreeMap<u32, u32>,
}

impl Routes {
    /// Reserves consecutive interrupts and returns the first.
    fn reserve(&mut self, count: u32) -> io::Result<u32> {
        let mut first = 0;
        for (start, length) in &self.reserved {
            if start - first >= count {
                break;
            }
            first = start + length;
        }
        if count > MSI_ROUTES_MAX - first {
            return Err(io::Error::other("the devices want more MSI vectors than there are"));
        }
        self.reserved.insert(first, count);
        Ok(layout::IO_APIC_PINS + first)
    }

    /// Gives back what [`Self::reserve`] returned.
    fn release(&mut self, first: u32) {
        let count = self.reserved.remove(&(first - layout::IO_APIC_PINS)).unwrap_or(0);
        for gsi in (first..).take(count as usize) {
            self.msi.remove(&gsi);
        }
    }

    /// The whole table: KVM replaces it as one.
    fn table(&self) -> Vec<kvm_irq_routing_entry> {
        let mut table = Vec::with_capacity(2 * layout::IO_APIC_PINS as usize + self.msi.len());
        for pin in 0..layout::IO_APIC_PINS {
            match pin {
                0..8 => table.push(chip_route(pin, KVM_IRQCHIP_PIC_MASTER, pin)),
                8..16 => table.push(chip_route(pin, KVM_IRQCHIP_PIC_SLAVE, pin - 8)),
                _ => {}
            }
            table.push(chip_route(pin, KVM_IRQCHIP_IOAPIC, pin));
        }
        table.extend(self.msi.iter().map(|(gsi, message)| msi_route(*gsi, *message)));
        table
    }
}

fn chip_route(gsi: u32, chip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    #[allow(clippy::cast_possible_truncation, reason = "the two halves of the address")]
    {
        entry.u.msi.address_lo = message.address as u32;
        entry.u.msi.address_hi = (message.address >> 32) as u32;
    }
    entry.u.msi.data = message.data;
    entry
}

struct Vector {
    gsi: u32,
    event: EventFd,
    /// Whether KVM listens to the event.
    attached: Mutex<bool>,
}

/// The MSI-X vectors of one PCI function, each an irqfd. While a vector is masked KVM does not listen to its eventfd: what
/// is triggered then stays in the eventfd's counter, and KVM finds it there when the vector is unmasked.
pub(crate) struct MsiVectors {
    vm: Arc<Vm>,
    vectors: Vec<Vector>,
}

impl Drop for MsiVectors {
    /// A function that was unplugged leaves its interrupts to others.
    fn drop(&mut self) {
        for vector in &self.vectors {
            if *lock(&vector.attached) {
                // KVM ends it with the VM's descriptor if not here.
                let _ = self.vm.fd().unregister_irqfd(&vector.event, vector.gsi);
            }
        }
        if let Some(first) = self.vectors.first() {
            lock(&self.vm.routes).release(first.gsi);
        }
    }
}

impl Interrupts for MsiVectors {
    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let Some(vector) = self.vectors.get(usize::from(vector)) else {
            return Ok(());
        };
        let mut attached = lock(&vector.attached);
        match message {
            Some(message) => {
                self.vm.set_route(vector.gsi, message)?;
                if !*attached {
                    self.vm.fd().register_irqfd(&vector.event, vector.gsi)?;
                    *attached = true;
                }
            }
            None if *attached => {
                self.vm.fd().unregister_irqfd(&vector.event, vector.gsi)?;
                *attached = false;
            }
            None => {}
        }
        Ok(())
    }

    fn trigger(&self, vector: u16) -> io::Result<()> {
        match self.vectors.get(usize::from(vector)) {
            Some(vector) => vector.event.write(1),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_pin_and_every_message() {
        let mut routes = Routes::default();
        let first = routes.reserve(2).unwrap();
        assert_eq!(first, 24);
        let message = MsiMessage {
            address: 0x1_fee0_1000,
            data: 0x4041,
        };
        routes.msi.insert(first + 1, message);
        let table = routes.table();
        assert_eq!(table.len(), 16 + 24 + 1);
        let last = table.last().unwrap();
        assert_eq!((last.gsi, last.type_), (25, KVM_IRQ_ROUTING_MSI));
        // SAFETY: every entry of this type has an MSI in its union.
        let msi = unsafe { last.u.msi };
        assert_eq!((msi.address_lo, msi.address_hi, msi.data), (0xfee0_1000, 1, 0x4041));
    }

    #[test]
    fn vectors_are_bounded() {
        let mut routes = Routes::default();
        assert!(routes.reserve(MSI_ROUTES_MAX).is_ok());
        assert!(routes.reserve(1).is_err());
    }

    #[test]
    fn interrupts_that_were_given_back_are_used_again() {
        let mut routes = Routes::default();
        let [first, second, third] = [3, 2, 4].map(|count| routes.reserve(count).unwrap());
        assert_eq!((first, second, third), (24, 27, 29));
        let message = MsiMessage { address: 0, data: 0 };
        routes.msi.insert(28, message);
        routes.msi.insert(29, message);
        routes.release(second);
        assert_eq!(routes.msi.keys().copied().collect::<Vec<_>>(), [29]);
        assert_eq!(routes.reserve(3).unwrap(), 33);
        assert_eq!(routes.reserve(2).unwrap(), 27);
        routes.release(first);
        assert_eq!(routes.reserve(1).unwrap(), 24);
    }
}
