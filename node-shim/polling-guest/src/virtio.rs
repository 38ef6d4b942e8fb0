//! The driver's side of virtio over PCI (virtio 1.2, 3.1 and 4.1).

use crate::memory;
use crate::pci::Function;
use crate::queue::Queue;

const VENDOR: u16 = 0x1af4;
/// Modern device ids are this and the device type.
const MODERN: u16 = 0x1040;
const VENDOR_CAPABILITY: u8 = 9;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_EVENT_IDX`.
const EVENT_INDEX: u64 = 1 << 29;

/// Offsets in the common configuration (4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
}

/// A device that was found.
pub(crate) struct Device {
    common: u64,
    notify: u64,
    notify_multiplier: u32,
    /// Its own configuration.
    pub(crate) config: u64,
}

impl Device {
    /// Finds the first device of a type, resets it and agrees on features: event index, and `more` where the device has them.
    pub(crate) fn open(device_type: u16, more: u64) -> Result<Self, &'static str> {
        let function = Function::find(VENDOR, MODERN + device_type).ok_or("there is no such device")?;
        function.enable();
        let device = Self::locate(function)?;
        device.set_status(0);
        while memory::read::<u8>(device.common + common::STATUS) != 0 {
            core::hint::spin_loop();
        }
        device.set_status(ACKNOWLEDGE | DRIVER);
        let offered = device.features();
        if offered & VERSION_1 == 0 {
            return Err("the device is not modern");
        }
        device.accept(offered & (VERSION_1 | EVENT_INDEX | more));
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if memory::read::<u8>(device.common + common::STATUS) & FEATURES_OK == 0 {
            return Err("the device refuses the features");
        }
        Ok(device)
    }

    /// Where the structures of a function are (4.1.4).
    fn locate(function: Function) -> Result<Self, &'static str> {
        let mut device = Self {
            common: 0,
            notify: 0,
            notify_multiplier: 0,
            config: 0,
        };
        for at in function.capabilities(VENDOR_CAPABILITY) {
            let kind = (function.read(at) >> 24) as u8;
            if !matches!(kind, 1 | 2 | 4) {
                continue;
            }
            let bar = (function.read(at + 4) & 0xff) as u8;
            let address = function.bar(bar)? + u64::from(function.read(at + 8));
            match kind {
                1 => device.common = address,
                2 => {
                    device.notify = address;
                    device.notify_multiplier = function.read(at + 16);
                }
                _ => device.config = address,
            }
        }
        if device.common == 0 || device.notify == 0 || device.config == 0 {
            return Err("a structure of the device is missing");
        }
        Ok(device)
    }

    /// Address of its common configuration.
    pub(crate) fn common(&self) -> u64 {
        self.common
    }

    fn set_status(&self, status: u8) {
        memory::write(self.common + common::STATUS, status);
    }

    fn features(&self) -> u64 {
        let half = |which: u32| {
            memory::write(self.common + common::DEVICE_FEATURE_SELECT, which);
            u64::from(memory::read::<u32>(self.common + common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    fn accept(&self, features: u64) {
        for (which, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            memory::write(self.common + common::DRIVER_FEATURE_SELECT, which);
            memory::write(self.common + common::DRIVER_FEATURE, half);
        }
    }

    /// Sets a queue up. `number` is that of the guest's own queues, for its memory.
    pub(crate) fn queue(&self, index: u16, number: u64) -> Result<Queue, &'static str> {
        let register = |offset| self.common + offset;
        memory::write(register(common::QUEUE_SELECT), index);
        let size: u16 = memory::read(register(common::QUEUE_SIZE));
        let size = size.min(Queue::MAX_SIZE);
        if !size.is_power_of_two() {
            return Err("the device has no such queue");
        }
        memory::write(register(common::QUEUE_SIZE), size);
        let offset: u16 = memory::read(register(common::QUEUE_NOTIFY_OFFSET));
        let notify = self.notify + u64::from(offset) * u64::from(self.notify_multiplier);
        let queue = Queue::new(memory::of_queue(number), size, index, notify);
        let parts = [
            (common::QUEUE_DESCRIPTORS, queue.descriptors()),
            (common::QUEUE_DRIVER, queue.available()),
            (common::QUEUE_DEVICE, queue.used()),
        ];
        for (offset, address) in parts {
            memory::write(register(offset), address as u32);
            memory::write(register(offset + 4), (address >> 32) as u32);
        }
        memory::write(register(common::QUEUE_ENABLE), 1_u16);
        Ok(queue)
    }

    /// The driver is ready.
    pub(crate) fn start(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }
}
