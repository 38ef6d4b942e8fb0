//! From a kernel file to guest memory that is ready to run.
//!
//! ```text
//! low memory                                                            end of low RAM
//! | boot structures | ... | 1 MiB: kernel ... its working space | free | initrd |
//! ```

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use node_shim_bootloader::FindError;
use node_shim_virtio::block::Block;
use node_shim_virtio::device::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::config::{Boot, CheckedConfig, KernelBoot};
use crate::layout;
use crate::memory::Range;
use crate::registers::Entry;
use crate::volume::{self, VolumeError};

mod bzimage;
mod disk;
mod pvh;

use disk::BootDisk;

/// Largest initrd: what a 32-bit size can say.
const INITRD_MAX_BYTES: u64 = u32::MAX as u64;
const MIB: u64 = 1 << 20;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// The kernel or initrd cannot be opened.
    #[error("{what}: {source}")]
    Open {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Why.
        source: VolumeError,
    },
    /// The file cannot be read.
    #[error("failed to read the {what} {path}: {source}")]
    Read {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk to boot from is not there: a defect.
    #[error("the disk to boot from is not one of the VM's")]
    NoDisk,
    /// The disk has nothing to boot.
    #[error("disk `{disk}`: {source}")]
    NothingToBoot {
        /// The disk.
        disk: String,
        /// Where was looked, and what was wrong there.
        source: FindError,
    },
    /// What the disk boots cannot be read.
    #[error("disk `{disk}`: failed to read its {what}: {source}")]
    ReadDisk {
        /// The disk.
        disk: String,
        /// Kernel or initrd, and where it is.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// There is no room for what the disk boots.
    #[error("failed to keep the {what} of disk `{disk}` in the scratch directory: {source}")]
    Keep {
        /// The disk.
        disk: String,
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Neither of the formats.
    #[error("{path} is not a kernel: {why}; give a bzImage (vmlinuz) or an ELF file with a PVH entry point (vmlinux)")]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// The initrd is empty or too large.
    #[error("the initrd {path} is {bytes} bytes long; it must have 1 to {INITRD_MAX_BYTES}")]
    InitrdSize {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Kernel and initrd do not fit.
    #[error(
        "the guest has {} MiB of memory but its kernel and initrd need at least {} MiB; raise memory.size",
        .have_bytes / MIB, .need_bytes.div_ceil(MIB)
    )]
    TooLittleMemory {
        /// The guest's memory.
        have_bytes: u64,
        /// The least that holds both.
        need_bytes: u64,
    },
    /// The kernel accepts only a shorter command line.
    #[error(
        "the command line is {bytes} bytes long and this kernel takes at most {max_bytes}; shorten boot.kernel.commandLine"
    )]
    CommandLine {
        /// Length of the command line.
        bytes: usize,
        /// The kernel's limit.
        max_bytes: u32,
    },
    /// A boot structure cannot be written: a defect.
    #[error("failed to write the boot structures: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Where a guest's kernel comes from.
pub(crate) enum BootSource {
    /// Files that stay open for as long as the VM lives, so that a reset finds what the first start found.
    Kernel(KernelFiles),
    /// A disk: a reset finds what the guest has made of it.
    Disk(BootDisk),
}

impl BootSource {
    /// Opens what the configuration says, and looks at it. `disks` are the VM's, in the guest's order. `running` is what a VM that was saved
    /// runs ([`Self::found`]).
    pub(crate) fn open(config: &CheckedConfig, disks: &[Block], running: Option<&str>) -> Result<Self, BootError> {
        match &config.boot {
            Boot::Kernel(boot) => KernelFiles::open(boot).map(Self::Kernel),
            Boot::Disk { index } => {
                let (Some(disk), Some(block)) = (config.disks.get(*index), disks.get(*index)) else {
                    return Err(BootError::NoDisk);
                };
                BootDisk::open(&disk.name, block.storage(), &config.scratch, running).map(Self::Disk)
            }
        }
    }

    /// Loads everything into guest memory of `memory_bytes`; `rsdp` is where the ACPI tables start.
    pub(crate) fn load(&self, memory: &Memory, memory_bytes: u64, rsdp: u64) -> Result<Entry, BootError> {
        match self {
            Self::Kernel(files) => files.load(memory, memory_bytes, rsdp),
            Self::Disk(disk) => disk.read()?.load(memory, memory_bytes, rsdp),
        }
    }

    /// What was found, where it had to be looked for.
    pub(crate) fn found(&self) -> Option<String> {
        match self {
            Self::Kernel(_) => None,
            Self::Disk(disk) => Some(disk.found()),
        }
    }
}

/// Kernel and initrd, open.
pub(crate) struct KernelFiles {
    kernel: File,
    kernel_path: PathBuf,
    format: Format,
    initrd: Option<(File, u64)>,
    command_line: String,
}

/// The formats of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// An ELF file; whether it has a PVH entry point shows when it is loaded.
    Elf,
    /// Linux' own.
    BzImage,
}

/// What the ACPI tables and the kernel's own needs tell the loader.
struct Placement {
    /// First address after what the kernel uses until it has read its memory map.
    kernel_end: u64,
    /// No byte of the initrd may be beyond this address.
    initrd_max: u64,
}

impl KernelFiles {
    /// Opens kernel and initrd and looks at what they are.
    fn open(boot: &KernelBoot) -> Result<Self, BootError> {
        let open = |what, path| volume::open_file(path).map_err(|source| BootError::Open { what, source });
        let kernel = open("kernel", &boot.kernel)?;
        let format = detect(&kernel, &boot.kernel)?;
        let initrd = match &boot.initrd {
            None => None,
            Some(path) => {
                let file = open("initrd", path)?;
                let bytes = length("initrd", path, &file)?;
                if bytes == 0 || bytes > INITRD_MAX_BYTES {
                    return Err(BootError::InitrdSize {
                        path: path.clone(),
                        bytes,
                    });
                }
                Some((file, bytes))
            }
        };
        Ok(Self {
            kernel,
            kernel_path: boot.kernel.clone(),
            format,
            initrd,
            command_line: boot.command_line.clone(),
        })
    }

    fn load(&self, memory: &Memory, memory_bytes: u64, rsdp: u64) -> Result<Entry, BootError> {
        let mut kernel = &self.kernel;
        kernel
            .seek(SeekFrom::Start(0))
            .map_err(|source| self.read_error(source))?;
        self.write_command_line(memory)?;
        match self.format {
            Format::BzImage => {
                let image = bzimage::load(self, memory, memory_bytes)?;
                let initrd = self.place_initrd(memory, memory_bytes, &image.placement)?;
                image.write_zero_page(memory, memory_bytes, initrd, rsdp)
            }
            Format::Elf => {
                let image = pvh::load(self, memory, memory_bytes)?;
                let initrd = self.place_initrd(memory, memory_bytes, &image.placement)?;
                image.write_start_info(memory, memory_bytes, initrd, rsdp)
            }
        }
    }

    fn write_command_line(&self, memory: &Memory) -> Result<(), BootError> {
        let address = GuestAddress(layout::COMMAND_LINE);
        memory.write_slice(self.command_line.as_bytes(), address)?;
        memory.write_obj(
            0_u8,
            GuestAddress(layout::COMMAND_LINE + self.command_line.len() as u64),
        )?;
        Ok(())
    }

    fn initrd_bytes(&self) -> u64 {
        self.initrd.as_ref().map_or(0, |(_, bytes)| *bytes)
    }

    fn place_initrd(
        &self,
        memory: &Memory,
        memory_bytes: u64,
        placement: &Placement,
    ) -> Result<Option<Range>, BootError> {
        let start = initrd_start(memory_bytes, self.initrd_bytes(), placement)?;
        let Some((file, bytes)) = &self.initrd else {
            return Ok(None);
        };
        let mut file = file;
        let read_error = |source| BootError::Read {
            what: "initrd",
            path: PathBuf::from("initrd"),
            source,
        };
        file.seek(SeekFrom::Start(0)).map_err(read_error)?;
        let length = usize::try_from(*bytes).map_err(|error| read_error(io::Error::other(error)))?;
        memory
            .read_exact_volatile_from(GuestAddress(start), &mut file, length)
            .map_err(|error| read_error(io::Error::other(error)))?;
        Ok(Some(Range { start, size: *bytes }))
    }

    fn read_error(&self, source: io::Error) -> BootError {
        BootError::Read {
            what: "kernel",
            path: self.kernel_path.clone(),
            source,
        }
    }

    fn not_a_kernel(&self, why: impl Into<String>) -> BootError {
        BootError::NotAKernel {
            path: self.kernel_path.clone(),
            why: why.into(),
        }
    }
}

/// Where the initrd goes: as high as possible, on a page. Without one this only checks that the kernel fits.
fn initrd_start(memory_bytes: u64, initrd_bytes: u64, placement: &Placement) -> Result<u64, BootError> {
    let low_end = memory_bytes.min(layout::HOLE_START);
    let limit = low_end.min(placement.initrd_max.saturating_add(1));
    let start = limit.saturating_sub(initrd_bytes) / layout::PAGE_SIZE * layout::PAGE_SIZE;
    if start < placement.kernel_end {
        return Err(BootError::TooLittleMemory {
            have_bytes: memory_bytes,
            need_bytes: placement
                .kernel_end
                .saturating_add(initrd_bytes.next_multiple_of(layout::PAGE_SIZE)),
        });
    }
    Ok(start)
}

fn length(what: &'static str, path: &Path, file: &File) -> Result<u64, BootError> {
    let metadata = file.metadata().map_err(|source| BootError::Read {
        what,
        path: path.to_owned(),
        source,
    })?;
    Ok(metadata.len())
}

/// Tells the formats apart by their magic numbers.
fn detect(file: &File, path: &Path) -> Result<Format, BootError> {
    let read_error = |source| BootError::Read {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let mut head = Vec::new();
    file.take(1024).read_to_end(&mut head).map_err(read_error)?;
    format_of(&head).map_err(|why| BootError::NotAKernel {
        path: path.to_owned(),
        why,
    })
}

/// The format of a file that starts with these bytes, or what it is instead.
fn format_of(head: &[u8]) -> Result<Format, String> {
    if head.starts_with(b"\x7fELF") {
        return Ok(Format::Elf);
    }
    if head.get(bzimage::MAGIC_OFFSET..bzimage::MAGIC_OFFSET + 4) == Some(&bzimage::MAGIC[..]) {
        return Ok(Format::BzImage);
    }
    Err(match head {
        [] => "the file is empty".to_owned(),
        [0x1f, 0x8b, ..] => "it is a gzip file".to_owned(),
        [b'M', b'Z', ..] => "it is an EFI program without a Linux header".to_owned(),
        _ => "it starts like neither a bzImage nor an ELF file".to_owned(),
    })
}

#[cfg(test)]
mod tests;
