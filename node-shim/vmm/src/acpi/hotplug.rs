//! AML for what comes and goes while the guest runs: a generic event device (ACPI 6.4, 5.6.9) whose interrupt leads to processors (8.4) and
//! to slots of the PCI bus (6.3.6). The registers behind it: `node-shim/chips/src/cpus.rs` and `slots.rs`.
//!
//! ```text
//! interrupt -> GED._EVT: reads what happened -> CPUS.CSCN: Notify(C003, check or eject) -> Linux -> C003._EJ0 -> register
//!                                            -> PCI0.PCNT: Notify(S05, check or eject)  -> Linux -> S05._EJ0  -> register
//! ```

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Add, And, Arg, BufferData, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, IO, If, Interrupt, LessThan, Local, Method, MethodCall, Mutex, Name, Notify, ONE, OpRegion,
    OpRegionSpace, Path, Release, ResourceTemplate, Return, Store, While, ZERO,
};

use super::bytes;
use crate::layout;

/// What the event device's register says has happened: to processors.
pub(crate) const EVENT_CPUS: u8 = 1;
/// What the event device's register says has happened: to slots.
pub(crate) const EVENT_SLOTS: u8 = 2;
/// `Notify`: look again (5.6.6).
const DEVICE_CHECK: u8 = 1;
/// `Notify`: give the device up.
const EJECT_REQUEST: u8 = 3;
/// Wait for ever.
const FOR_EVER: u16 = 0xffff;

/// AML that is there already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// The same code for each of many.
fn each<T>(items: impl IntoIterator<Item = T>, code: impl Fn(T) -> Vec<u8>) -> Raw {
    Raw(items.into_iter().flat_map(code).collect())
}

fn ports(first: u16, count: u16) -> Vec<u8> {
    let count = u8::try_from(count).unwrap_or(u8::MAX);
    bytes(&Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![&IO::new(first, first, 1, count)]),
    ))
}

/// The generic event device.
pub(super) fn event_device() -> Vec<u8> {
    let (offset, length) = (layout::EVENTS, ONE);
    let happened = |event: u8, method: &str| {
        bytes(&If::new(
            &And::new(&ZERO, &Local(0), &event),
            vec![&MethodCall::new(method.into(), vec![])],
        ))
    };
    bytes(&Device::new(
        "_SB_.GED0".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(true, false, false, false, layout::EVENTS_IRQ)]),
            ),
            &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &offset, &length),
            &Field::new(
                "EVTR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("EVTS")),
                    &Raw(happened(EVENT_CPUS, "\\_SB_.CPUS.CSCN")),
                    &Raw(happened(EVENT_SLOTS, "\\_SB_.PCI0.PCNT")),
                ],
            ),
        ],
    ))
}

/// The processors, of which the methods of each call the container's.
pub(super) fn processors(max: u8) -> Vec<u8> {
    let mut code = bytes(&Device::new(
        "_SB_.CPUR".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A06")),
            &Name::new("_UID".into(), &"CPU registers"),
            &Raw(ports(layout::CPUS, node_shim_chips::cpus::BYTES)),
            &Mutex::new("CPLK".into(), 0),
            &OpRegion::new(
                "REGS".into(),
                OpRegionSpace::SystemIO,
                &layout::CPUS,
                &node_shim_chips::cpus::BYTES,
            ),
            // A write of one bit must not write back the others: each has an effect.
            &Field::new(
                "REGS".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![
                    FieldEntry::Named(*b"CSEL", 8),
                    FieldEntry::Named(*b"CPEN", 1),
                    FieldEntry::Named(*b"CINS", 1),
                    FieldEntry::Named(*b"CREM", 1),
                    FieldEntry::Named(*b"CEJT", 1),
                    FieldEntry::Reserved(4),
                    FieldEntry::Named(*b"COEV", 8),
                    FieldEntry::Named(*b"COST", 8),
                ],
            ),
        ],
    ));
    code.extend(bytes(&Device::new(
        "_SB_.CPUS".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0010"),
            &Name::new("_CID".into(), &EISAName::new("PNP0A05")),
            &Raw(container_methods(max)),
            &each(0..max, processor),
        ],
    )));
    code
}

fn register(name: &str) -> Path {
    Path::new(&format!("\\_SB_.CPUR.{name}"))
}

/// The body of a method between taking and releasing the registers.
fn locked(body: Vec<&dyn Aml>) -> Raw {
    let mut code = bytes(&Acquire::new(register("CPLK"), FOR_EVER));
    for part in body {
        part.to_aml_bytes(&mut code);
    }
    code.extend(bytes(&Release::new(register("CPLK"))));
    Raw(code)
}

fn container_methods(max: u8) -> Vec<u8> {
    let select = |what: &dyn Aml| Raw(bytes(&Store::new(&register("CSEL"), what)));
    let present: u8 = 0xf;
    let state = bytes(&Method::new(
        "CSTA".into(),
        1,
        true,
        vec![
            &locked(vec![
                &select(&Arg(0)),
                &Store::new(&Local(0), &ZERO),
                &If::new(
                    &Equal::new(&register("CPEN"), &ONE),
                    vec![&Store::new(&Local(0), &present)],
                ),
            ]),
            &Return::new(&Local(0)),
        ],
    ));
    let notify = bytes(&Method::new(
        "CTFY".into(),
        2,
        true,
        vec![&each(0..max, |id| {
            bytes(&If::new(
                &Equal::new(&Arg(0), &id),
                vec![&Notify::new(&Path::new(&name(id)), &Arg(1))],
            ))
        })],
    ));
    let eject = bytes(&Method::new(
        "CEJ0".into(),
        1,
        true,
        vec![&locked(vec![&select(&Arg(0)), &Store::new(&register("CEJT"), &ONE)])],
    ));
    let outcome = bytes(&Method::new(
        "COUT".into(),
        3,
        true,
        vec![&locked(vec![
            &select(&Arg(0)),
            &Store::new(&register("COEV"), &Arg(1)),
            &Store::new(&register("COST"), &Arg(2)),
        ])],
    ));
    // What happened is acknowledged after the guest was told.
    let told = |flag: &str, event: u8| {
        Raw(bytes(&If::new(
            &Equal::new(&register(flag), &ONE),
            vec![
                &MethodCall::new("CTFY".into(), vec![&Local(0), &event]),
                &Store::new(&register(flag), &ONE),
            ],
        )))
    };
    let scan = bytes(&Method::new(
        "CSCN".into(),
        0,
        true,
        vec![&locked(vec![
            &Store::new(&Local(0), &ZERO),
            &While::new(
                &LessThan::new(&Local(0), &max),
                vec![
                    &select(&Local(0)),
                    &told("CINS", DEVICE_CHECK),
                    &told("CREM", EJECT_REQUEST),
                    &Add::new(&Local(0), &Local(0), &ONE),
                ],
            ),
        ])],
    ));
    [state, notify, eject, outcome, scan].concat()
}

fn name(id: u8) -> String {
    format!("C{id:03X}")
}

fn processor(id: u8) -> Vec<u8> {
    // Processor local APIC structure (5.2.12.2): enabled, whatever the MADT said at the start.
    let apic = BufferData::new(vec![0, 8, id, id, 1, 0, 0, 0]);
    let eject = bytes(&Method::new(
        "_EJ0".into(),
        1,
        true,
        vec![&MethodCall::new("CEJ0".into(), vec![&id])],
    ));
    // The boot processor stays.
    let eject = if id == 0 { Vec::new() } else { eject };
    bytes(&Device::new(
        name(id).as_str().into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0007"),
            &Name::new("_UID".into(), &id),
            &Method::new(
                "_STA".into(),
                0,
                true,
                vec![&Return::new(&MethodCall::new("CSTA".into(), vec![&id]))],
            ),
            &Name::new("_MAT".into(), &apic),
            &Method::new(
                "_OST".into(),
                3,
                true,
                vec![&MethodCall::new("COUT".into(), vec![&id, &Arg(0), &Arg(1)])],
            ),
            &Raw(eject),
        ],
    ))
}

/// What the root bridge has for its slots.
pub(super) fn slots() -> impl Aml {
    const SLOTS: std::ops::Range<u8> = 1..node_shim_chips::slots::SLOTS;
    let slot_name = |slot: u8| format!("S{slot:03X}");
    let mut code = bytes(&OpRegion::new(
        "SLTR".into(),
        OpRegionSpace::SystemIO,
        &layout::SLOTS,
        &node_shim_chips::slots::BYTES,
    ));
    let registers = Field::new(
        "SLTR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"SLUP", 32),
            FieldEntry::Named(*b"SLDN", 32),
            FieldEntry::Named(*b"SLEJ", 32),
        ],
    );
    code.extend(bytes(&registers));
    for slot in SLOTS {
        let (address, bit) = (u32::from(slot) << 16, 1_u32 << slot);
        code.extend(bytes(&Device::new(
            slot_name(slot).as_str().into(),
            vec![
                &Name::new("_ADR".into(), &address),
                &Name::new("_SUN".into(), &slot),
                &Method::new("_EJ0".into(), 1, true, vec![&Store::new(&Path::new("SLEJ"), &bit)]),
            ],
        )));
    }
    let happened = |slot: u8, local: u8, event: u8| {
        let bit = 1_u32 << slot;
        bytes(&If::new(
            &And::new(&ZERO, &Local(local), &bit),
            vec![&Notify::new(&Path::new(&slot_name(slot)), &event)],
        ))
    };
    code.extend(bytes(&Method::new(
        "PCNT".into(),
        0,
        true,
        vec![
            &Store::new(&Local(0), &Path::new("SLUP")),
            &Store::new(&Local(1), &Path::new("SLDN")),
            &each(SLOTS, |slot| happened(slot, 0, DEVICE_CHECK)),
            &each(SLOTS, |slot| happened(slot, 1, EJECT_REQUEST)),
        ],
    )));
    Raw(code)
}

/// Flags of a processor in the MADT.
pub(super) const fn madt_flags(id: u8, present: u8) -> u8 {
    /// Enabled (5.2.12.2).
    const ENABLED: u8 = 1;
    /// Not there yet, and may come.
    const ONLINE_CAPABLE: u8 = 2;
    if id < present { ENABLED } else { ONLINE_CAPABLE }
}

const _: () = assert!(layout::PCI_SLOTS == node_shim_chips::slots::SLOTS as usize);
