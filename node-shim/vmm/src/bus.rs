//! From an address that a vCPU accessed to the device behind it, for memory and for ports alike.

use std::sync::Arc;

use crate::memory::Range;

/// A device on a bus. Any vCPU may call it at any time, so it does its own locking.
pub(crate) trait BusDevice: Send + Sync {
    /// Reads at an offset from the start of its range. `data` is all ones on entry: what is not there.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes at an offset from the start of its range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices claim the same address: a defect.
#[derive(Debug, thiserror::Error)]
#[error("two devices claim the addresses from {0:#x}")]
pub(crate) struct Overlap(u64);

/// Devices in the order of their addresses. Built once, before the vCPUs run.
#[derive(Default)]
pub(crate) struct Bus {
    devices: Vec<(Range, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Adds a device.
    pub(crate) fn add(&mut self, range: Range, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let index = self.devices.partition_point(|(other, _)| other.start < range.start);
        let before = index.checked_sub(1).and_then(|index| self.devices.get(index));
        let after = self.devices.get(index);
        if before.is_some_and(|(other, _)| other.end() > range.start)
            || after.is_some_and(|(other, _)| range.end() > other.start)
        {
            return Err(Overlap(range.start));
        }
        self.devices.insert(index, (range, device));
        Ok(())
    }

    /// Reads; where there is no device, all ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes; where there is no device, nothing happens.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device that has the whole access.
    fn find(&self, address: u64, length: usize) -> Option<(u64, &dyn BusDevice)> {
        let index = self
            .devices
            .partition_point(|(range, _)| range.start <= address)
            .checked_sub(1)?;
        let (range, device) = self.devices.get(index)?;
        let end = address.checked_add(length as u64)?;
        (end <= range.end()).then(|| (address - range.start, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus() -> (Bus, Arc<Recorder>) {
        let mut bus = Bus::default();
        let device = Arc::new(Recorder::default());
        for start in [0x20, 0x10] {
            bus.add(Range { start, size: 8 }, device.clone()).unwrap();
        }
        (bus, device)
    }

    #[test]
    fn an_access_reaches_the_device_that_has_all_of_it() {
        let (bus, device) = bus();
        let mut data = [0; 2];
        for (address, expected) in [
            (0x10, 0),
            (0x16, 6),
            (0x17, 0xff),
            (0x18, 0xff),
            (0x22, 2),
            (u64::MAX, 0xff),
        ] {
            bus.read(address, &mut data);
            assert_eq!(data, [expected; 2], "{address:#x}");
        }
        bus.write(0x11, &[1, 2]);
        bus.write(0x0f, &[1, 2]);
        assert_eq!(*device.0.lock().unwrap(), vec![(1, vec![1, 2])]);
    }

    #[test]
    fn devices_do_not_overlap() {
        let (mut bus, device) = bus();
        for (start, size) in [(0x10, 8), (0x17, 1), (0x0f, 2), (0x08, 0x40), (0x27, 1)] {
            assert!(bus.add(Range { start, size }, device.clone()).is_err(), "{start:#x}");
        }
        assert!(bus.add(Range { start: 0x18, size: 8 }, device).is_ok());
    }
}
