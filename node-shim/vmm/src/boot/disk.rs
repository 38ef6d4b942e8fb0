//! Booting what a disk's own boot loader would start.
//!
//! ```text
//! disk, with what the guest wrote -> find -> kernel, unpacked \
//!                                         -> initrd            > unnamed files in the scratch directory -> guest memory
//! ```
//!
//! The files are on disk and not in memory because they may be larger than what the pod has beyond its guest's.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use node_shim_bootloader::kernel::{self, CacheError};
use node_shim_bootloader::{BootImage, Disk, Limits, find};
use node_shim_protocol::agent::KERNEL_MAX_BYTES;
use node_shim_virtio::block::Storage;

use super::{BootError, KernelFiles, detect};
use crate::layout;
use crate::log;
use node_shim_virtio::lock::lock;

/// Where unpacked kernels are kept, in the VM's own scratch directory: nobody else writes there.
const CACHE_DIRECTORY: &str = "kernels";
/// Most bytes of them: the one that runs, and the one that an update brings.
const CACHE_MAX_BYTES: u64 = 256 << 20;

/// A disk to boot from.
pub(crate) struct BootDisk {
    name: String,
    storage: Arc<dyn Storage>,
    scratch: PathBuf,
    found: Mutex<String>,
    /// What was found when the VM was made, for its first start.
    first: Mutex<Option<KernelFiles>>,
}

/// What the library reads.
struct Contents(Arc<dyn Storage>);

impl Disk for Contents {
    fn size(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_bytes_at(buffer, offset)
    }
}

impl BootDisk {
    /// Looks for a kernel on a disk, and reads it. A VM that was saved needs it only at its next reset: `running` says what it runs.
    pub(super) fn open(
        name: &str,
        storage: &Arc<dyn Storage>,
        scratch: &Path,
        running: Option<&str>,
    ) -> Result<Self, BootError> {
        let disk = Self {
            name: name.to_owned(),
            storage: Arc::clone(storage),
            scratch: scratch.to_owned(),
            found: Mutex::default(),
            first: Mutex::default(),
        };
        if let Some(running) = running {
            running.clone_into(&mut lock(&disk.found));
        } else {
            let files = disk.look()?;
            *lock(&disk.first) = Some(files);
        }
        Ok(disk)
    }

    /// What was found last, in a line.
    pub(super) fn found(&self) -> String {
        lock(&self.found).clone()
    }

    /// The kernel for the next start. No vCPU runs.
    pub(super) fn read(&self) -> Result<KernelFiles, BootError> {
        match lock(&self.first).take() {
            Some(files) => Ok(files),
            None => self.look(),
        }
    }

    fn look(&self) -> Result<KernelFiles, BootError> {
        let limits = Limits {
            command_line_bytes: layout::COMMAND_LINE_MAX_BYTES,
            ..Limits::default()
        };
        let disk = Rc::new(Contents(Arc::clone(&self.storage)));
        let image = find(disk, &limits).map_err(|source| BootError::NothingToBoot {
            disk: self.name.clone(),
            source,
        })?;
        let found = one_line(&image.entry().to_string());
        log::line(format_args!("disk `{}` boots {found}", self.name));
        *lock(&self.found) = found;
        let files = self.files(&image, &limits);
        drop(image);
        give_back_memory();
        files
    }

    fn files(&self, image: &BootImage, limits: &Limits) -> Result<KernelFiles, BootError> {
        let entry = image.entry();
        let read_error = |what: String| {
            move |source| BootError::ReadDisk {
                disk: self.name.clone(),
                what,
                source,
            }
        };
        let kernel_path = PathBuf::from(format!("disk `{}`: {}", self.name, entry.kernel));
        let kernel = format!("kernel {}", entry.kernel);
        let mut packed = Vec::new();
        image
            .kernel()
            .and_then(|mut kernel| kernel.read_to_end(&mut packed))
            .map_err(read_error(kernel))?;
        // One that cannot be unpacked here, or not be entered then, unpacks itself, more slowly, in the guest.
        let unpacked = self.unpack(&packed, limits.unpacked_kernel_bytes);
        let unpacked = unpacked.filter(|elf| has_pvh_note(elf));
        let kernel = self.keep("kernel", |file| file.write_all(unpacked.as_deref().unwrap_or(&packed)))?;
        drop((packed, unpacked));
        let format = detect(&kernel, &kernel_path)?;
        let initrd = if entry.initrd_bytes == 0 {
            None
        } else {
            let mut initrd = image.initrd().map_err(read_error("initrd".to_owned()))?;
            let file = self.keep("initrd", |file| io::copy(&mut initrd, file).map(drop))?;
            Some((file, entry.initrd_bytes))
        };
        Ok(KernelFiles {
            kernel,
            kernel_path,
            format,
            initrd,
            command_line: entry.command_line.clone(),
        })
    }

    /// A bzImage's ELF file, which is kept for the guest's next start. `None` where it cannot be unpacked.
    fn unpack(&self, packed: &[u8], most: u64) -> Option<Vec<u8>> {
        let directory = self.scratch.join(CACHE_DIRECTORY);
        let cached = match std::fs::create_dir_all(&directory) {
            Ok(()) => kernel::Cache::new(&directory, CACHE_MAX_BYTES).unpack(packed, most),
            Err(source) => Err(CacheError::Write { directory, source }),
        };
        match cached {
            Ok(elf) => Some(elf),
            Err(CacheError::Unpack(_)) => None,
            Err(error @ CacheError::Write { .. }) => {
                log::line(format_args!("disk `{}`: {error}", self.name));
                kernel::unpack(packed, most).ok()
            }
        }
    }

    fn keep(&self, what: &'static str, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<File, BootError> {
        let keep = || {
            let mut file = tempfile::tempfile_in(&self.scratch)?;
            write(&mut file)?;
            file.rewind()?;
            Ok(file)
        };
        keep().map_err(|source| BootError::Keep {
            disk: self.name.clone(),
            what,
            source,
        })
    }
}

/// Whether a kernel has the note of a PVH entry point: owner `Xen`, type 18 (Xen public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`), at a
/// multiple of 4 bytes, as ELF has it. What looks like one by chance is found out when the kernel is loaded.
fn has_pvh_note(elf: &[u8]) -> bool {
    const NAME_SIZE: [u8; 4] = [4, 0, 0, 0];
    const TYPE_AND_NAME: [u8; 8] = *b"\x12\0\0\0Xen\0";
    (0..elf.len())
        .step_by(4)
        .any(|at| elf.get(at..at + 4) == Some(&NAME_SIZE[..]) && elf.get(at + 8..at + 16) == Some(&TYPE_AND_NAME[..]))
}

/// What a disk says of itself, made fit for a status and a log: it may have written anything there.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars().map(|it| if it.is_control() { ' ' } else { it }) {
        if line.len() + character.len_utf8() > KERNEL_MAX_BYTES {
            break;
        }
        line.push(character);
    }
    line
}

/// A kernel was unpacked, which took more memory than anything that follows.
fn give_back_memory() {
    // SAFETY: malloc_trim has no precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pvh_note_is_found_where_elf_may_have_it() {
        let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
        assert!(has_pvh_note(note));
        assert!(has_pvh_note(&[&[0; 8], &note[..], &[0; 3]].concat()));
        assert!(!has_pvh_note(&[&[0; 2], &note[..]].concat()));
        assert!(!has_pvh_note(&note[..15]));
        assert!(!has_pvh_note(b"\x04\0\0\0\x08\0\0\0\x11\0\0\0Xen\0"));
    }

    #[test]
    fn what_a_disk_says_is_one_short_line() {
        assert_eq!(one_line("Debian, from partition 1 /a"), "Debian, from partition 1 /a");
        assert_eq!(one_line("a\nb\x1b[31m"), "a b [31m");
        assert_eq!(one_line(&"x".repeat(KERNEL_MAX_BYTES + 1)).len(), KERNEL_MAX_BYTES);
        assert!(one_line(&"\u{e4}".repeat(KERNEL_MAX_BYTES)).len() <= KERNEL_MAX_BYTES);
    }
}
