//! Unified kernel images (UAPI.5): an EFI program whose sections are a kernel, an initrd and a command line.

use std::io;
use std::ops::Range;

use crate::bytes::{le_u16, le_u32};

/// `IMAGE_FILE_MACHINE_AMD64` (Microsoft's PE format).
const MACHINE: u16 = 0x8664;
/// Sections that are looked at, and bytes of an entry in their table.
const SECTIONS_MAX: u16 = 128;
const SECTION_BYTES: usize = 40;
/// The COFF header comes after the signature, the optional header after that.
const COFF_BYTES: usize = 24;

/// Reads bytes of a file at an offset, as many as there are.
pub trait ReadAt {
    /// Fills `buffer` as far as the file reaches.
    ///
    /// # Errors
    /// Of the file system.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let bytes = buffer.len().min(self.len() - start);
        buffer[..bytes].copy_from_slice(&self[start..start + bytes]);
        Ok(bytes)
    }
}

/// One section: its name and where its contents are in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Up to eight characters.
    pub name: String,
    /// In the file.
    pub range: Range<u64>,
}

/// What a unified kernel image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnifiedKernel {
    /// The kernel, a bzImage.
    pub linux: Range<u64>,
    /// Microcode and initrd, in the order in which they are loaded.
    pub initrds: Vec<Range<u64>>,
    /// The command line.
    pub command_line: Range<u64>,
    /// `/etc/os-release` of the system.
    pub os_release: Range<u64>,
}

/// The sections of a PE file for x86-64; `None` for any other file.
///
/// # Errors
/// Of the file system.
pub fn sections(file: &(impl ReadAt + ?Sized)) -> io::Result<Option<Vec<Section>>> {
    let mut start = [0; 64];
    if file.read_at(0, &mut start)? < start.len() || !start.starts_with(b"MZ") {
        return Ok(None);
    }
    let header_at = u64::from(le_u32(&start, 0x3c));
    let mut header = [0; COFF_BYTES];
    if file.read_at(header_at, &mut header)? < header.len()
        || !header.starts_with(b"PE\0\0")
        || le_u16(&header, 4) != MACHINE
    {
        return Ok(None);
    }
    let count = usize::from(le_u16(&header, 6).min(SECTIONS_MAX));
    let table_at = header_at + COFF_BYTES as u64 + u64::from(le_u16(&header, 20));
    let mut table = vec![0; count * SECTION_BYTES];
    if file.read_at(table_at, &mut table)? < table.len() {
        return Ok(None);
    }
    Ok(Some(table.chunks_exact(SECTION_BYTES).map(section).collect()))
}

fn section(raw: &[u8]) -> Section {
    let end = raw[..8].iter().position(|byte| *byte == 0).unwrap_or(8);
    let (loaded, stored) = (u64::from(le_u32(raw, 8)), u64::from(le_u32(raw, 16)));
    let start = u64::from(le_u32(raw, 20));
    // What is stored is padded; what is loaded may be longer, and zero there.
    let length = if loaded == 0 { stored } else { loaded.min(stored) };
    Section {
        name: String::from_utf8_lossy(&raw[..end]).into_owned(),
        range: start..start + length,
    }
}

/// What an image holds in its first profile; `None` where there is no kernel in it.
pub fn unified_kernel(sections: &[Section]) -> Option<UnifiedKernel> {
    // Sections after `.profile` belong to that profile, those before the first to all.
    let profiles = sections
        .iter()
        .enumerate()
        .filter(|(_, section)| section.name == ".profile");
    let end = profiles.map(|(index, _)| index).nth(1).unwrap_or(sections.len());
    let find = |name: &str| {
        sections[..end]
            .iter()
            .rev()
            .find(|section| section.name == name)
            .map(|section| section.range.clone())
    };
    Some(UnifiedKernel {
        linux: find(".linux").filter(|range| !range.is_empty())?,
        initrds: [find(".ucode"), find(".initrd")]
            .into_iter()
            .flatten()
            .filter(|range| !range.is_empty())
            .collect(),
        command_line: find(".cmdline").unwrap_or(0..0),
        os_release: find(".osrel").unwrap_or(0..0),
    })
}

/// What kind of EFI program it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A kernel with all it needs.
    UnifiedKernel(UnifiedKernel),
    /// systemd-boot.
    SystemdBoot,
    /// Something else: GRUB, shim, a kernel alone.
    Other,
}

/// Tells EFI programs apart by their sections.
///
/// # Errors
/// Of the file system.
pub fn identify(file: &(impl ReadAt + ?Sized)) -> io::Result<Program> {
    let sections = sections(file)?.unwrap_or_default();
    if let Some(kernel) = unified_kernel(&sections) {
        return Ok(Program::UnifiedKernel(kernel));
    }
    let Some(magic) = sections.iter().find(|section| section.name == ".sdmagic") else {
        return Ok(Program::Other);
    };
    let mut text = [0; 64];
    let bytes = file.read_at(magic.range.start, &mut text)?;
    let is_boot = String::from_utf8_lossy(&text[..bytes]).contains("systemd-boot");
    Ok(if is_boot { Program::SystemdBoot } else { Program::Other })
}

/// A value of `os-release`.
pub fn os_release_value(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    let value = value.trim();
    let unquoted = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    let value = unquoted.unwrap_or(value).replace('\\', "");
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A PE file with these sections.
    pub(crate) fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 0x200 + sections.len() * SECTION_BYTES];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x80;
        file[0x80..0x84].copy_from_slice(b"PE\0\0");
        file[0x84..0x86].copy_from_slice(&MACHINE.to_le_bytes());
        file[0x86] = u8::try_from(sections.len()).unwrap();
        file[0x94..0x96].copy_from_slice(&0xf0_u16.to_le_bytes());
        for (index, (name, contents)) in sections.iter().enumerate() {
            let at = 0x80 + COFF_BYTES + 0xf0 + index * SECTION_BYTES;
            file[at..at + name.len()].copy_from_slice(name.as_bytes());
            let start = file.len();
            let mut put = |field: usize, value: usize| {
                file[at + field..at + field + 4].copy_from_slice(&u32::try_from(value).unwrap().to_le_bytes());
            };
            put(8, contents.len());
            put(16, contents.len().next_multiple_of(512));
            put(20, start);
            file.extend_from_slice(contents);
            file.resize(start + contents.len().next_multiple_of(512), 0);
        }
        file
    }

    fn contents<'file>(file: &'file [u8], range: &Range<u64>) -> &'file [u8] {
        &file[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    }

    #[test]
    fn a_unified_kernel_has_its_parts_in_sections() {
        let file = image(&[
            (".text", b"stub"),
            (".osrel", b"PRETTY_NAME=\"Test 1\"\n"),
            (".cmdline", b"root=/dev/vda1 ro\0"),
            (".ucode", b"microcode"),
            (".initrd", b"initrd"),
            (".linux", b"kernel"),
        ]);
        let Program::UnifiedKernel(kernel) = identify(&file[..]).unwrap() else {
            panic!("not recognised");
        };
        assert_eq!(contents(&file, &kernel.linux), b"kernel");
        assert_eq!(contents(&file, &kernel.command_line), b"root=/dev/vda1 ro\0");
        let initrds: Vec<_> = kernel.initrds.iter().map(|range| contents(&file, range)).collect();
        assert_eq!(initrds, [&b"microcode"[..], b"initrd"]);
        let os_release = String::from_utf8_lossy(contents(&file, &kernel.os_release)).into_owned();
        assert_eq!(os_release_value(&os_release, "PRETTY_NAME").unwrap(), "Test 1");
        assert_eq!(os_release_value(&os_release, "NAME"), None);
    }

    #[test]
    fn only_the_first_profile_counts() {
        let file = image(&[
            (".cmdline", b"all"),
            (".linux", b"kernel"),
            (".profile", b"ID=one"),
            (".cmdline", b"one"),
            (".profile", b"ID=two"),
            (".cmdline", b"two"),
        ]);
        let kernel = unified_kernel(&sections(&file[..]).unwrap().unwrap()).unwrap();
        assert_eq!(contents(&file, &kernel.command_line), b"one");
    }

    #[test]
    fn other_programs_are_told_apart() {
        let of = |sections: &[(&str, &[u8])]| identify(&image(sections)[..]).unwrap();
        assert_eq!(
            of(&[(".sdmagic", b"#### LoaderInfo: systemd-boot 257 ####\0")]),
            Program::SystemdBoot
        );
        assert_eq!(
            of(&[(".sdmagic", b"#### LoaderInfo: systemd-stub 257 ####\0")]),
            Program::Other
        );
        assert_eq!(of(&[("mods", b"grub")]), Program::Other);
        assert_eq!(identify(&b"MZ"[..]).unwrap(), Program::Other);
        assert_eq!(identify(&[0; 4096][..]).unwrap(), Program::Other);
    }
}
