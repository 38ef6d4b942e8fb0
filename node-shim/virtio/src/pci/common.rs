//! The common configuration registers (virtio 1.2, section 4.1.4.3). Pure state: what a write asks of the device is returned.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

pub use super::status::Transition;
use super::status::{Status, transition};
use crate::device::{FEATURE_EVENT_IDX, FEATURE_VERSION_1, Memory};

/// Bytes of the register block: up to and including `queue_device`. Later fields belong to features that are not offered.
pub const COMMON_BYTES: usize = 56;
/// No MSI-X vector (virtio 1.2, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

const DEVICE_FEATURE_SELECT: usize = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: usize = 8;
const DRIVER_FEATURE: usize = 12;
const CONFIG_VECTOR: usize = 16;
const NUM_QUEUES: usize = 18;
const DEVICE_STATUS: usize = 20;
const CONFIG_GENERATION: usize = 21;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_VECTOR: usize = 26;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY_OFF: usize = 30;
const QUEUE_DESC: usize = 32;
const QUEUE_DRIVER: usize = 40;
const QUEUE_DEVICE: usize = 48;

/// One function's common registers.
#[derive(Debug)]
pub struct CommonRegisters {
    offered_features: u64,
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: Status,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

/// One queue's registers.
#[derive(Clone, Copy, Debug)]
struct QueueRegisters {
    max_size: u16,
    size: u16,
    vector: u16,
    enabled: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

impl QueueRegisters {
    const fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            enabled: false,
            descriptor_table: 0,
            available_ring: 0,
            used_ring: 0,
        }
    }
}

/// The registers as they are saved. What the device offers is not among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonState {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueState>,
}

impl CommonState {
    /// Whether the driver had set `DRIVER_OK`.
    pub fn is_live(&self) -> bool {
        Status::from_bits_truncate(self.status).contains(Status::DRIVER_OK)
    }
}

/// One queue's registers as they are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueueState {
    size: u16,
    vector: u16,
    enabled: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

/// A queue that the driver enabled, checked.
pub struct EnabledQueue {
    /// Its index.
    pub index: u16,
    /// Addresses and size, all in guest memory.
    pub queue: Queue,
    /// Its MSI-X vector.
    pub vector: Option<u16>,
}

impl CommonRegisters {
    /// Registers after reset. `features` lack nothing: ring features and `VERSION_1` are in them.
    pub fn new(features: u64, queue_max_sizes: &[u16], vectors: u16) -> Self {
        Self {
            offered_features: features,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: Status::empty(),
            queue_select: 0,
            queues: queue_max_sizes.iter().copied().map(QueueRegisters::new).collect(),
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered_features, &sizes, self.vectors);
    }

    /// The vectors of the queues that the driver enabled.
    pub fn live_vectors(&self) -> Vec<u16> {
        let enabled = self.queues.iter().filter(|queue| queue.enabled);
        enabled
            .map(|queue| queue.vector)
            .filter(|vector| *vector != NO_VECTOR)
            .collect()
    }

    /// The registers, to be saved.
    pub fn save(&self) -> CommonState {
        let Self {
            offered_features: _,
            vectors: _,
            device_feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            status,
            queue_select,
            queues,
        } = self;
        CommonState {
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            driver_features: *driver_features,
            config_vector: *config_vector,
            status: status.bits(),
            queue_select: *queue_select,
            queues: queues.iter().map(QueueRegisters::save).collect(),
        }
    }

    /// Takes over saved registers.
    ///
    /// # Errors
    /// What is wrong with them: features that are not offered here, queues that are not here, values that a driver cannot write.
    pub fn restore(&mut self, state: &CommonState) -> Result<(), String> {
        let lacking = state.driver_features & !self.offered_features;
        let status = Status::from_bits(state.status).ok_or("a status that there is not")?;
        if status.contains(Status::FEATURES_OK) && lacking != 0 {
            return Err(format!(
                "the driver uses features {lacking:#x}, which this build does not offer"
            ));
        }
        if state.queues.len() != self.queues.len() {
            let (saved, here) = (state.queues.len(), self.queues.len());
            return Err(format!("it had {saved} queues and has {here} here"));
        }
        let known = |vector: u16| vector < self.vectors || vector == NO_VECTOR;
        for (registers, saved) in self.queues.iter().zip(&state.queues) {
            if !saved.size.is_power_of_two() || saved.size > registers.max_size {
                return Err(format!("a queue of {} entries", saved.size));
            }
            if !known(saved.vector) {
                return Err(format!("vector {} for a queue", saved.vector));
            }
        }
        if !known(state.config_vector) {
            return Err(format!("vector {} for the configuration", state.config_vector));
        }
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.driver_features = state.driver_features;
        self.config_vector = state.config_vector;
        self.status = status;
        self.queue_select = state.queue_select;
        for (registers, saved) in self.queues.iter_mut().zip(&state.queues) {
            registers.restore(*saved);
        }
        Ok(())
    }

    /// The status register.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Sets the status that a [`Transition`] decided on.
    pub fn set_status(&mut self, status: Status) {
        self.status = status;
    }

    /// The features that driver and device agreed on.
    pub fn negotiated_features(&self) -> u64 {
        self.driver_features & self.offered_features
    }

    /// The MSI-X vector of configuration changes.
    pub fn config_vector(&self) -> Option<u16> {
        (self.config_vector != NO_VECTOR).then_some(self.config_vector)
    }

    /// Whether a byte range touches the status register, whose writes need more than these registers.
    pub fn touches_status(offset: usize) -> bool {
        offset == DEVICE_STATUS
    }

    /// Decides a write to the status register.
    pub fn status_written(&self, value: u8) -> Transition {
        let acceptable =
            self.driver_features & !self.offered_features == 0 && self.driver_features & FEATURE_VERSION_1 != 0;
        transition(self.status, value, acceptable)
    }

    /// Reads any range; what is beyond the registers reads as zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let image = self.image();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset
                .checked_add(index)
                .and_then(|at| image.get(at))
                .copied()
                .unwrap_or(0);
        }
    }

    /// Writes a register other than the status. An access that is not exactly a register, or half of a 64-bit one, is ignored
    /// (virtio 1.2, 4.1.3.1), as is one that comes too late.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        if let Ok(bytes) = <[u8; 2]>::try_from(data) {
            self.write_u16(offset, u16::from_le_bytes(bytes));
        } else if let Ok(bytes) = <[u8; 4]>::try_from(data) {
            self.write_u32(offset, u32::from_le_bytes(bytes));
        } else if matches!(offset, QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE)
            && let Some((low, high)) = data.split_first_chunk()
            && let Ok(high) = high.try_into()
        {
            self.write_u32(offset, u32::from_le_bytes(*low));
            self.write_u32(offset + 4, u32::from_le_bytes(high));
        }
    }

    /// The queues that the driver enabled.
    ///
    /// # Errors
    /// What is wrong with one of them: size, alignment, or an address outside of guest memory.
    pub fn enabled_queues(&self, memory: &Memory) -> Result<Vec<EnabledQueue>, String> {
        let event_idx = self.negotiated_features() & FEATURE_EVENT_IDX != 0;
        let enabled = (0_u16..).zip(&self.queues).filter(|(_, registers)| registers.enabled);
        enabled
            .map(|(index, registers)| registers.checked(index, event_idx, memory))
            .collect()
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue while its registers may change: not once it is enabled, nor once the device is live. What a live device
    /// uses was checked at `DRIVER_OK`; CVE-2026-5747 is what happens otherwise.
    fn selected_mut(&mut self) -> Option<&mut QueueRegisters> {
        let live = self.status.contains(Status::DRIVER_OK);
        self.queues
            .get_mut(usize::from(self.queue_select))
            .filter(|queue| !live && !queue.enabled)
    }

    fn image(&self) -> [u8; COMMON_BYTES] {
        let mut image = [0; COMMON_BYTES];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(
            DEVICE_FEATURE,
            &half(self.offered_features, self.device_feature_select).to_le_bytes(),
        );
        put(DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(
            DRIVER_FEATURE,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        put(
            NUM_QUEUES,
            &u16::try_from(self.queues.len()).unwrap_or(u16::MAX).to_le_bytes(),
        );
        put(DEVICE_STATUS, &[self.status.bits()]);
        // No device of ours changes its configuration while it is live.
        put(CONFIG_GENERATION, &[0]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist reads as size 0 (4.1.4.3.1).
        if let Some(queue) = self.selected() {
            put(QUEUE_SIZE, &queue.size.to_le_bytes());
            put(QUEUE_VECTOR, &queue.vector.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(QUEUE_DESC, &queue.descriptor_table.to_le_bytes());
            put(QUEUE_DRIVER, &queue.available_ring.to_le_bytes());
            put(QUEUE_DEVICE, &queue.used_ring.to_le_bytes());
        } else {
            put(QUEUE_VECTOR, &NO_VECTOR.to_le_bytes());
        }
        image
    }

    fn write_u16(&mut self, offset: usize, value: u16) {
        // A vector that does not exist reads back as NO_VECTOR (4.1.5.1.2.1).
        let vector = if value < self.vectors { value } else { NO_VECTOR };
        match offset {
            CONFIG_VECTOR if !self.status.contains(Status::DRIVER_OK) => self.config_vector = vector,
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_SIZE => {
                if let Some(queue) = self.selected_mut()
                    && value.is_power_of_two()
                    && value <= queue.max_size
                {
                    queue.size = value;
                }
            }
            QUEUE_VECTOR => {
                if let Some(queue) = self.selected_mut() {
                    queue.vector = vector;
                }
            }
            // Only a reset disables a queue (4.1.4.3.2).
            QUEUE_ENABLE if value == 1 => {
                if let Some(queue) = self.selected_mut() {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
    }

    fn write_u32(&mut self, offset: usize, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE if !self.status.contains(Status::FEATURES_OK) && self.driver_feature_select < 2 => {
                let shift = 32 * self.driver_feature_select;
                self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            QUEUE_DESC..COMMON_BYTES if offset.is_multiple_of(4) => {
                let Some(queue) = self.selected_mut() else { return };
                let register = match offset & !7 {
                    QUEUE_DESC => &mut queue.descriptor_table,
                    QUEUE_DRIVER => &mut queue.available_ring,
                    _ => &mut queue.used_ring,
                };
                let shift = (offset & 4) * 8;
                *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
    }
}

impl QueueRegisters {
    fn save(&self) -> QueueState {
        let Self {
            max_size: _,
            size,
            vector,
            enabled,
            descriptor_table,
            available_ring,
            used_ring,
        } = *self;
        QueueState {
            size,
            vector,
            enabled,
            descriptor_table,
            available_ring,
            used_ring,
        }
    }

    fn restore(&mut self, state: QueueState) {
        let QueueState {
            size,
            vector,
            enabled,
            descriptor_table,
            available_ring,
            used_ring,
        } = state;
        *self = Self {
            max_size: self.max_size,
            size,
            vector,
            enabled,
            descriptor_table,
            available_ring,
            used_ring,
        };
    }

    fn checked(&self, index: u16, event_idx: bool, memory: &Memory) -> Result<EnabledQueue, String> {
        let problem = |error: virtio_queue::Error| format!("queue {index}: {error}");
        let mut queue = Queue::new(self.max_size).map_err(problem)?;
        queue.try_set_size(self.size).map_err(problem)?;
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptor_table))
            .map_err(problem)?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.available_ring))
            .map_err(problem)?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used_ring))
            .map_err(problem)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(memory) {
            return Err(format!("queue {index} of {} entries is not in guest memory", self.size));
        }
        Ok(EnabledQueue {
            index,
            queue,
            vector: (self.vector != NO_VECTOR).then_some(self.vector),
        })
    }
}

/// The half of a 64-bit feature set that a select register names; there are no more than two.
fn half(features: u64, select: u32) -> u32 {
    let bits = match select {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(bits & 0xffff_ffff).unwrap_or_default()
}
