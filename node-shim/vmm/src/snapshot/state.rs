//! The `state` file of a snapshot: everything of a VM but its memory and its disks.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | [`VERSION`], little-endian |
//! | 12 | 4 | CRC-32 of the rest after the length (IEEE 802.3), little-endian |
//! | 16 | 8 | bytes of the rest, little-endian |
//! | 24 | | [`VmState`] in postcard |
//!
//! The checksum finds damage; who can write the file can as well write a guest. Whatever is in it, reading it ends in a state or in an error.
//! This file knows only what the fuzzer of it knows too: no KVM and no other module.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_state2, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use node_shim_chips::cpus::Cpus;
use node_shim_chips::rtc::RtcState;
use node_shim_chips::slots::Slots;
use node_shim_chips::watchdog::WatchdogState;
use node_shim_virtio::pci::VirtioPciState;
use serde::{Deserialize, Serialize};

/// First bytes of the file.
pub(crate) const MAGIC: [u8; 8] = *b"TANDEMVM";
/// Version of [`VmState`]. Any change of it, or of what it is made of, is another version.
pub(crate) const VERSION: u32 = 1;
/// Longest file in bytes: 128 vCPUs with 16 KiB each and the largest configuration are far less.
pub(crate) const FILE_MAX_BYTES: u64 = 64 << 20;
/// Bytes before the state itself.
const HEADER_BYTES: usize = 24;

/// A whole VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VmState {
    /// The `VmConfig` in JSON.
    pub(crate) config: String,
    /// Whether the guest's kernel had taken a device.
    pub(crate) booted: bool,
    /// When the guest was started, in milliseconds since the Unix epoch.
    pub(crate) boot_time_ms: u64,
    /// Resets of the guest.
    pub(crate) resets: u64,
    /// What was found on the disk that the VM boots from; empty where it boots from files.
    pub(crate) kernel: String,
    /// Bytes of the memory file: RAM, and after it the range of memory that is plugged later.
    pub(crate) memory_bytes: u64,
    /// Files of the disks: names in the folder and in the scratch directory.
    pub(crate) disks: Vec<String>,
    /// The rest.
    pub(crate) machine: MachineState,
}

/// What a machine has beside memory and disks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// The clocks.
    pub(crate) clock: ClockState,
    /// Interrupt controllers and timer.
    pub(crate) chips: ChipsState,
    /// The registers of the vCPUs' controller: which of them are there.
    pub(crate) cpus: Cpus,
    /// Each that was ever there, in the order of their APIC ids.
    pub(crate) vcpus: Vec<SavedVcpu>,
    /// COM1.
    pub(crate) serial: SerialState,
    /// ACPI fixed hardware.
    pub(crate) power: PowerState,
    /// The PC's clock.
    pub(crate) rtc: RtcState,
    /// The watchdog.
    pub(crate) watchdog: WatchdogState,
    /// The registers of the slots' controller.
    pub(crate) slots: Slots,
    /// What the event device has not yet told the guest.
    pub(crate) happened: u8,
    /// PCI configuration address port.
    pub(crate) pci_address: u32,
    /// virtio devices, in the order of their slots.
    pub(crate) functions: Vec<VirtioPciState>,
}

/// The clocks at the moment of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClockState {
    /// kvmclock, in nanoseconds.
    pub(crate) guest_ns: u64,
    /// The host's wall clock at the same moment, in nanoseconds since the Unix epoch.
    pub(crate) real_ns: u64,
    /// Frequency of the guest's time stamp counter in kHz; 0 where KVM does not know.
    pub(crate) tsc_khz: u32,
}

/// Interrupt controllers and timer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChipsState {
    /// First PIC, second PIC, IO APIC.
    pub(crate) controllers: [kvm_irqchip; 3],
    /// The PIT.
    pub(crate) timer: kvm_pit_state2,
}

/// A vCPU and which it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SavedVcpu {
    /// Its APIC id.
    pub(crate) index: u8,
    /// Its state.
    pub(crate) state: VcpuState,
}

/// One vCPU between two instructions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    /// What CPUID tells the guest.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    /// Running, halted, waiting for a SIPI.
    pub(crate) mp_state: kvm_mp_state,
    /// General registers.
    pub(crate) regs: kvm_regs,
    /// Segments and control registers.
    pub(crate) sregs: kvm_sregs,
    /// The XSAVE area in 32-bit words.
    pub(crate) xsave: Vec<u32>,
    /// Extended control registers.
    pub(crate) xcrs: kvm_xcrs,
    /// Debug registers.
    pub(crate) debug_registers: kvm_debugregs,
    /// Local APIC.
    pub(crate) lapic: kvm_lapic_state,
    /// Model-specific registers: index and value.
    pub(crate) msrs: Vec<(u32, u64)>,
    /// Exceptions and interrupts on their way.
    pub(crate) events: kvm_vcpu_events,
}

/// A 16550 (the registers of `vm_superio::SerialState`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialState {
    /// Divisor latch: low, high.
    pub(crate) divisor: [u8; 2],
    /// Interrupt enable and identification, line control and status, modem control and status, scratch.
    pub(crate) registers: [u8; 7],
    /// Input that the guest has not read.
    pub(crate) input: Vec<u8>,
}

/// The `PM1a` registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PowerState {
    /// Status.
    pub(crate) status: u16,
    /// Enable.
    pub(crate) enable: u16,
    /// Control.
    pub(crate) control: u16,
}

/// Why bytes are no state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    /// Too short, or another kind of file.
    #[error("is not the state of a snapshot")]
    NotAState,
    /// Written by another version.
    #[error(
        "has format version {0} and this node-shim reads version {VERSION}; restore it with the node-shim that wrote it"
    )]
    Version(u32),
    /// Cut off, or with something behind it.
    #[error("is damaged: it should be {expected} bytes long and is {found}; use another snapshot")]
    Length {
        /// By its header.
        expected: u64,
        /// In fact.
        found: u64,
    },
    /// The checksum is another one.
    #[error("is damaged: its checksum is wrong; use another snapshot")]
    Checksum,
    /// The checksum is right and the contents are not.
    #[error("is damaged: {0}; use another snapshot")]
    Contents(String),
}

/// The file's bytes.
pub(crate) fn encode(state: &VmState) -> Result<Vec<u8>, FormatError> {
    let contents = |error: postcard::Error| FormatError::Contents(error.to_string());
    let payload = postcard::to_stdvec(state).map_err(contents)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// The state in a file's bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<VmState, FormatError> {
    let (header, payload) = bytes.split_at_checked(HEADER_BYTES).ok_or(FormatError::NotAState)?;
    let field = |at: usize| -> [u8; 4] { header[at..at + 4].try_into().unwrap_or_default() };
    if header[..8] != MAGIC {
        return Err(FormatError::NotAState);
    }
    let version = u32::from_le_bytes(field(8));
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let expected = u64::from(u32::from_le_bytes(field(16))) | u64::from(u32::from_le_bytes(field(20))) << 32;
    if expected != payload.len() as u64 {
        return Err(FormatError::Length {
            expected: expected.saturating_add(HEADER_BYTES as u64),
            found: bytes.len() as u64,
        });
    }
    if crc32fast::hash(payload) != u32::from_le_bytes(field(12)) {
        return Err(FormatError::Checksum);
    }
    let (state, rest) = postcard::take_from_bytes(payload).map_err(|error| FormatError::Contents(error.to_string()))?;
    if !rest.is_empty() {
        return Err(FormatError::Contents(format!("{} bytes too many", rest.len())));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use node_shim_chips::rtc::Rtc;
    use node_shim_chips::watchdog::Watchdog;

    use super::*;

    fn state() -> VmState {
        VmState {
            config: "{}".to_owned(),
            booted: true,
            boot_time_ms: 1,
            resets: 2,
            kernel: "/boot/vmlinuz".to_owned(),
            memory_bytes: 1 << 30,
            disks: vec!["root.overlay".to_owned()],
            machine: machine(),
        }
    }

    fn machine() -> MachineState {
        MachineState {
            clock: ClockState {
                guest_ns: 5,
                real_ns: 6,
                tsc_khz: 7,
            },
            chips: ChipsState {
                controllers: Default::default(),
                timer: kvm_pit_state2::default(),
            },
            cpus: Cpus::new(1, 2),
            vcpus: vec![SavedVcpu {
                index: 0,
                state: VcpuState {
                    cpuid: vec![kvm_cpuid_entry2::default()],
                    mp_state: kvm_mp_state::default(),
                    regs: kvm_regs {
                        rip: 0x1234,
                        ..Default::default()
                    },
                    sregs: kvm_sregs::default(),
                    xsave: vec![1; 1024],
                    xcrs: kvm_xcrs::default(),
                    debug_registers: kvm_debugregs::default(),
                    lapic: kvm_lapic_state::default(),
                    msrs: vec![(0x10, 42)],
                    events: kvm_vcpu_events::default(),
                },
            }],
            serial: SerialState {
                input: b"abc".to_vec(),
                ..Default::default()
            },
            power: PowerState::default(),
            rtc: Rtc::default().save(),
            watchdog: Watchdog::default().save(std::time::Instant::now()),
            slots: Slots::default(),
            happened: 1,
            pci_address: 0x8000_0000,
            functions: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = encode(&state()).unwrap();
        let back = decode(&bytes).unwrap();
        let vcpu = &back.machine.vcpus[0].state;
        assert_eq!(vcpu.regs.rip, 0x1234);
        assert_eq!((vcpu.msrs[0], back.machine.serial.input), ((0x10, 42), b"abc".to_vec()));
        assert_eq!(encode(&decode(&bytes).unwrap()).unwrap(), bytes);
    }

    #[test]
    fn every_damaged_byte_is_found() {
        let bytes = encode(&state()).unwrap();
        for at in (0..bytes.len()).step_by(7).chain(0..HEADER_BYTES) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
        for length in [0, 7, HEADER_BYTES - 1, HEADER_BYTES, bytes.len() - 1] {
            assert!(decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(matches!(decode(&longer), Err(FormatError::Length { .. })));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode(&state()).unwrap();
        bytes[8] = 9;
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error, FormatError::Version(9));
        assert!(error.to_string().contains("version 9"), "{error}");
    }
}
