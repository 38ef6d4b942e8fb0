//! PCI type-0 configuration space (PCI 3.0, chapter 6): 256 bytes, and for each bit whether the guest may write it.

/// Bytes of a conventional function's configuration space. Beyond it, in the 4 KiB that ECAM gives a function, there is nothing.
pub const CONFIG_SPACE_BYTES: usize = 256;
/// The only BAR that a function has.
pub const BAR_INDEX: u8 = 0;

/// Red Hat's vendor id, which virtio devices use (virtio 1.2, 4.1.2).
const VENDOR_ID: u16 = 0x1af4;
/// Modern devices are 0x1040 + device type (virtio 1.2, 4.1.2).
const DEVICE_ID_BASE: u16 = 0x1040;
/// Non-transitional devices have revision 1 or higher (virtio 1.2, 4.1.2.1).
const REVISION_ID: u8 = 1;
/// Non-transitional devices have subsystem id 0x40 or higher (virtio 1.2, 4.1.2.1).
const SUBSYSTEM_ID_BASE: u16 = 0x40;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// Bit 10 of the command register, in its second byte.
const COMMAND_INTX_DISABLE_HIGH: u8 = 1 << 2;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE_SIZE: usize = 0x0c;
const BAR0: usize = 0x10;
/// A memory BAR's low 4 bits are type and prefetch flags (PCI 3.0, 6.2.5.1).
const BAR_FLAG_BITS: u32 = 0xf;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// Class code, subclass and programming interface of a function (PCI code and id assignment specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassCode {
    /// Base class.
    pub base: u8,
    /// Subclass.
    pub sub: u8,
}

/// What makes one function's header differ from another's.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The virtio device type.
    pub device_type: u16,
    /// The function's class.
    pub class: ClassCode,
    /// Where firmware, which is us, put BAR 0.
    pub bar_address: u32,
    /// Size of BAR 0 in bytes: a power of two, at least 16.
    pub bar_size: u32,
}

/// A function's configuration space.
#[derive(Clone)]
pub struct ConfigSpace {
    registers: [u8; CONFIG_SPACE_BYTES],
    /// A set bit may be written by the guest.
    writable: [u8; CONFIG_SPACE_BYTES],
    next_capability: usize,
    /// Offset of the pointer that the next capability is linked from.
    link: usize,
}

impl ConfigSpace {
    /// The header: one 32-bit non-prefetchable memory BAR, no `INTx`, no capability yet.
    pub fn new(identity: Identity) -> Self {
        let Identity {
            device_type,
            class,
            bar_address,
            bar_size,
        } = identity;
        let mut space = Self {
            registers: [0; CONFIG_SPACE_BYTES],
            writable: [0; CONFIG_SPACE_BYTES],
            next_capability: FIRST_CAPABILITY,
            link: CAPABILITIES_POINTER,
        };
        space.set(0, &VENDOR_ID.to_le_bytes());
        space.set(2, &(DEVICE_ID_BASE + device_type).to_le_bytes());
        space.set(STATUS, &[STATUS_CAPABILITIES]);
        space.set(REVISION, &[REVISION_ID]);
        space.set(CLASS, &[0, class.sub, class.base]);
        space.set(SUBSYSTEM_VENDOR, &VENDOR_ID.to_le_bytes());
        space.set(SUBSYSTEM_VENDOR + 2, &(SUBSYSTEM_ID_BASE + device_type).to_le_bytes());
        space.set(BAR0, &bar_address.to_le_bytes());
        // A guest that writes all ones reads back the size's two's complement: the bits below the size do not exist.
        space.allow(BAR0, &(!(bar_size - 1) & !BAR_FLAG_BITS).to_le_bytes());
        space.allow(
            COMMAND,
            &[COMMAND_MEMORY | COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE_HIGH],
        );
        space.allow(CACHE_LINE_SIZE, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Links a capability into the list and returns its offset. `body` is what follows the two bytes of id and pointer; `writable`, of
    /// the same length, are its writable bits.
    ///
    /// # Panics
    /// When the capabilities that the transport itself adds do not fit into 192 bytes: a defect, not an input.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        assert_eq!(body.len(), writable.len(), "a mask for each byte of the capability");
        let offset = self.next_capability;
        let pointer = u8::try_from(offset).expect("the capabilities fit into the configuration space");
        self.set(self.link, &[pointer]);
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        self.link = offset + 1;
        self.next_capability = (offset + 2 + body.len()).next_multiple_of(4);
        pointer
    }

    /// Reads any number of bytes at any offset; what is not there reads as zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset
                .checked_add(index)
                .and_then(|at| self.registers.get(at))
                .copied()
                .unwrap_or(0);
        }
    }

    /// Writes the writable bits of any number of bytes at any offset; the rest is ignored.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(index).filter(|at| *at < CONFIG_SPACE_BYTES) else {
                return;
            };
            let mask = self.writable[at];
            self.registers[at] = (self.registers[at] & !mask) | (byte & mask);
        }
    }

    /// Whether the guest lets the function answer memory accesses.
    pub fn memory_enabled(&self) -> bool {
        self.registers[COMMAND] & COMMAND_MEMORY != 0
    }

    /// Guest-physical address in BAR 0.
    pub fn bar_address(&self) -> u64 {
        u64::from(self.u32_at(BAR0) & !BAR_FLAG_BITS)
    }

    /// The little-endian 32-bit register at an offset that the transport chose.
    pub fn u32_at(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Every byte.
    pub fn bytes(&self) -> &[u8; CONFIG_SPACE_BYTES] {
        &self.registers
    }

    /// Takes over the writable bits of saved bytes. `false`, and nothing happens, when they are of another function: the rest differs.
    pub fn restore(&mut self, saved: &[u8]) -> bool {
        let same = saved.len() == CONFIG_SPACE_BYTES
            && (0..CONFIG_SPACE_BYTES).all(|at| (saved[at] ^ self.registers[at]) & !self.writable[at] == 0);
        if same {
            self.registers.copy_from_slice(saved);
        }
        same
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.registers[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            device_type: 2,
            class: ClassCode { base: 1, sub: 0 },
            bar_address: 0xc000_4000,
            bar_size: 0x4000,
        })
    }

    #[test]
    fn the_header_names_a_modern_virtio_device() {
        let space = space();
        assert_eq!(space.u32_at(0), 0x1042_1af4);
        assert_eq!(space.u32_at(8), 0x0100_0001);
        assert_eq!(space.u32_at(0x2c), 0x0042_1af4);
        assert_eq!(space.u32_at(0x3c), 0, "no interrupt pin");
    }

    #[test]
    fn a_bar_is_sized_the_way_linux_does_it() {
        let mut space = space();
        let original = space.u32_at(0x10);
        space.write(0x10, &u32::MAX.to_le_bytes());
        let sizing = space.u32_at(0x10);
        assert_eq!(sizing, 0xffff_c000);
        assert_eq!((!(sizing & !0xf)).wrapping_add(1), 0x4000);
        space.write(0x10, &original.to_le_bytes());
        assert_eq!(space.bar_address(), 0xc000_4000);
        for other in (0x14..0x28).step_by(4).chain([0x30]) {
            space.write(other, &u32::MAX.to_le_bytes());
            assert_eq!(space.u32_at(other), 0, "no register at {other:#x}");
        }
    }

    #[test]
    fn identity_is_read_only_and_memory_space_is_off_at_first() {
        let mut space = space();
        assert!(!space.memory_enabled());
        space.write(0, &[0xff; 16]);
        assert_eq!(space.u32_at(0), 0x1042_1af4);
        assert!(space.memory_enabled());
        assert_eq!(space.u32_at(4), 0x0010_0406);
    }

    #[test]
    fn capabilities_form_a_list_that_ends() {
        let mut space = space();
        space.add_capability(0x09, &[5, 1, 2], &[0, 0xff, 0]);
        space.add_capability(0x11, &[9], &[0]);
        let mut found = Vec::new();
        let mut at = space.u32_at(0x34) as usize & 0xff;
        while at != 0 {
            let header = space.u32_at(at);
            found.push((at, header.to_le_bytes()[0]));
            at = header.to_le_bytes()[1] as usize;
        }
        assert_eq!(found, [(0x40, 0x09), (0x48, 0x11)]);
        space.write(0x40, &[0xff; 8]);
        assert_eq!(space.u32_at(0x40), 0xff05_4809);
    }

    #[test]
    fn hostile_offsets_and_widths_are_harmless() {
        let mut space = space();
        for offset in [0, 1, 255, 256, 4095, usize::MAX - 1, usize::MAX] {
            let mut data = [0xaa; 9];
            space.read(offset, &mut data);
            space.write(offset, &data);
        }
        let mut data = [0xaa; 4];
        space.read(254, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
