//! VMDK in one file (Virtual Disk Format 5.0, "hosted sparse extents"), `monolithicSparse` and `streamOptimized`, read-only. Numbers are
//! little-endian, and addresses are in sectors.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::file::failed;
use super::super::storage::{Storage, StorageError};
use super::mapped::{Lookup, MappedImage, Place, Shape, Tables};
use super::metadata::damaged;
use super::qcow2::inflate;
use super::{Format, Subject};

/// Bytes of a header, and of its copy in the footer.
const HEADER_BYTES: usize = 512;
const SECTOR: u64 = 512;
/// `flags`: grains that are zero have a mark of their own.
const FLAG_MARKS_ZERO: u32 = 1 << 2;
/// `flags`: grains are packed.
const FLAG_PACKED: u32 = 1 << 16;
/// `flags`: a marker is before each packed grain.
const FLAG_MARKERS: u32 = 1 << 17;
/// `compressAlgorithm`.
const DEFLATE: u16 = 1;
/// `gdOffset`: see the footer.
const AT_END: u64 = u64::MAX;
/// The footer's distance from the file's end: behind it is the end-of-stream marker.
const FOOTER_FROM_END: u64 = 1024;
/// Entries of a grain table; every version has that many.
const TABLE_ENTRIES: u64 = 512;
/// Sectors of a grain: 64 KiB usually.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=4096;
/// Largest descriptor; `VMware`'s have a kilobyte or so.
const DESCRIPTOR_MAX_BYTES: u64 = 64 << 10;
/// Bytes of a grain's marker: its first sector, and the bytes of packed data.
const MARKER_BYTES: usize = 12;

/// What of a header matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    sectors: u64,
    grain_sectors: u64,
    descriptor: (u64, u64),
    directory_sector: u64,
    marks_zero: bool,
    packed: bool,
}

impl Header {
    /// Reads a header. The error says what is wrong with the image, and what to do.
    ///
    /// # Errors
    /// See above.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes[..4] != *b"KDMV" {
            return Err("is not one; state another format".to_owned());
        }
        if !(1..=3).contains(&word(4)) {
            return Err(format!(
                "has version {}; convert it with `qemu-img convert -O qcow2`",
                word(4)
            ));
        }
        // A transfer in text mode changes one of these.
        if bytes[73..77] != *b"\n \r\n" {
            return Err("is damaged: it was transferred as text; get it again".to_owned());
        }
        let flags = word(8);
        let packed = flags & FLAG_PACKED != 0;
        let algorithm = u16::from_le_bytes([bytes[77], bytes[78]]);
        if packed && (algorithm != DEFLATE || flags & FLAG_MARKERS == 0) {
            return Err(
                "is packed in a way that this build does not know; convert it with `qemu-img convert -O qcow2`"
                    .to_owned(),
            );
        }
        let (sectors, grain_sectors) = (long(12), long(20));
        if !grain_sectors.is_power_of_two() || !GRAIN_SECTORS.contains(&grain_sectors) {
            return Err(format!(
                "is damaged: it has grains of {grain_sectors} sectors; get it again"
            ));
        }
        if u64::from(word(44)) != TABLE_ENTRIES || sectors.checked_mul(SECTOR).is_none() {
            return Err("is damaged: its tables have an impossible size; get it again".to_owned());
        }
        Ok(Self {
            sectors,
            grain_sectors,
            descriptor: (long(28), long(36)),
            directory_sector: long(56),
            marks_zero: flags & FLAG_MARKS_ZERO != 0,
            packed,
        })
    }

    /// The grain directory's first byte, when all of it is in the file.
    fn directory(&self, file_bytes: u64) -> Result<u64, String> {
        let entries = self.sectors.div_ceil(self.grain_sectors * TABLE_ENTRIES);
        let offset = self.directory_sector.checked_mul(SECTOR).filter(|offset| *offset > 0);
        let end = offset.and_then(|offset| offset.checked_add(4 * entries));
        match (offset, end) {
            (Some(offset), Some(end)) if end <= file_bytes => Ok(offset),
            _ => Err("is damaged or cut off: its grain directory is not in the file; get it again".to_owned()),
        }
    }
}

/// Whether a descriptor describes a disk that is all in this file.
///
/// # Errors
/// What is wrong, and what to do.
pub fn check_descriptor(text: &str) -> Result<(), String> {
    let convert = "convert it with `qemu-img convert -O qcow2`";
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
        line.map(|value| value.trim().trim_matches('"'))
    };
    match value("createType") {
        Some("monolithicSparse" | "streamOptimized") => {}
        Some(other) => {
            let kind: String = other.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
            return Err(format!("is of the kind {kind}; {convert}"));
        }
        None => return Err(format!("does not say of which kind it is; {convert}")),
    }
    // Every bit set: no parent.
    if value("parentCID").is_some_and(|parent| !parent.eq_ignore_ascii_case("ffffffff")) {
        return Err(format!("is based on another image; {convert}"));
    }
    let extents = text.lines().filter(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("RW" | "RDONLY" | "NOACCESS"))
    });
    match extents.count() {
        1 => Ok(()),
        count => Err(format!("has {count} extents; {convert}")),
    }
}

/// Grain directory and grain tables.
struct Grains {
    directory_offset: u64,
    marks_zero: bool,
    packed: bool,
    grain_sectors: u64,
}

/// Opens an image.
pub(super) fn open(file: File, path: &Path) -> Result<impl Storage + use<>, StorageError> {
    let subject = Subject::new(Format::Vmdk, &file, path)?;
    let problem = |problem: String| subject.problem(problem);
    let mut header = Header::parse(&subject.read(0)?).map_err(problem)?;
    let text = descriptor(&header, &subject)?;
    check_descriptor(&text).map_err(problem)?;
    if header.directory_sector == AT_END {
        let at = subject.length.saturating_sub(FOOTER_FROM_END);
        let footer = Header::parse(&subject.read(at)?)
            .map_err(|_| subject.problem("is cut off: it has no footer; get it again"))?;
        // Only where the directory is may have changed.
        header.directory_sector = footer.directory_sector;
    }
    let directory_offset = header.directory(subject.length).map_err(problem)?;
    let disk_bytes = header.sectors * SECTOR;
    subject.check_disk_length(disk_bytes)?;
    let shape = Shape {
        file_length: subject.length,
        disk_bytes,
        unit_bytes: header.grain_sectors * SECTOR,
    };
    let tables = Grains {
        directory_offset,
        marks_zero: header.marks_zero,
        packed: header.packed,
        grain_sectors: header.grain_sectors,
    };
    Ok(MappedImage::new(file, shape, tables, None))
}

fn descriptor(header: &Header, subject: &Subject<'_>) -> Result<String, StorageError> {
    let (sector, sectors) = header.descriptor;
    let alone = "is one of several extents; convert all of them with `qemu-img convert -O qcow2`";
    if sector == 0 {
        return Err(subject.problem(alone));
    }
    let range = sector.checked_mul(SECTOR).zip(sectors.checked_mul(SECTOR));
    let range = range.filter(|(offset, bytes)| {
        *bytes <= DESCRIPTOR_MAX_BYTES && offset.checked_add(*bytes).is_some_and(|end| end <= subject.length)
    });
    let Some((offset, bytes)) = range else {
        return Err(subject.problem("is damaged or cut off: its descriptor is not in the file; get it again"));
    };
    let mut text = vec![0; usize::try_from(bytes).unwrap_or_default()];
    subject
        .file
        .read_exact_at(&mut text, offset)
        .map_err(|source| failed("read", subject.path, source))?;
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    if end == 0 {
        return Err(subject.problem(alone));
    }
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

impl Tables for Grains {
    fn locate(&self, lookup: &Lookup<'_>, unit: u64) -> io::Result<Place> {
        // In the file: Header::directory has seen to that.
        let table = lookup.le_u32(self.directory_offset + 4 * (unit / TABLE_ENTRIES))?;
        if table == 0 {
            return Ok(Place::Zero);
        }
        let entry = lookup.le_u32(u64::from(table) * SECTOR + 4 * (unit % TABLE_ENTRIES))?;
        let offset = u64::from(entry) * SECTOR;
        if entry == 0 || self.marks_zero && entry == 1 {
            return Ok(Place::Zero);
        }
        if !self.packed {
            return Ok(Place::At(offset));
        }
        let marker: [u8; MARKER_BYTES] = lookup.bytes(offset)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, length @ ..] = marker;
        let first_sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let length = u64::from(u32::from_le_bytes(length));
        // Data that does not become smaller is only a little longer than its grain.
        if first_sector != unit * self.grain_sectors || length > 2 * self.grain_sectors * SECTOR {
            return Err(damaged(format!("the marker of the grain at {offset}")));
        }
        Ok(Place::Packed {
            offset: offset + MARKER_BYTES as u64,
            length,
        })
    }

    fn unpack(&self, _index: u64, packed: &[u8], unit: &mut [u8]) -> io::Result<()> {
        inflate(packed, unit, true)
    }
}
