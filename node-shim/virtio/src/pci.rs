//! The virtio-pci transport (virtio 1.2, section 4.1): modern only, MSI-X only, one BAR.
//!
//! BAR 0 is a 32-bit non-prefetchable memory BAR of [`BAR_BYTES`]:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | `0x0000` | 56 | common configuration |
//! | `0x0800` | 1 | ISR status |
//! | `0x1000` | 4096 | device configuration |
//! | `0x2000` | 4 × queues | notification registers, one per queue |
//! | `0x3000` | 16 × vectors | MSI-X table: one vector for each queue and one for the configuration |
//! | `0x3800` | 8 | MSI-X pending bits |
//!
//! Locks, in the order in which they are taken: the device's (for as long as it works), the function's registers (never while the
//! device is called), the MSI-X table's (inside [`msix::Msix`]). A vCPU's register access therefore waits for a device's request
//! processing only when it reads or writes device configuration or status.

pub mod common;
pub mod config_space;
pub mod msix;
mod saved;
pub mod status;

use std::sync::{Arc, Mutex, MutexGuard};

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::common::{CommonRegisters, EnabledQueue, Transition};
use self::config_space::{BAR_INDEX, CONFIG_SPACE_BYTES, ClassCode, ConfigSpace, Identity};
use self::msix::Msix;
pub use self::saved::VirtioPciState;
use self::status::Status;
use crate::device::{
    Activation, ActiveQueue, DeviceError, DeviceType, Event, FEATURE_EVENT_IDX, FEATURE_INDIRECT_DESC,
    FEATURE_VERSION_1, Memory, VirtioDevice,
};
use crate::lock::lock;
use crate::state::QueuePosition;
use crate::transport::{Activator, Doorbell, Interrupts};

/// Size of BAR 0 in bytes, and its alignment.
pub const BAR_BYTES: u32 = 0x4000;

const COMMON_OFFSET: u32 = 0x0000;
const COMMON_REGION: u32 = 0x0800;
const ISR_OFFSET: u32 = 0x0800;
const DEVICE_OFFSET: u32 = 0x1000;
const DEVICE_REGION: u32 = 0x1000;
const NOTIFY_OFFSET: u32 = 0x2000;
const NOTIFY_MULTIPLIER: u32 = 4;
const MSIX_TABLE_OFFSET: u32 = 0x3000;
const MSIX_PENDING_OFFSET: u32 = 0x3800;

/// Capability ids (PCI code and id assignment specification).
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
/// `cfg_type` of virtio capabilities (virtio 1.2, 4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;
/// ISR status: the configuration changed (virtio 1.2, 4.1.4.5).
const ISR_CONFIG: u8 = 2;

/// One virtio device as a PCI function. Every method may be called from any thread.
pub struct VirtioPci {
    name: String,
    memory: Arc<Memory>,
    activator: Arc<dyn Activator>,
    msix: Arc<Msix>,
    device: Mutex<Slot>,
    function: Mutex<Function>,
}

/// The device and how far its driver has come.
struct Slot {
    device: Box<dyn VirtioDevice>,
    phase: Phase,
    /// At rest: no event reaches the device.
    paused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before `DRIVER_OK`.
    Idle,
    /// Connected to the event loop.
    Running,
    /// It gave up and waits for a reset.
    Broken,
}

/// The function's registers.
struct Function {
    space: ConfigSpace,
    power_on: ConfigSpace,
    common: CommonRegisters,
    isr: u8,
    /// One for each queue that is live.
    kicks: Vec<Option<EventFd>>,
    /// Offset of the MSI-X capability.
    msix_capability: usize,
    /// Offset of the PCI configuration access capability.
    window_capability: usize,
}

impl VirtioPci {
    /// A function whose BAR 0 is at `bar_address`, which is aligned to [`BAR_BYTES`].
    ///
    /// # Panics
    /// When the device has more than 63 queues: a defect of the device.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<Memory>,
        interrupts: Arc<dyn Interrupts>,
        activator: Arc<dyn Activator>,
        bar_address: u32,
    ) -> Self {
        let sizes = device.queue_max_sizes();
        let vectors = u16::try_from(sizes.len() + 1).unwrap_or(u16::MAX);
        assert!(vectors <= msix::MAX_VECTORS, "{} has too many queues", device.name());
        let features = device.features() | FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FEATURE_INDIRECT_DESC;
        let function = Function::new(
            device.device_type(),
            bar_address,
            CommonRegisters::new(features, sizes, vectors),
            vectors,
        );
        Self {
            name: device.name().to_owned(),
            memory,
            activator,
            msix: Arc::new(Msix::new(vectors, interrupts)),
            device: Mutex::new(Slot {
                device,
                phase: Phase::Idle,
                paused: false,
            }),
            function: Mutex::new(function),
        }
    }

    /// Name of the device, for logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of MSI-X vectors: [`Interrupts`] is called with smaller numbers only.
    pub fn vectors(&self) -> u16 {
        self.msix.vectors()
    }

    /// Guest-physical address of BAR 0, which the guest may have moved, and its size in bytes. While the guest has switched memory space
    /// off, reads of it are all ones and writes go nowhere.
    pub fn bar(&self) -> (u64, u64) {
        (self.function().space.bar_address(), u64::from(BAR_BYTES))
    }

    /// Reads configuration space; beyond its 256 bytes there are zeros.
    pub fn read_config(&self, offset: u16, data: &mut [u8]) {
        let offset = usize::from(offset);
        let function = self.function();
        let window = function.window(offset, data.len());
        function.space.read(offset, data);
        drop(function);
        if let Some(Window { offset, length }) = window {
            let length = length.min(data.len());
            self.read_bar(offset, &mut data[..length]);
        }
    }

    /// Writes configuration space. Afterwards [`Self::bar`] may be somewhere else.
    pub fn write_config(&self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        let mut function = self.function();
        let window = function.window(offset, data.len());
        function.space.write(offset, data);
        let control_at = function.msix_capability + 2;
        if offset < control_at + 2 && offset + data.len() > control_at {
            let [_, _, low, high] = function.space.u32_at(function.msix_capability).to_le_bytes();
            self.msix.set_control(u16::from_le_bytes([low, high]));
        }
        drop(function);
        if let Some(Window { offset, length }) = window {
            self.write_bar(offset, &data[..length.min(data.len())]);
        }
    }

    /// Reads BAR 0.
    pub fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let mut function = self.function();
        if !function.space.memory_enabled() {
            data.fill(0xff);
            return;
        }
        match Region::of(offset) {
            Some(Region::Common(at)) => function.common.read(at, data),
            // Reading the ISR status clears it (virtio 1.2, 4.1.4.5.1).
            Some(Region::Isr) => {
                if let Some(first) = data.first_mut() {
                    *first = std::mem::take(&mut function.isr);
                }
            }
            Some(Region::Device(at)) => {
                drop(function);
                self.device().device.read_config(at, data);
            }
            Some(Region::MsixTable(at)) => self.msix.read_table(at, data),
            Some(Region::MsixPending(at)) => self.msix.read_pending(at, data),
            Some(Region::Notify(_)) | None => {}
        }
    }

    /// Writes BAR 0.
    pub fn write_bar(&self, offset: u64, data: &[u8]) {
        let mut function = self.function();
        if !function.space.memory_enabled() {
            return;
        }
        match Region::of(offset) {
            Some(Region::Common(at)) if CommonRegisters::touches_status(at) => {
                drop(function);
                if let [value] = *data {
                    self.write_status(value);
                }
            }
            Some(Region::Common(at)) => function.common.write(at, data),
            Some(Region::Device(at)) => {
                drop(function);
                self.device().device.write_config(at, data);
            }
            Some(Region::Notify(queue)) => {
                if let Some(Some(kick)) = function.kicks.get(queue) {
                    // Full means that the event loop has not yet seen the last kick: it will find this one with it.
                    let _ = kick.write(1);
                }
            }
            Some(Region::MsixTable(at)) => self.msix.write_table(at, data),
            Some(Region::Isr | Region::MsixPending(_)) | None => {}
        }
    }

    /// An event of the device's doorbells or host descriptors, from the event loop.
    pub fn handle(&self, event: Event) {
        let mut slot = self.device();
        if slot.phase != Phase::Running || slot.paused {
            return;
        }
        if let Err(error) = slot.device.handle(event) {
            self.give_up(&mut slot, &error);
        }
    }

    /// Back to the state after power-on, as when the whole VM is reset: also PCI configuration and MSI-X.
    pub fn power_on_reset(&self) {
        let mut slot = self.device();
        self.reset_device(&mut slot);
        slot.device.power_on();
        self.msix.reset();
        let mut function = self.function();
        function.space = function.power_on.clone();
    }

    fn write_status(&self, value: u8) {
        let mut slot = self.device();
        let decided = self.function().common.status_written(value);
        match decided {
            Transition::Reset => self.reset_device(&mut slot),
            Transition::Refuse => {}
            Transition::Set(status) => self.function().common.set_status(status),
            Transition::Activate(status) => {
                self.function().common.set_status(status);
                if let Err(error) = self.activate(&mut slot, &[]) {
                    self.give_up(&mut slot, &error);
                }
            }
        }
    }

    /// Activates the device, with its queues at `positions`; at their beginning where there is none.
    fn activate(&self, slot: &mut Slot, positions: &[Option<QueuePosition>]) -> Result<(), DeviceError> {
        // Whatever happens from here on, a reset or a failure has something to undo.
        slot.phase = Phase::Running;
        let (queues, features, config_vector, bar) = {
            let function = self.function();
            let common = &function.common;
            let mut queues = common
                .enabled_queues(&self.memory)
                .map_err(|what| self.driver_error(what))?;
            for enabled in &mut queues {
                if let Some(Some(position)) = positions.get(usize::from(enabled.index)) {
                    enabled.queue.set_next_avail(position.next_available);
                    enabled.queue.set_next_used(position.next_used);
                }
            }
            (
                queues,
                common.negotiated_features(),
                common.config_vector(),
                function.space.bar_address(),
            )
        };
        let count = slot.device.queue_max_sizes().len();
        let (queues, kicks) = self.connectable(queues, count)?;
        slot.device.activate(Activation {
            memory: self.memory.clone(),
            features,
            queues,
            interrupts: self.msix.clone(),
            config_vector,
        })?;
        let polled = !slot.device.own_kicks();
        let doorbells: Vec<Doorbell<'_>> = (0_u16..)
            .zip(&kicks)
            .filter_map(|(queue, kick)| {
                let address = bar + u64::from(NOTIFY_OFFSET + NOTIFY_MULTIPLIER * u32::from(queue));
                kick.as_ref().map(|kick| Doorbell {
                    address,
                    queue,
                    kick,
                    polled,
                })
            })
            .collect();
        let connected = self.activator.connect(&doorbells, &slot.device.host_sources());
        connected.map_err(|error| self.host_error("connect its doorbells", error))?;
        self.function().kicks = kicks;
        if !slot.paused {
            self.kick_all();
        }
        Ok(())
    }

    /// Has the device look at every queue. Drivers offer buffers, and kick, while they start the device: before there is a doorbell
    /// (virtio 1.2, 3.1.1, step 7).
    fn kick_all(&self) {
        for kick in self.function().kicks.iter().flatten() {
            // Full means that the device has yet to see the last kick.
            let _ = kick.write(1);
        }
    }

    /// Gives each enabled queue its eventfd: one end for the device, one for the doorbell.
    #[expect(clippy::type_complexity, reason = "two lists that are taken apart at once")]
    fn connectable(
        &self,
        enabled: Vec<EnabledQueue>,
        count: usize,
    ) -> Result<(Vec<Option<ActiveQueue>>, Vec<Option<EventFd>>), DeviceError> {
        let mut queues: Vec<Option<ActiveQueue>> = (0..count).map(|_| None).collect();
        let mut kicks: Vec<Option<EventFd>> = (0..count).map(|_| None).collect();
        for EnabledQueue { index, queue, vector } in enabled {
            let index = usize::from(index);
            let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
            let kick = kick.map_err(|error| self.host_error("make an eventfd", error))?;
            kicks[index] = Some(
                kick.try_clone()
                    .map_err(|error| self.host_error("make an eventfd", error))?,
            );
            queues[index] = Some(ActiveQueue { queue, kick, vector });
        }
        Ok((queues, kicks))
    }

    /// Takes a device away from the event loop, and from guest memory.
    fn stop(&self, slot: &mut Slot) {
        if slot.phase == Phase::Running {
            self.activator.disconnect();
            slot.device.reset();
            self.function().kicks.clear();
        }
    }

    fn reset_device(&self, slot: &mut Slot) {
        self.stop(slot);
        slot.phase = Phase::Idle;
        self.msix.clear_pending();
        let mut function = self.function();
        function.common.reset();
        function.isr = 0;
    }

    fn give_up(&self, slot: &mut Slot, error: &DeviceError) {
        self.stop(slot);
        slot.phase = Phase::Broken;
        let vector = {
            let mut function = self.function();
            let status = function.common.status() | Status::DEVICE_NEEDS_RESET;
            function.common.set_status(status);
            function.isr |= ISR_CONFIG;
            function.common.config_vector()
        };
        self.activator.failed(&self.name, error);
        if let Some(vector) = vector {
            // The guest loses a hint to look at a status that it can read at any time.
            let _ = self.msix.trigger(vector);
        }
    }

    fn driver_error(&self, what: String) -> DeviceError {
        DeviceError::Driver {
            device: self.name.clone(),
            what,
        }
    }

    fn host_error(&self, what: &'static str, source: std::io::Error) -> DeviceError {
        DeviceError::Host {
            device: self.name.clone(),
            what,
            source,
        }
    }

    fn device(&self) -> MutexGuard<'_, Slot> {
        lock(&self.device)
    }

    fn function(&self) -> MutexGuard<'_, Function> {
        lock(&self.function)
    }
}

/// An access to the BAR through configuration space (virtio 1.2, 4.1.4.9).
struct Window {
    offset: u64,
    length: usize,
}

impl Function {
    fn new(device_type: DeviceType, bar_address: u32, common: CommonRegisters, vectors: u16) -> Self {
        let mut space = ConfigSpace::new(Identity {
            device_type: device_type as u16,
            class: class_of(device_type),
            bar_address,
            bar_size: BAR_BYTES,
        });
        let queues = u32::from(vectors) - 1;
        for (cfg_type, offset, length) in [
            (
                TYPE_COMMON,
                COMMON_OFFSET,
                u32::try_from(common::COMMON_BYTES).unwrap_or(COMMON_REGION),
            ),
            (TYPE_ISR, ISR_OFFSET, 1),
            (TYPE_DEVICE, DEVICE_OFFSET, DEVICE_REGION),
        ] {
            let body = virtio_capability(cfg_type, offset, length, &[]);
            space.add_capability(CAPABILITY_VENDOR, &body, &vec![0; body.len()]);
        }
        let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
        let body = virtio_capability(TYPE_NOTIFY, NOTIFY_OFFSET, queues * NOTIFY_MULTIPLIER, &multiplier);
        space.add_capability(CAPABILITY_VENDOR, &body, &vec![0; body.len()]);
        // The driver chooses BAR, offset and length, and then reads or writes the data.
        let body = virtio_capability(TYPE_PCI, 0, 0, &[0; 4]);
        let mut writable = vec![0; body.len()];
        writable[2] = 0xff;
        writable[6..].fill(0xff);
        let window_capability = usize::from(space.add_capability(CAPABILITY_VENDOR, &body, &writable));
        let msix_capability = usize::from(add_msix_capability(&mut space, vectors));
        Self {
            power_on: space.clone(),
            space,
            common,
            isr: 0,
            kicks: Vec::new(),
            msix_capability,
            window_capability,
        }
    }

    /// The BAR access that an access of `length` bytes at `offset` of the configuration space stands for.
    fn window(&self, offset: usize, length: usize) -> Option<Window> {
        let data_at = self.window_capability + 16;
        let bar = self.space.u32_at(self.window_capability + 4).to_le_bytes()[0];
        let at = self.space.u32_at(self.window_capability + 8);
        let chosen = self.space.u32_at(self.window_capability + 12);
        let legal = offset == data_at && length <= 4 && bar == BAR_INDEX && at.is_multiple_of(chosen.max(1));
        match chosen {
            1 | 2 | 4 if legal => Some(Window {
                offset: u64::from(at),
                length: usize::try_from(chosen).ok()?,
            }),
            _ => None,
        }
    }
}

/// What of the BAR an access is for. An access counts where it starts; what runs over a region's end is the region's to ignore.
enum Region {
    Common(usize),
    Isr,
    Device(u64),
    Notify(usize),
    MsixTable(usize),
    MsixPending(usize),
}

impl Region {
    fn of(offset: u64) -> Option<Self> {
        let offset = u32::try_from(offset).ok()?;
        let relative = |start: u32| usize::try_from(offset - start).ok();
        match offset {
            COMMON_OFFSET..ISR_OFFSET => Some(Self::Common(relative(COMMON_OFFSET)?)),
            ISR_OFFSET => Some(Self::Isr),
            DEVICE_OFFSET..NOTIFY_OFFSET => Some(Self::Device(u64::from(offset - DEVICE_OFFSET))),
            NOTIFY_OFFSET..MSIX_TABLE_OFFSET if offset.is_multiple_of(NOTIFY_MULTIPLIER) => Some(Self::Notify(
                usize::try_from((offset - NOTIFY_OFFSET) / NOTIFY_MULTIPLIER).ok()?,
            )),
            MSIX_TABLE_OFFSET..MSIX_PENDING_OFFSET => Some(Self::MsixTable(relative(MSIX_TABLE_OFFSET)?)),
            MSIX_PENDING_OFFSET..BAR_BYTES => Some(Self::MsixPending(relative(MSIX_PENDING_OFFSET)?)),
            _ => None,
        }
    }
}

/// The body of a `virtio_pci_cap` (virtio 1.2, 4.1.4) after its two bytes of id and pointer.
fn virtio_capability(cfg_type: u8, offset: u32, length: u32, extra: &[u8]) -> Vec<u8> {
    let bytes = u8::try_from(16 + extra.len()).unwrap_or(u8::MAX);
    let mut body = vec![bytes, cfg_type, BAR_INDEX, 0, 0, 0];
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(extra);
    body
}

fn add_msix_capability(space: &mut ConfigSpace, vectors: u16) -> u8 {
    let mut body = (vectors - 1).to_le_bytes().to_vec();
    body.extend_from_slice(&(MSIX_TABLE_OFFSET | u32::from(BAR_INDEX)).to_le_bytes());
    body.extend_from_slice(&(MSIX_PENDING_OFFSET | u32::from(BAR_INDEX)).to_le_bytes());
    let mut writable = vec![0; body.len()];
    writable[..2].copy_from_slice(&msix::CONTROL_WRITABLE.to_le_bytes());
    space.add_capability(CAPABILITY_MSIX, &body, &writable)
}

const fn class_of(device_type: DeviceType) -> ClassCode {
    match device_type {
        // Ethernet controller.
        DeviceType::Net => ClassCode { base: 0x02, sub: 0x00 },
        // Mass storage, SCSI: what other virtio implementations say too.
        DeviceType::Block => ClassCode { base: 0x01, sub: 0x00 },
        // Simple communication controller, other.
        DeviceType::Console | DeviceType::Vsock => ClassCode { base: 0x07, sub: 0x80 },
        // Fits no class.
        DeviceType::Rng | DeviceType::Balloon | DeviceType::Mem => ClassCode { base: 0xff, sub: 0x00 },
    }
}

const _: () = assert!(BAR_BYTES.is_power_of_two() && CONFIG_SPACE_BYTES == 256);

#[cfg(test)]
mod tests;
