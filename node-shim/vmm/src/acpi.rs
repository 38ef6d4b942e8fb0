//! ACPI tables (ACPI 6.4): what tells the guest about its processors, its PCI bus, its serial port and its power button.
//!
//! The power button and S5 are the fixed hardware of ACPI (`PM1a` registers and the system control interrupt), which every operating
//! system knows how to handle without AML.

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use node_shim_virtio::device::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::{Range, ram_ranges};

pub(crate) mod hotplug;
mod tables;

const OEM_ID: [u8; 6] = *b"TANDEM";
const OEM_TABLE_ID: [u8; 8] = *b"NODESHIM";
const OEM_REVISION: u32 = 1;
/// Each table starts on such a boundary; the FACS must (ACPI 6.4, 5.2.10).
const ALIGNMENT: u64 = 64;
/// FADT IA-PC boot flags (5.2.9.3): no VGA; and no bit for a keyboard controller.
const BOOT_FLAGS: u16 = 1 << 2;
/// MADT flags (5.2.12): there are 8259 interrupt controllers too.
const MADT_PCAT_COMPAT: u32 = 1;
/// MADT interrupt flags (5.2.12.5): active high, level-triggered.
const MADT_ACTIVE_HIGH_LEVEL: u16 = 0b1101;

/// The tables do not fit into their area: a defect.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the ACPI tables: {0}")]
pub(crate) struct AcpiError(String);

/// What the tables tell the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Description {
    /// Processors that are there at the start.
    pub(crate) vcpus: u8,
    /// Most processors.
    pub(crate) vcpus_max: u8,
    /// Bytes of RAM.
    pub(crate) memory_bytes: u64,
    /// Where memory may come later.
    pub(crate) later_memory: Option<Range>,
}

/// The tables, one after the other, as they are from [`layout::ACPI_TABLES`] on; the RSDP is the first.
pub(crate) fn tables(machine: &Description) -> Vec<u8> {
    let mut area = Area::after_rsdp();
    let dsdt = area.add(&bytes(&dsdt(machine.vcpus_max)));
    let facs = area.add(&bytes(&FACS::new()));
    let fadt = area.add(&bytes(&fadt(dsdt, facs).finalize()));
    let madt = area.add(madt(machine).as_slice());
    let mut mcfg_table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg_table.add_ecam(layout::ECAM, 0, 0, 0);
    let mcfg = area.add(&bytes(&mcfg_table));
    let mut xsdt_table = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let wdat = area.add(tables::wdat().as_slice());
    let srat = machine.later_memory.map(|later| {
        let ram = ram_ranges(machine.memory_bytes);
        area.add(tables::srat(machine.vcpus_max, &ram, later).as_slice())
    });
    for table in [fadt, madt, mcfg, wdat].into_iter().chain(srat) {
        xsdt_table.add_entry(table);
    }
    let xsdt = area.add(&bytes(&xsdt_table));
    area.finish(&bytes(&Rsdp::new(OEM_ID, xsdt)))
}

/// Writes the tables and returns the address of the RSDP.
pub(crate) fn write(memory: &Memory, machine: &Description) -> Result<u64, AcpiError> {
    let tables = tables(machine);
    if layout::ACPI_TABLES + tables.len() as u64 > layout::ACPI_TABLES_END {
        return Err(AcpiError(format!("{} bytes are too many", tables.len())));
    }
    memory
        .write_slice(&tables, GuestAddress(layout::ACPI_TABLES))
        .map_err(|error| AcpiError(error.to_string()))?;
    Ok(layout::ACPI_TABLES)
}

/// Tables that follow each other in guest memory.
struct Area(Vec<u8>);

impl Area {
    fn after_rsdp() -> Self {
        Self(vec![0; Rsdp::len()])
    }

    /// Appends a table and returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let offset = (self.0.len() as u64).next_multiple_of(ALIGNMENT);
        self.0.resize(usize::try_from(offset).unwrap_or(usize::MAX), 0);
        self.0.extend_from_slice(table);
        layout::ACPI_TABLES + offset
    }

    fn finish(mut self, rsdp: &[u8]) -> Vec<u8> {
        self.0[..rsdp.len()].copy_from_slice(rsdp);
        self.0
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(address))
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "interrupt numbers and addresses below 4 GiB"
)]
fn fadt(dsdt: u64, facs: u64) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.sci_int = (layout::SCI_IRQ as u16).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1A_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(layout::PM1A_EVENT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(layout::PM1A_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(layout::PM1A_CONTROL, 16, AccessSize::WordAccess);
    // Values that mean "not supported" (5.2.9).
    fadt.p_lvl2_lat = 0xffff.into();
    fadt.p_lvl3_lat = 0xffff.into();
    fadt.century = node_shim_chips::rtc::CENTURY;
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = port(layout::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt
}

/// The multiple APIC description table: local APICs, the IO APIC, and the SCI's polarity (5.2.12).
#[allow(clippy::cast_possible_truncation, reason = "interrupt numbers below 16")]
fn madt(machine: &Description) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&layout::LOCAL_APIC.to_le_bytes());
    madt.append_slice(&MADT_PCAT_COMPAT.to_le_bytes());
    for id in 0..machine.vcpus_max {
        // Type 0, processor local APIC: processor UID, APIC id, flags.
        madt.append_slice(&[0, 8, id, id, hotplug::madt_flags(id, machine.vcpus), 0, 0, 0]);
    }
    // Type 1, IO APIC: id, address, first interrupt.
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append_slice(&layout::IO_APIC.to_le_bytes());
    madt.append_slice(&0_u32.to_le_bytes());
    // Type 2, interrupt source override: ISA bus, source, interrupt, flags.
    madt.append_slice(&[2, 10, 0, layout::SCI_IRQ as u8]);
    madt.append_slice(&layout::SCI_IRQ.to_le_bytes());
    madt.append_slice(&MADT_ACTIVE_HIGH_LEVEL.to_le_bytes());
    // Type 4, local APIC NMI: all processors, default polarity, LINT1.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

/// The differentiated system description table: PCI root bridge, reserved memory, small devices, processors, S5.
fn dsdt(vcpus_max: u8) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut code = Vec::new();
    root_bridge(&mut code);
    aml::Device::new(
        "_SB_.MBRD".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(true, ECAM_32, ECAM_SIZE_32)]),
            ),
        ],
    )
    .to_aml_bytes(&mut code);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(layout::COM1, layout::COM1, 1, COM1_PORTS_8),
                    &aml::Interrupt::new(true, true, false, false, layout::COM1_IRQ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut code);
    legacy_devices(&mut code);
    code.extend(hotplug::processors(vcpus_max));
    code.extend(hotplug::event_device());
    let sleep_type: &dyn Aml = &layout::S5_SLEEP_TYPE;
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![sleep_type, sleep_type, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut code);
    dsdt.append_slice(&code);
    dsdt
}

#[allow(clippy::cast_possible_truncation, reason = "checked in layout: both are below 4 GiB")]
const ECAM_32: u32 = layout::ECAM as u32;
#[allow(clippy::cast_possible_truncation, reason = "1 MiB")]
const ECAM_SIZE_32: u32 = layout::ECAM_SIZE as u32;
#[allow(clippy::cast_possible_truncation, reason = "8 ports")]
const COM1_PORTS_8: u8 = layout::COM1_PORTS as u8;
#[allow(clippy::cast_possible_truncation, reason = "checked in layout: both are below 4 GiB")]
const PCI_WINDOW_32: (u32, u32) = (
    layout::PCI_WINDOW as u32,
    (layout::PCI_WINDOW + layout::PCI_WINDOW_SIZE - 1) as u32,
);

/// The clock, and the port that a guest panics on.
fn legacy_devices(code: &mut Vec<u8>) {
    let clock: &dyn Aml = &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0B00"));
    aml::Device::new(
        "_SB_.RTC0".into(),
        vec![
            clock,
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(layout::RTC, layout::RTC, 1, 2),
                    &aml::Interrupt::new(true, true, false, false, layout::RTC_IRQ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
    let present: &dyn Aml = &0xf_u8;
    aml::Device::new(
        "_SB_.PEVT".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_STA".into(), present),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(layout::PANIC_PORT, layout::PANIC_PORT, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// The PCI Express root bridge of bus 0. Its devices use MSI-X only, so there is no `_PRT`.
fn root_bridge(code: &mut Vec<u8>) {
    let configuration_end = layout::PCI_CONFIG_PORT + layout::PCI_CONFIG_PORTS;
    aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0_u16, 0_u16),
                    &aml::IO::new(layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_PORT, 1, PCI_CONFIG_PORTS_8),
                    &aml::AddressSpace::new_io(configuration_end, 0xffff_u16, None),
                    &aml::AddressSpace::new_memory(
                        aml::AddressSpaceCacheable::NotCacheable,
                        true,
                        PCI_WINDOW_32.0,
                        PCI_WINDOW_32.1,
                        None,
                    ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
    aml::Scope::new("_SB_.PCI0".into(), vec![&hotplug::slots()]).to_aml_bytes(code);
}

#[allow(clippy::cast_possible_truncation, reason = "8 ports")]
const PCI_CONFIG_PORTS_8: u8 = layout::PCI_CONFIG_PORTS as u8;

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at a guest-physical address, its checksum verified.
    fn table(tables: &[u8], address: u64) -> &[u8] {
        let offset = usize::try_from(address - layout::ACPI_TABLES).unwrap();
        let length = u32_at(tables, offset + 4) as usize;
        let table = &tables[offset..offset + length];
        if &table[..4] != b"FACS" {
            assert_eq!(sum(table), 0, "checksum of {:?}", String::from_utf8_lossy(&table[..4]));
        }
        table
    }

    fn by_signature<'a>(tables: &'a [u8], signature: &str) -> &'a [u8] {
        let xsdt = table(tables, u64_at(tables, 24));
        let mut found = xsdt[36..].chunks_exact(8).map(|entry| table(tables, u64_at(entry, 0)));
        found.find(|table| &table[..4] == signature.as_bytes()).unwrap()
    }

    fn machine(vcpus: u8, vcpus_max: u8) -> Description {
        Description {
            vcpus,
            vcpus_max,
            memory_bytes: 4 << 30,
            later_memory: Some(Range {
                start: 8 << 30,
                size: 1 << 30,
            }),
        }
    }

    #[test]
    fn the_rsdp_leads_to_every_table_and_checksums_hold() {
        let tables = tables(&machine(2, 2));
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!(sum(&tables[..20]), 0);
        assert_eq!(sum(&tables[..36]), 0);
        let fadt = by_signature(&tables, "FACP");
        assert_eq!(&table(&tables, u64_at(fadt, 140))[..4], b"DSDT");
        assert_eq!(&table(&tables, u64::from(u32_at(fadt, 36)))[..4], b"FACS");
        assert_eq!(u32_at(fadt, 36) % 64, 0, "the FACS is aligned");
        let mcfg = by_signature(&tables, "MCFG");
        assert_eq!(u64_at(mcfg, 44), layout::ECAM);
    }

    #[test]
    fn the_fadt_says_where_button_sleep_and_reset_are() {
        let tables = tables(&machine(1, 1));
        let fadt = by_signature(&tables, "FACP");
        assert_eq!(u32_at(fadt, 56), u32::from(layout::PM1A_EVENT));
        assert_eq!(u32_at(fadt, 64), u32::from(layout::PM1A_CONTROL));
        assert_eq!(u64_at(fadt, 120), u64::from(layout::RESET_PORT));
        assert_eq!(fadt[128], layout::RESET_VALUE);
        assert_eq!(u32_at(fadt, 112) & (1 << 4), 0, "the power button is fixed hardware");
    }

    #[test]
    fn the_madt_has_every_vcpu() {
        for (vcpus, max) in [(1, 1), (2, 3), (1, 128), (128, 128)] {
            let tables = tables(&machine(vcpus, max));
            assert!(layout::ACPI_TABLES + (tables.len() as u64) < layout::ACPI_TABLES_END);
            let mut rest = &by_signature(&tables, "APIC")[44..];
            let (mut ids, mut enabled) = (Vec::new(), 0);
            while let [kind, length, ..] = *rest {
                if kind == 0 {
                    ids.push(rest[3]);
                    enabled += rest[4] & 1;
                    assert_eq!(rest[4] & 3 == 2, rest[3] >= vcpus, "online capable");
                }
                rest = &rest[usize::from(length)..];
            }
            assert_eq!((ids, enabled), ((0..max).collect::<Vec<_>>(), vcpus));
        }
    }

    #[test]
    fn the_wdat_names_registers_that_the_watchdog_has() {
        use node_shim_chips::watchdog;
        let tables = tables(&machine(1, 1));
        let wdat = by_signature(&tables, "WDAT");
        assert_eq!((u32_at(wdat, 36), u32_at(wdat, 48)), (32, 100));
        assert_eq!(wdat[60] & 1, 1, "enabled");
        let entries = wdat[68..].chunks_exact(24);
        assert_eq!(entries.len(), u32_at(wdat, 64) as usize);
        assert!(entries.remainder().is_empty());
        let first = u64::from(layout::WATCHDOG);
        for entry in entries {
            let address = u64_at(entry, 8);
            assert!(address >= first && address + 4 <= first + u64::from(watchdog::BYTES) && address.is_multiple_of(4));
        }
    }

    #[test]
    fn the_srat_covers_all_memory_and_is_there_only_when_more_can_come() {
        let with = tables(&machine(1, 2));
        let srat = by_signature(&with, "SRAT");
        let (mut rest, mut found) = (&srat[48..], Vec::new());
        while let [kind, length, ..] = *rest {
            if kind == 1 {
                found.push((u64_at(rest, 8), u64_at(rest, 16), u32_at(rest, 28)));
            }
            rest = &rest[usize::from(length)..];
        }
        assert_eq!(found, [(0, 3 << 30, 1), (4 << 30, 1 << 30, 1), (8 << 30, 1 << 30, 3)]);
        let without = tables(&Description {
            later_memory: None,
            ..machine(1, 2)
        });
        assert!(!without.windows(4).any(|word| word == b"SRAT"));
    }

    #[test]
    fn only_processors_that_are_not_the_first_can_be_ejected() {
        let dsdt = |max| {
            let tables = tables(&machine(1, max));
            let fadt = by_signature(&tables, "FACP");
            table(&tables, u64_at(fadt, 140)).to_vec()
        };
        let count = |dsdt: &[u8], name: &[u8]| dsdt.windows(4).filter(|word| *word == name).count();
        // Every slot but the bridge's, and every processor but the first.
        assert_eq!(count(&dsdt(1), b"_EJ0"), 31);
        assert_eq!(count(&dsdt(8), b"_EJ0"), 31 + 7);
        assert_eq!(count(&dsdt(8), b"_MAT"), 8);
    }
}
