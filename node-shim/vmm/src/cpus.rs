//! The vCPUs of a running machine, and the controller that plugs and unplugs them.
//!
//! A vCPU is made when it is first plugged, and waits as real processors do until the guest starts it by INIT and SIPI. KVM never gives one
//! up, so one that the guest has ejected stays: its thread waits outside of the guest until the vCPU is plugged again.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;
use node_shim_chips::cpus::{Cpus, Effect};

use crate::acpi::hotplug::EVENT_CPUS;
use crate::bus::BusDevice;
use crate::cpuid;
use crate::events::Events;
use crate::kvm::{KvmError, Vm};
use crate::log;
use crate::mailbox::Mailbox;
use crate::registers::{self, RegisterError};
use crate::snapshot::state::SavedVcpu;
use crate::vcpu::gate::Gate;
use crate::vcpu::parking::Parking;
use crate::vcpu::saved::{self, VcpuStateError};
use crate::vcpu::{Buses, Processor, Vcpu};
use node_shim_virtio::lock::lock;

/// Why a vCPU cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpuError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(KvmError),
    /// Its registers cannot be set.
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
    /// No thread for it, or no interrupt for the guest.
    #[error("failed to {what} vCPU {index}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The vCPU.
        index: u8,
        /// Why.
        source: io::Error,
    },
    /// More than there can be.
    #[error("the VM can have 1 to {max} vCPUs, not {wanted}; raise cpu.maxCores and start the VM anew")]
    Range {
        /// What was asked for.
        wanted: u32,
        /// Most.
        max: u8,
    },
}

/// A guest that did not take, or give up, a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unwilling {
    /// The vCPU.
    pub(crate) cpu: u8,
    /// 3: it was to be given up; else it was plugged (ACPI 6.4, 6.3.5).
    pub(crate) event: u8,
    /// Why, as the guest says.
    pub(crate) status: u8,
}

struct Running {
    vcpu: Vcpu,
    parking: Arc<Parking>,
}

/// The vCPUs, and the registers of their controller on the port bus.
pub(crate) struct CpuController {
    registers: Mutex<Cpus>,
    /// By index. Taken before `registers` where both are.
    running: Mutex<Vec<Option<Running>>>,
    /// What the guest last said to what it was last asked for, where that was no.
    unwilling: Mutex<Option<Unwilling>>,
    vm: Arc<Vm>,
    supported: CpuId,
    max: u8,
    mailbox: Arc<Mailbox>,
    events: Arc<Events>,
    /// Weak: this controller is on them.
    buses: OnceLock<Weak<Buses>>,
    gate: Arc<Gate>,
}

impl CpuController {
    /// A controller with these registers. None of its vCPUs runs, and those that do later wait to be let in.
    pub(crate) fn new(
        vm: Arc<Vm>,
        supported: CpuId,
        registers: Cpus,
        mailbox: Arc<Mailbox>,
        events: Arc<Events>,
    ) -> Self {
        let max = registers.max();
        Self {
            registers: Mutex::new(registers),
            running: Mutex::new((0..max).map(|_| None).collect()),
            unwilling: Mutex::default(),
            vm,
            supported,
            max,
            mailbox,
            events,
            buses: OnceLock::new(),
            gate: Arc::new(Gate::new()),
        }
    }

    /// Where the vCPUs' accesses go.
    pub(crate) fn set_buses(&self, buses: &Arc<Buses>) {
        // Set once, by the machine that owns both.
        let _ = self.buses.set(Arc::downgrade(buses));
    }

    /// Makes a vCPU, which waits for INIT unless it is the first.
    pub(crate) fn create(&self, index: u8) -> Result<Processor, CpuError> {
        let vcpu = self.vm.create_vcpu(index).map_err(CpuError::Kvm)?;
        let leaves = cpuid::for_vcpu(&self.supported, index, self.max).map_err(CpuError::Cpuid)?;
        vcpu.set_cpuid2(&leaves)
            .map_err(|source| RegisterError::Ioctl {
                what: "KVM_SET_CPUID2",
                source,
            })
            .and_then(|()| registers::set_common(&vcpu))
            .map_err(|source| CpuError::Registers { index, source })?;
        Ok(Processor {
            descriptor: vcpu,
            cpuid: leaves.as_slice().to_vec(),
        })
    }

    /// Lets a new vCPU run as soon as all may; one that is not there only once it is plugged.
    pub(crate) fn run(&self, index: u8, processor: Processor) -> Result<(), CpuError> {
        let parking = if lock(&self.registers).is_present(index) {
            Parking::default()
        } else {
            Parking::parked()
        };
        self.run_in(&mut lock(&self.running), index, processor, parking)
    }

    fn run_in(
        &self,
        running: &mut [Option<Running>],
        index: u8,
        processor: Processor,
        parking: Parking,
    ) -> Result<(), CpuError> {
        let host_error = |source| CpuError::Host {
            what: "start the thread of",
            index,
            source,
        };
        let buses = self.buses.get().and_then(Weak::upgrade);
        let buses = buses.ok_or_else(|| host_error(io::ErrorKind::NotConnected.into()))?;
        let parking = Arc::new(parking);
        let mailbox = Arc::clone(&self.mailbox);
        let vcpu = Vcpu::start(
            index,
            processor,
            buses,
            mailbox,
            Arc::clone(&self.gate),
            Arc::clone(&parking),
        );
        let vcpu = vcpu.map_err(host_error)?;
        if let Some(slot) = running.get_mut(usize::from(index)) {
            *slot = Some(Running { vcpu, parking });
        }
        Ok(())
    }

    /// So many vCPUs, where there can be so many.
    pub(crate) fn possible(&self, wanted: u32) -> Result<u8, CpuError> {
        let possible = u8::try_from(wanted)
            .ok()
            .filter(|wanted| (1..=self.max).contains(wanted));
        possible.ok_or(CpuError::Range { wanted, max: self.max })
    }

    /// Asks for the first `wanted` vCPUs, which are [`Self::possible`]: those that are missing are plugged at once, those that are too many go
    /// when the guest lets them.
    ///
    /// # Errors
    /// When a vCPU cannot be had; then those before it were plugged.
    pub(crate) fn set(&self, wanted: u8) -> Result<(), CpuError> {
        let mut running = lock(&self.running);
        *lock(&self.unwilling) = None;
        let change = lock(&self.registers).want(wanted);
        let mut notify = change.notify;
        let mut outcome = Ok(());
        for index in change.plug {
            outcome = self.bring(&mut running, index);
            if outcome.is_err() {
                break;
            }
            lock(&self.registers).plug(index);
            notify = true;
        }
        if notify {
            self.events.raise(EVENT_CPUS).map_err(|source| CpuError::Host {
                what: "announce",
                index: wanted,
                source,
            })?;
        }
        outcome
    }

    fn bring(&self, running: &mut [Option<Running>], index: u8) -> Result<(), CpuError> {
        if let Some(Some(parked)) = running.get(usize::from(index)) {
            parked.parking.release();
            return Ok(());
        }
        let processor = self.create(index)?;
        registers::join_interrupt_map(&processor.descriptor).map_err(|source| CpuError::Registers { index, source })?;
        self.run_in(running, index, processor, Parking::default())
    }

    /// Number of vCPUs that are there.
    pub(crate) fn present(&self) -> u8 {
        lock(&self.registers).present()
    }

    /// What the guest has against what it was last asked for.
    pub(crate) fn unwilling(&self) -> Option<Unwilling> {
        *lock(&self.unwilling)
    }

    /// Lets the vCPUs run.
    pub(crate) fn let_in(&self) {
        self.gate.open();
    }

    /// Takes every vCPU out of the guest, each between two instructions, and waits until they are.
    pub(crate) fn pause(&self) {
        self.gate.close();
        // Not held while they come out: one of them may be about to eject another.
        for one in lock(&self.running).iter().flatten() {
            one.vcpu.kick();
        }
        self.gate.await_rest();
    }

    /// Lets the vCPUs go on. Those guests that ask learn that they stood still, so that their watchdogs do not count the time.
    pub(crate) fn resume(&self) {
        for one in lock(&self.running).iter().flatten() {
            // A guest that has no kvmclock has nothing that could be told.
            let _ = one.vcpu.descriptor().kvmclock_ctrl();
        }
        self.let_in();
    }

    /// What somebody wants to do with the first vCPU, which is at rest. `None` when none runs.
    pub(crate) fn with_first<T>(&self, act: impl FnOnce(&VcpuFd) -> T) -> Option<T> {
        let running = lock(&self.running);
        let first = running.first()?.as_ref()?;
        Some(act(&first.vcpu.descriptor()))
    }

    /// The registers, and each vCPU that was ever there. All are at rest.
    pub(crate) fn save(&self, host: &saved::Host<'_>) -> Result<(Cpus, Vec<SavedVcpu>), (u8, VcpuStateError)> {
        let mut vcpus = Vec::new();
        for (one, index) in lock(&self.running).iter().zip(0..) {
            if let Some(one) = one {
                let state = saved::save(&one.vcpu.descriptor(), one.vcpu.cpuid(), host);
                let state = state.map_err(|source| (index, source))?;
                vcpus.push(SavedVcpu { index, state });
            }
        }
        Ok((lock(&self.registers).clone(), vcpus))
    }

    /// Takes every vCPU out of the guest and waits for their threads.
    pub(crate) fn stop(&self) {
        self.gate.stop();
        let running = std::mem::take(&mut *lock(&self.running));
        for one in running.iter().flatten() {
            one.parking.wake();
            one.vcpu.kick();
        }
        for one in running.into_iter().flatten() {
            one.vcpu.join();
        }
    }
}

impl BusDevice for CpuController {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.registers).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let effect = lock(&self.registers).write(offset, data);
        match effect {
            // Success, or ejection in progress (ACPI 6.4, table 6.14).
            Effect::None | Effect::Outcome { status: 0 | 0x84, .. } => {}
            Effect::Eject(index) => {
                if let Some(Some(one)) = lock(&self.running).get(usize::from(index)) {
                    one.parking.park();
                    one.vcpu.kick();
                }
                self.mailbox.nudge();
            }
            Effect::Outcome { cpu, event, status } => {
                *lock(&self.unwilling) = Some(Unwilling { cpu, event, status });
                self.mailbox.nudge();
                log::guest(format_args!(
                    "the guest did not {} vCPU {cpu} (status {status:#x})",
                    if event == 3 { "give up" } else { "take" }
                ));
            }
        }
    }
}
