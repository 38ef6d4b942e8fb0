//! ELF with a PVH entry point: Xen docs/misc/pvh.pandoc and include/public/arch-x86/hvm/start_info.h.

use std::mem::size_of;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use node_shim_virtio::device::Memory;
use vm_memory::{Address, ByteValued, Bytes, GuestAddress};

use super::{BootError, KernelFiles, Placement};
use crate::layout;
use crate::memory::{Range, memory_map};
use crate::registers::Entry;

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_VERSION: u32 = 1;
/// The PVH entry runs without paging and Linux reads its modules with 32-bit addresses.
const INITRD_MAX: u64 = u32::MAX as u64;

/// An ELF kernel that is in guest memory.
pub(super) struct Image {
    entry: u64,
    /// What the rest needs to know.
    pub(super) placement: Placement,
}

/// Loads every segment to its physical address.
pub(super) fn load(source: &KernelFiles, memory: &Memory, memory_bytes: u64) -> Result<Image, BootError> {
    let mut kernel = &source.kernel;
    let loaded = Elf::load(memory, None, &mut kernel, Some(GuestAddress(layout::HIGH_RAM_START)))
        .map_err(|error| explain(source, memory_bytes, &error))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(Image {
            entry: entry.raw_value(),
            placement: Placement {
                kernel_end: loaded.kernel_end,
                initrd_max: INITRD_MAX,
            },
        }),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            Err(source.not_a_kernel("the ELF file has no PVH entry point (XEN_ELFNOTE_PHYS32_ENTRY)"))
        }
    }
}

/// A segment that cannot be read into guest memory is most often one that does not fit there.
fn explain(source: &KernelFiles, memory_bytes: u64, error: &linux_loader::loader::Error) -> BootError {
    use linux_loader::loader::{Error, elf};
    let file_bytes = super::length("kernel", &source.kernel_path, &source.kernel).unwrap_or(0);
    let need_bytes = layout::HIGH_RAM_START.saturating_add(file_bytes);
    if matches!(error, Error::Elf(elf::Error::ReadKernelImage)) && need_bytes > memory_bytes {
        return BootError::TooLittleMemory {
            have_bytes: memory_bytes,
            need_bytes: need_bytes.saturating_add(source.initrd_bytes()),
        };
    }
    source.not_a_kernel(error.to_string())
}

/// A structure of the boot ABI as bytes.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: integers only, without padding (their sizes are asserted where they are defined).
unsafe impl ByteValued for Plain<hvm_start_info> {}
// SAFETY: as above.
unsafe impl ByteValued for Plain<hvm_modlist_entry> {}
// SAFETY: as above.
unsafe impl ByteValued for Plain<hvm_memmap_table_entry> {}

impl Image {
    /// Writes `hvm_start_info`, the module list and the memory map, one after the other, and says where to start.
    pub(super) fn write_start_info(
        &self,
        memory: &Memory,
        memory_bytes: u64,
        initrd: Option<Range>,
        rsdp: u64,
    ) -> Result<Entry, BootError> {
        let modules = layout::PVH_START_INFO + size_of::<hvm_start_info>() as u64;
        let map_address = modules + size_of::<hvm_modlist_entry>() as u64;
        let map = memory_map(memory_bytes);
        let info = hvm_start_info {
            magic: START_MAGIC,
            version: START_VERSION,
            flags: 0,
            nr_modules: u32::from(initrd.is_some()),
            modlist_paddr: if initrd.is_some() { modules } else { 0 },
            cmdline_paddr: layout::COMMAND_LINE,
            rsdp_paddr: rsdp,
            memmap_paddr: map_address,
            memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
            reserved: 0,
        };
        memory.write_obj(Plain(info), GuestAddress(layout::PVH_START_INFO))?;
        if let Some(initrd) = initrd {
            let module = hvm_modlist_entry {
                paddr: initrd.start,
                size: initrd.size,
                ..Default::default()
            };
            memory.write_obj(Plain(module), GuestAddress(modules))?;
        }
        for (index, (range, kind)) in map.iter().enumerate() {
            let entry = hvm_memmap_table_entry {
                addr: range.start,
                size: range.size,
                type_: *kind as u32,
                reserved: 0,
            };
            let address = map_address + (index * size_of::<hvm_memmap_table_entry>()) as u64;
            memory.write_obj(Plain(entry), GuestAddress(address))?;
        }
        Ok(Entry::Pvh { address: self.entry })
    }
}
