//! Every number that the guest can see: its memory map, its ports, its interrupts.
//!
//! ```text
//! guest-physical memory
//!   0x0000_0000  RAM (the first 640 KiB; boot structures below)
//!   0x0009_fc00  reserved up to 1 MiB: ACPI tables from 0x000e_0000
//!   0x0010_0000  RAM: the kernel, and at its end the initrd
//!   0xc000_0000  PCI window: one BAR_SIZE for each slot
//!   0xe000_0000  ECAM, bus 0
//!   0xfec0_0000  IO APIC          0xfee0_0000  local APICs
//!   0xfffb_c000  KVM's identity map page and TSS (Intel, real mode)
//! 0x1_0000_0000  RAM beyond 3 GiB; after all RAM, below 3 GiB where it fits, memory that is plugged later
//!
//! boot structures, free for the guest once it runs
//!   0x0500 GDT   0x6000 PVH start info   0x7000 zero page
//!   0x9000 PML4  0xa000 PDPT  0xb000-0xefff page directories   0x2_0000 command line
//!
//! ports
//!   0x064 keyboard controller (reset only)   0x070-0x071 clock and CMOS     0x3f8-0x3ff COM1     0x505 pvpanic
//!   0x600-0x607 ACPI PM1a event and control  0x610-0x61f watchdog
//!   0x620 ACPI events   0x630-0x633 processors   0x640-0x64b PCI slots      0xcf8-0xcff PCI configuration, 0xcf9 reset
//! ```

/// Bytes of a 4 KiB page.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// Where the GDT of the boot processor is.
pub(crate) const GDT: u64 = 0x500;
/// PVH `hvm_start_info`, its module list and its memory map.
pub(crate) const PVH_START_INFO: u64 = 0x6000;
/// Linux `boot_params`.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Stack pointer at entry: below the page tables, above the zero page.
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
/// Page-map level 4.
pub(crate) const PML4: u64 = 0x9000;
/// Page-directory pointer table.
pub(crate) const PDPT: u64 = 0xa000;
/// Four page directories, one for each of the first 4 GiB.
pub(crate) const PAGE_DIRECTORIES: u64 = 0xb000;
/// The kernel command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line in bytes, without its NUL (`COMMAND_LINE_SIZE` of x86 Linux is 2048).
pub(crate) const COMMAND_LINE_MAX_BYTES: usize = 2047;

/// End of conventional memory, where a BIOS would keep its extended data area.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables: in the area that an operating system searches for the RSDP (ACPI 6.4, 5.2.5.1).
pub(crate) const ACPI_TABLES: u64 = 0xe_0000;
/// End of the area for ACPI tables.
pub(crate) const ACPI_TABLES_END: u64 = 0x10_0000;
/// Start of the memory that a kernel may be loaded to.
pub(crate) const HIGH_RAM_START: u64 = 0x10_0000;

/// Start of the hole for devices; RAM beyond it continues at [`RAM_ABOVE_4G`].
pub(crate) const HOLE_START: u64 = 0xc000_0000;
/// Where RAM continues after the hole.
pub(crate) const RAM_ABOVE_4G: u64 = 0x1_0000_0000;

/// Start of the window for PCI BARs.
pub(crate) const PCI_WINDOW: u64 = HOLE_START;
/// Bytes of the window for PCI BARs.
pub(crate) const PCI_WINDOW_SIZE: u64 = 0x2000_0000;
/// Part of the window that each PCI slot has for its one BAR.
pub(crate) const BAR_SIZE: u64 = 0x8_0000;
/// Slots of the PCI bus; the host bridge has the first.
pub(crate) const PCI_SLOTS: usize = 32;
/// PCI Express configuration space of bus 0.
pub(crate) const ECAM: u64 = 0xe000_0000;
/// Bytes of [`ECAM`]: 32 devices of 8 functions of 4 KiB each.
pub(crate) const ECAM_SIZE: u64 = 0x10_0000;

/// IO APIC registers.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Page that KVM needs on Intel processors to run real mode without paging.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel processors for a task state segment.
pub(crate) const KVM_TSS: usize = 0xfffb_d000;

/// Keyboard controller's status and command port: only its reset command exists.
pub(crate) const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// First serial port.
pub(crate) const COM1: u16 = 0x3f8;
/// Ports of a 16550.
pub(crate) const COM1_PORTS: u16 = 8;
/// Interrupt of the first serial port.
pub(crate) const COM1_IRQ: u32 = 4;
/// Index port of the clock; the data port is the next.
pub(crate) const RTC: u16 = 0x70;
/// Interrupt of the clock.
pub(crate) const RTC_IRQ: u32 = 8;
/// Port that a guest panics on, as in QEMU.
pub(crate) const PANIC_PORT: u16 = 0x505;
/// Registers of the watchdog.
pub(crate) const WATCHDOG: u16 = 0x610;
/// Port that says what the generic event device's interrupt is for.
pub(crate) const EVENTS: u16 = 0x620;
/// Interrupt of the generic event device: level-triggered, beyond those of ISA.
pub(crate) const EVENTS_IRQ: u32 = 16;
/// Registers for plugging processors.
pub(crate) const CPUS: u16 = 0x630;
/// Registers for plugging PCI functions.
pub(crate) const SLOTS: u16 = 0x640;
/// Memory that is plugged later below 4 GiB starts at a multiple of this: Linux' smallest memory block (x86).
pub(crate) const LATER_MEMORY_ALIGNMENT_LOW: u64 = 128 << 20;
/// Memory that is plugged later above 4 GiB starts at a multiple of this: Linux' largest memory block (x86, from 64 GiB on).
pub(crate) const LATER_MEMORY_ALIGNMENT: u64 = 2 << 30;
/// ACPI `PM1a` event block: status, then enable, 2 bytes each (ACPI 6.4, 4.8.3.1).
pub(crate) const PM1A_EVENT: u16 = 0x600;
/// ACPI `PM1a` control block, 2 bytes (ACPI 6.4, 4.8.3.2).
pub(crate) const PM1A_CONTROL: u16 = 0x604;
/// Ports of both `PM1a` blocks.
pub(crate) const PM1A_PORTS: u16 = 8;
/// System control interrupt: level-triggered, active high.
pub(crate) const SCI_IRQ: u32 = 9;
/// PCI configuration address.
pub(crate) const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Ports of PCI configuration: address and data.
pub(crate) const PCI_CONFIG_PORTS: u16 = 8;
/// Reset control register, inside the PCI configuration ports.
pub(crate) const RESET_PORT: u16 = 0xcf9;
/// What resets the machine when written to [`RESET_PORT`]: a hard reset (bits 1 and 2).
pub(crate) const RESET_VALUE: u8 = 0x06;
/// Sleep type of S5 in the `PM1a` control register, as `\_S5` tells the guest.
pub(crate) const S5_SLEEP_TYPE: u8 = 5;

/// Input pins of the IO APIC; interrupts from here on are MSI routes.
pub(crate) const IO_APIC_PINS: u32 = 24;

const _: () = assert!(PCI_SLOTS as u64 * BAR_SIZE <= PCI_WINDOW_SIZE);
const _: () = assert!(PCI_WINDOW + PCI_WINDOW_SIZE <= ECAM);
const _: () = assert!(ECAM + ECAM_SIZE <= IO_APIC as u64);
const _: () = assert!(COMMAND_LINE + (COMMAND_LINE_MAX_BYTES as u64) < LOW_RAM_END);
