//! Where boot loaders are looked for, in the order in which a machine would come upon them.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;

use crate::disk::Disk;
use crate::files::{FileRef, Files, Found, Volume, VolumeId, join};
use crate::grub::{self, Platform};
use crate::kernel::{self, Format};
use crate::limits::Limits;
use crate::selection::{Loader, Selection};
use crate::table::Purpose;
use crate::unified::{self, Program, ReadAt};
use crate::volumes::{FileReader, Volumes, has_subvolumes, shown};
use crate::{extlinux, systemd_boot};

/// Initrds are loaded one after the other, each at a multiple of this.
const INITRD_ALIGNMENT: u64 = 4;
/// Bytes from the start of a kernel that tell what it is.
const HEAD_BYTES: usize = 0x1_0000;

/// What was found, for a person and for a VM's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// The entry's title: `Debian GNU/Linux`.
    pub title: Option<String>,
    /// What the kernel says of itself: `6.1.0-40-cloud-amd64`.
    pub kernel_release: Option<String>,
    /// The kernel's command line.
    pub command_line: String,
    /// Whose configuration it was.
    pub loader: Loader,
    /// Where the configuration is.
    pub configuration: Location,
    /// Where the kernel is.
    pub kernel: Location,
    /// Where the initrds are.
    pub initrds: Vec<Location>,
    /// The kernel's format.
    pub format: Format,
    /// Bytes of the kernel.
    pub kernel_bytes: u64,
    /// Bytes of all initrds, each filled up to a multiple of 4; 0 without any.
    pub initrd_bytes: u64,
}

/// A file on a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The partition's number; 0 is the whole disk.
    pub partition: u32,
    /// The file system's label.
    pub label: Option<String>,
    /// The file system's UUID.
    pub uuid: String,
    /// Absolute path.
    pub path: String,
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            0 => write!(formatter, "{} on the whole disk", self.path),
            number => write!(formatter, "partition {number} {}", self.path),
        }
    }
}

impl fmt::Display for BootEntry {
    /// `Debian GNU/Linux, 6.1.0-40-cloud-amd64, from partition 1 /boot/grub/grub.cfg`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.title, &self.kernel_release].into_iter().flatten() {
            write!(formatter, "{part}, ")?;
        }
        write!(formatter, "from {}", self.configuration)
    }
}

/// Why no kernel was found.
#[derive(Debug, thiserror::Error)]
#[error(
    "no kernel to boot was found on the disk: {problem}{}; name a kernel in spec.boot.kernel, or use an image with a boot loader \
     (GRUB, systemd-boot, EXTLINUX or a unified kernel image)",
    Places(.places)
)]
pub struct FindError {
    /// What is wrong with the disk as a whole.
    pub problem: String,
    /// Where was looked, and what was wrong there.
    pub places: Vec<String>,
}

struct Places<'places>(&'places [String]);

impl fmt::Display for Places<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, place) in self.0.iter().enumerate() {
            let start = if index == 0 { ". Looked at " } else { "; " };
            write!(formatter, "{start}{place}")?;
        }
        Ok(())
    }
}

/// A disk's kernel and initrd, ready to be read.
pub struct BootImage {
    volumes: Volumes,
    entry: BootEntry,
    kernel: Part,
    initrds: Vec<Part>,
}

/// Part of a file.
#[derive(Clone, Debug)]
struct Part {
    file: FileRef,
    start: u64,
    length: u64,
}

impl BootImage {
    /// What was found.
    pub fn entry(&self) -> &BootEntry {
        &self.entry
    }

    /// The kernel from its first byte to its last, [`BootEntry::kernel_bytes`] in all.
    ///
    /// # Errors
    /// Where the file cannot be opened any more.
    pub fn kernel(&self) -> io::Result<impl Read + '_> {
        self.volumes.grant(self.kernel.length);
        self.open(&self.kernel)
    }

    /// All initrds as a boot loader lays them out in memory, [`BootEntry::initrd_bytes`] in all. It reads a piece at a time.
    ///
    /// # Errors
    /// Where a file cannot be opened any more.
    pub fn initrd(&self) -> io::Result<impl Read + '_> {
        let mut all: Box<dyn Read + '_> = Box::new(io::empty());
        for part in &self.initrds {
            self.volumes.grant(part.length);
            let padding = part.length.next_multiple_of(INITRD_ALIGNMENT) - part.length;
            all = Box::new(all.chain(self.open(part)?).chain(io::repeat(0).take(padding)));
        }
        Ok(all)
    }

    fn open(&self, part: &Part) -> io::Result<FileReader<'_>> {
        let reader = self
            .volumes
            .open_file(part.file.volume, &part.file.path)
            .map_err(|error| io::Error::other(error.0))?;
        Ok(reader.part(part.start, part.length))
    }
}

/// Finds what a disk's own boot loader would start.
///
/// # Errors
/// Says where it looked and what was wrong in each place.
pub fn find(disk: Rc<dyn Disk>, limits: &Limits) -> Result<BootImage, FindError> {
    let volumes = Volumes::open(disk, limits).map_err(|error| FindError {
        problem: error.to_string(),
        places: Vec::new(),
    })?;
    let mut search = Search {
        volumes: &volumes,
        limits,
        tried: BTreeSet::new(),
        places: Vec::new(),
        left_out: 0,
    };
    let found = search.run();
    let mut places = search.places;
    if search.left_out > 0 {
        places.push(format!("and {} more places", search.left_out));
    }
    if let Some((entry, kernel, initrds)) = found {
        return Ok(BootImage {
            volumes,
            entry,
            kernel,
            initrds,
        });
    }
    let mut all: Vec<String> = volumes.layout().to_vec();
    all.extend(places);
    all.extend(volumes.problems());
    Err(FindError {
        problem: if all.len() == volumes.layout().len() {
            "no boot loader's configuration is on it".to_owned()
        } else {
            "no boot loader's configuration on it leads to one".to_owned()
        },
        places: all,
    })
}

type Opened = (BootEntry, Part, Vec<Part>);

struct Search<'disk> {
    volumes: &'disk Volumes,
    limits: &'disk Limits,
    /// Configurations that were tried: more than one way leads to some.
    tried: BTreeSet<FileRef>,
    places: Vec<String>,
    left_out: usize,
}

impl Search<'_> {
    fn run(&mut self) -> Option<Opened> {
        let ids = self.volumes.ids();
        let purpose = |id: &VolumeId, purpose| self.volumes.volume(*id).is_some_and(|volume| volume.purpose == purpose);
        let mut system: Vec<VolumeId> = ids.iter().copied().filter(|id| purpose(id, Purpose::Efi)).collect();
        if system.is_empty() {
            // A disk without a partition table, or with one that does not say it.
            system = ids
                .iter()
                .copied()
                .filter(|id| self.volumes.find(*id, "/EFI") == Some(Found::Directory) && self.is_fat(*id))
                .collect();
        }
        let extended: Vec<VolumeId> = ids
            .iter()
            .copied()
            .filter(|id| purpose(id, Purpose::ExtendedBoot))
            .collect();
        self.firmware(&system, &extended)
            .or_else(|| ids.iter().find_map(|id| self.grub_of_volume(*id)))
            .or_else(|| ids.iter().find_map(|id| self.extlinux(*id)))
            .or_else(|| self.entries_alone(&ids))
    }

    fn is_fat(&self, id: VolumeId) -> bool {
        self.volumes
            .volume(id)
            .is_some_and(|volume| volume.file_system == "fat")
    }

    /// What UEFI firmware starts: `\EFI\BOOT\BOOTX64.EFI`, by what kind of program that is.
    fn firmware(&mut self, system: &[VolumeId], extended: &[VolumeId]) -> Option<Opened> {
        for id in system.iter().copied() {
            let path = "/EFI/BOOT/BOOTX64.EFI";
            let program = self.program(id, path);
            let both: Vec<VolumeId> = std::iter::once(id).chain(extended.iter().copied()).collect();
            let has_systemd_boot = || {
                self.volumes.is_file(id, "/EFI/systemd/systemd-bootx64.efi")
                    || self.volumes.is_file(id, "/loader/loader.conf")
            };
            let found = match program {
                Some(Program::UnifiedKernel(_)) => self.unified_kernel(id, path),
                Some(Program::SystemdBoot) => self.systemd_boot(&both, "/loader"),
                Some(Program::Other) | None if has_systemd_boot() => {
                    self.grub_stubs(id).or_else(|| self.systemd_boot(&both, "/loader"))
                }
                Some(Program::Other) | None => self.grub_stubs(id),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn program(&self, volume: VolumeId, path: &str) -> Option<Program> {
        if !self.volumes.is_file(volume, path) {
            return None;
        }
        let file = self.volumes.open_file(volume, path).ok()?;
        unified::identify(&file).ok()
    }

    fn unified_kernel(&mut self, volume: VolumeId, path: &str) -> Option<Opened> {
        let file = FileRef {
            volume,
            path: path.to_owned(),
        };
        let selection = Selection {
            title: None,
            kernel: file.clone(),
            initrds: Vec::new(),
            command_line: None,
        };
        self.take(Loader::UnifiedKernel, &file, selection)
    }

    /// `\EFI\<distribution>\grub.cfg` leads GRUB to its real configuration.
    fn grub_stubs(&mut self, volume: VolumeId) -> Option<Opened> {
        let mut names = self.volumes.list(volume, "/EFI");
        // The firmware takes this one; the others are for boot entries in its variables.
        names.sort_by_key(|name| !name.eq_ignore_ascii_case("BOOT"));
        names.iter().find_map(|name| {
            let directory = join("/EFI", name);
            self.grub(volume, &join(&directory, "grub.cfg"), &directory, Platform::Efi)
        })
    }

    /// GRUB's own directory, at the top of a volume or in a subvolume.
    fn grub_of_volume(&mut self, volume: VolumeId) -> Option<Opened> {
        let mut tops = vec![String::new()];
        if self.volumes.volume(volume).is_some_and(has_subvolumes) {
            const SUBVOLUMES_MAX: usize = 64;
            tops.extend(self.volumes.list(volume, "/").into_iter().take(SUBVOLUMES_MAX));
        }
        tops.iter().find_map(|top| {
            grub::CONFIGURATIONS.iter().find_map(|configuration| {
                let path = join(&format!("/{top}"), configuration.trim_start_matches('/'));
                let directory = crate::files::parent(&path).to_owned();
                self.grub(volume, &path, &directory, Platform::Pc)
            })
        })
    }

    fn grub(&mut self, volume: VolumeId, path: &str, directory: &str, platform: Platform) -> Option<Opened> {
        let file = self.untried(volume, path)?;
        match grub::select(self.volumes, &file, directory, platform, self.limits) {
            Ok((configuration, selection)) => {
                self.tried.insert(configuration.clone());
                self.take(Loader::Grub, &configuration, selection)
            }
            Err(why) => self.refuse(&file, &why),
        }
    }

    fn systemd_boot(&mut self, volumes: &[VolumeId], directory: &str) -> Option<Opened> {
        match systemd_boot::select(self.volumes, volumes, directory, self.limits) {
            Ok(candidates) => candidates
                .into_iter()
                .find_map(|(configuration, selection)| self.take(Loader::SystemdBoot, &configuration, selection)),
            Err(why) => {
                let volume = *volumes.first()?;
                let path = directory.to_owned();
                self.refuse(&FileRef { volume, path }, &why)
            }
        }
    }

    fn extlinux(&mut self, volume: VolumeId) -> Option<Opened> {
        let names = [
            "extlinux/extlinux.conf",
            "syslinux/syslinux.cfg",
            "syslinux.cfg",
            "isolinux/isolinux.cfg",
        ];
        ["/boot", ""].iter().find_map(|top| {
            names.iter().find_map(|name| {
                let file = self.untried(volume, &format!("{top}/{name}"))?;
                match extlinux::select(self.volumes, volume, &file.path, self.limits) {
                    Ok(selection) => self.take(Loader::Extlinux, &file, selection),
                    Err(why) => self.refuse(&file, &why),
                }
            })
        })
    }

    /// Entries without the configuration of a loader that would read them: the loader's may be in a place of its own.
    fn entries_alone(&mut self, ids: &[VolumeId]) -> Option<Opened> {
        ids.iter().find_map(|id| {
            ["/loader", "/boot/loader"].iter().find_map(|directory| {
                let exists = self.volumes.find(*id, &join(directory, "entries")) == Some(Found::Directory)
                    || self.volumes.find(*id, "/EFI/Linux") == Some(Found::Directory);
                exists.then(|| self.systemd_boot(&[*id], directory)).flatten()
            })
        })
    }

    /// The file, where it exists and was not tried.
    fn untried(&mut self, volume: VolumeId, path: &str) -> Option<FileRef> {
        let file = FileRef {
            volume,
            path: path.to_owned(),
        };
        (self.volumes.is_file(volume, path) && self.tried.insert(file.clone())).then_some(file)
    }

    fn refuse<T>(&mut self, file: &FileRef, why: &str) -> Option<T> {
        if self.places.len() < self.limits.places {
            let volume = self
                .volumes
                .volume(file.volume)
                .map(Volume::to_string)
                .unwrap_or_default();
            self.places
                .push(format!("{volume} {}: {}", shown(&file.path), shown(why)));
        } else {
            self.left_out += 1;
        }
        None
    }

    fn take(&mut self, loader: Loader, configuration: &FileRef, selection: Selection) -> Option<Opened> {
        match self.open(loader, configuration, selection) {
            Ok(opened) => Some(opened),
            Err(why) => self.refuse(configuration, &why),
        }
    }

    /// Opens what was selected and looks at what it is.
    fn open(&self, loader: Loader, configuration: &FileRef, selection: Selection) -> Result<Opened, String> {
        let file = selection.kernel;
        let failed = |what: &FileRef, why: &dyn fmt::Display| format!("{}: {why}", shown(&what.path));
        let reader = self
            .volumes
            .open_file(file.volume, &file.path)
            .map_err(|error| failed(&file, &error))?;
        let program = unified::identify(&reader).map_err(|error| failed(&file, &error))?;
        let mut title = selection.title;
        let mut command_line = selection.command_line;
        let mut initrds = Vec::new();
        let kernel = match program {
            Program::UnifiedKernel(parts) => {
                if command_line.is_none() {
                    let text = section_text(&reader, &parts.command_line, self.limits.command_line_bytes)?;
                    command_line = Some(
                        text.trim_matches(|letter: char| letter == '\0' || letter.is_whitespace())
                            .to_owned(),
                    );
                }
                if title.is_none() {
                    let release = section_text(&reader, &parts.os_release, HEAD_BYTES).unwrap_or_default();
                    title = unified::os_release_value(&release, "PRETTY_NAME");
                }
                let part = |range: &std::ops::Range<u64>| Part {
                    file: file.clone(),
                    start: range.start,
                    length: range.end - range.start,
                };
                initrds.extend(parts.initrds.iter().map(part));
                part(&parts.linux)
            }
            Program::SystemdBoot => return Err(failed(&file, &"it is another boot loader")),
            Program::Other => Part {
                start: 0,
                length: reader.file_bytes(),
                file: file.clone(),
            },
        };
        for initrd in &selection.initrds {
            let opened = self
                .volumes
                .open_file(initrd.volume, &initrd.path)
                .map_err(|error| failed(initrd, &error))?;
            initrds.push(Part {
                file: initrd.clone(),
                start: 0,
                length: opened.file_bytes(),
            });
        }
        let head = head(&reader, &kernel).map_err(|error| failed(&file, &error))?;
        let format = Format::of(&head).map_err(|why| failed(&file, &why))?;
        let initrd_bytes = initrds
            .iter()
            .map(|part| part.length.next_multiple_of(INITRD_ALIGNMENT))
            .fold(0_u64, u64::saturating_add);
        self.check_sizes(kernel.length, initrd_bytes, reader.file_bytes(), &kernel)?;
        let entry = BootEntry {
            title: title.as_deref().map(shown).filter(|title| !title.trim().is_empty()),
            kernel_release: kernel::release(&head),
            command_line: checked(command_line.unwrap_or_default(), self.limits)?,
            loader,
            configuration: self.location(configuration),
            kernel: self.location(&file),
            initrds: initrds.iter().map(|part| self.location(&part.file)).collect(),
            format,
            kernel_bytes: kernel.length,
            initrd_bytes,
        };
        Ok((entry, kernel, initrds))
    }

    fn check_sizes(&self, kernel: u64, initrd: u64, file: u64, part: &Part) -> Result<(), String> {
        let most = self.limits.kernel_bytes;
        if kernel > most || part.start.saturating_add(kernel) > file {
            return Err(format!(
                "the kernel has {kernel} bytes, of {file} in its file; at most {most} can be loaded"
            ));
        }
        let most = self.limits.initrd_bytes;
        if initrd > most {
            return Err(format!("the initrds have {initrd} bytes; at most {most} can be loaded"));
        }
        Ok(())
    }

    fn location(&self, file: &FileRef) -> Location {
        let volume = self.volumes.volume(file.volume);
        Location {
            partition: volume.map_or(0, |volume| volume.number),
            label: volume.and_then(|volume| volume.label.as_deref()).map(shown),
            uuid: volume.map(|volume| volume.uuid.clone()).unwrap_or_default(),
            path: shown(&file.path),
        }
    }
}

impl ReadAt for FileReader<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.peek(offset, buffer)
    }
}

fn head(reader: &FileReader<'_>, part: &Part) -> io::Result<Vec<u8>> {
    let bytes = usize::try_from(part.length).unwrap_or(usize::MAX).min(HEAD_BYTES);
    let mut head = vec![0; bytes];
    let filled = reader.peek(part.start, &mut head)?;
    head.truncate(filled);
    Ok(head)
}

fn section_text(reader: &FileReader<'_>, range: &std::ops::Range<u64>, limit: usize) -> Result<String, String> {
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    if length > limit {
        return Err(format!("a section of text has {length} bytes, more than {limit}"));
    }
    let mut text = vec![0; length];
    let filled = reader.peek(range.start, &mut text).map_err(|error| error.to_string())?;
    text.truncate(filled);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A command line is one line, and ends at the first zero.
fn checked(line: String, limits: &Limits) -> Result<String, String> {
    if line.len() > limits.command_line_bytes {
        return Err(format!(
            "its command line has {} bytes, more than {}",
            line.len(),
            limits.command_line_bytes
        ));
    }
    if line.contains(['\0', '\n']) {
        return Err("its command line has more than one line".to_owned());
    }
    Ok(line)
}

#[cfg(test)]
mod tests;
