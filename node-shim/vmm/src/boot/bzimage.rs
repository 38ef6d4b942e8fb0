//! bzImage: Linux Documentation/arch/x86/boot.rst, "The Linux/x86 Boot Protocol" and its 64-bit part.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use node_shim_virtio::device::Memory;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, KernelFiles, Placement};
use crate::layout;
use crate::memory::{Range, memory_map};
use crate::registers::Entry;

/// Where the header's magic number is.
pub(super) const MAGIC_OFFSET: usize = 0x202;
/// The header's magic number.
pub(super) const MAGIC: [u8; 4] = *b"HdrS";
/// 2.12: `xloadflags`, which tell whether there is a 64-bit entry point.
const VERSION_MIN: u16 = 0x020c;
/// `xloadflags`: 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point's offset in the loaded kernel.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: no assigned id.
const LOADER_UNDEFINED: u8 = 0xff;

/// A bzImage that is in guest memory.
pub(super) struct Image {
    header: setup_header,
    load_address: u64,
    /// What the rest needs to know.
    pub(super) placement: Placement,
}

/// Loads the protected-mode part at 1 MiB.
pub(super) fn load(source: &KernelFiles, memory: &Memory, memory_bytes: u64) -> Result<Image, BootError> {
    let mut kernel = &source.kernel;
    let file_bytes = super::length("kernel", &source.kernel_path, kernel)?;
    let end = layout::HIGH_RAM_START.saturating_add(file_bytes);
    if end > memory_bytes.min(layout::HOLE_START) {
        return Err(BootError::TooLittleMemory {
            have_bytes: memory_bytes,
            need_bytes: end.saturating_add(source.initrd_bytes()),
        });
    }
    let loaded = BzImage::load(memory, Some(GuestAddress(layout::HIGH_RAM_START)), &mut kernel, None)
        .map_err(|error| source.not_a_kernel(error.to_string()))?;
    let header = loaded
        .setup_header
        .ok_or_else(|| source.not_a_kernel("it has no setup header"))?;
    check(source, &header)?;
    let placement = placement(&header, loaded.kernel_end);
    Ok(Image {
        header,
        load_address: layout::HIGH_RAM_START,
        placement,
    })
}

fn check(source: &KernelFiles, header: &setup_header) -> Result<(), BootError> {
    let (version, flags, command_line_max) = (header.version, header.xloadflags, header.cmdline_size);
    if version < VERSION_MIN || flags & XLF_KERNEL_64 == 0 {
        return Err(source.not_a_kernel("it has no 64-bit entry point"));
    }
    if source.command_line.len() as u64 > u64::from(command_line_max) {
        return Err(BootError::CommandLine {
            bytes: source.command_line.len(),
            max_bytes: command_line_max,
        });
    }
    Ok(())
}

/// The kernel unpacks itself at its preferred address, into `init_size` bytes.
fn placement(header: &setup_header, loaded_end: u64) -> Placement {
    let (preferred, init_size, initrd_max) = (header.pref_address, header.init_size, header.initrd_addr_max);
    let unpacked_end = preferred.saturating_add(u64::from(init_size));
    Placement {
        kernel_end: unpacked_end.max(loaded_end),
        initrd_max: u64::from(initrd_max),
    }
}

impl Image {
    /// Writes `boot_params` and says where to start.
    pub(super) fn write_zero_page(
        &self,
        memory: &Memory,
        memory_bytes: u64,
        initrd: Option<Range>,
        rsdp: u64,
    ) -> Result<Entry, BootError> {
        let mut params = boot_params {
            hdr: self.header,
            acpi_rsdp_addr: rsdp,
            ..Default::default()
        };
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        #[allow(clippy::cast_possible_truncation, reason = "all of these are below 4 GiB")]
        {
            params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
            if let Some(initrd) = initrd {
                params.hdr.ramdisk_image = initrd.start as u32;
                params.hdr.ramdisk_size = initrd.size as u32;
            }
        }
        let map = memory_map(memory_bytes);
        for (entry, (range, kind)) in params.e820_table.iter_mut().zip(&map) {
            *entry = boot_e820_entry {
                addr: range.start,
                size: range.size,
                r#type: *kind as u32,
            };
        }
        params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
        memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
        Ok(Entry::Linux64 {
            address: self.load_address + ENTRY_64,
        })
    }
}
