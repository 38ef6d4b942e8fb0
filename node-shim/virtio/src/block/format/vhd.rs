//! VHD (Virtual Hard Disk Image Format Specification 1.0), fixed and dynamic, read-only. Numbers are big-endian.

use std::fs::File;
use std::io;
use std::path::Path;

use super::super::file::FileStorage;
use super::super::storage::{Storage, StorageError};
use super::mapped::{Lookup, MappedImage, Place, Shape, Tables};
use super::metadata::damaged;
use super::{Format, Subject};

/// Bytes of the footer, and of its copy at the start of a dynamic disk.
pub const FOOTER_BYTES: usize = 512;
/// Bytes of a dynamic disk's header.
const DYNAMIC_BYTES: usize = 1024;
const FOOTER_COOKIE: &[u8; 8] = b"conectix";
const DYNAMIC_COOKIE: &[u8; 8] = b"cxsparse";
/// Block allocation table: no such block.
const UNUSED: u32 = u32::MAX;
/// Blocks have 2 MiB unless somebody says otherwise.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 4096..=64 << 20;
const SECTOR: u64 = 512;

/// What of a footer matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    disk_bytes: u64,
    kind: Kind,
}

/// The disk's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fixed,
    /// With the offset of its header.
    Dynamic(u64),
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

/// One's complement of the sum of all bytes but the sum's own.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let others = bytes
        .iter()
        .enumerate()
        .filter(|(index, _)| !(at..at + 4).contains(index));
    !others.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

impl Footer {
    /// Reads a footer. The error says what is wrong with the image, and what to do.
    ///
    /// # Errors
    /// See above.
    pub fn parse(bytes: &[u8; FOOTER_BYTES]) -> Result<Self, String> {
        if bytes[..8] != *FOOTER_COOKIE {
            return Err(
                "is not one, or is cut off: it has no footer; get it again, or state another format".to_owned(),
            );
        }
        if word(bytes, 64) != checksum(bytes, 64) {
            return Err("is damaged: its footer's checksum is wrong; get it again".to_owned());
        }
        let kind = match word(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic(long(bytes, 16)),
            4 => return Err("is based on another image; merge it with its parent first".to_owned()),
            other => return Err(format!("has type {other}; convert it with `qemu-img convert -O qcow2`")),
        };
        Ok(Self {
            disk_bytes: long(bytes, 48),
            kind,
        })
    }
}

/// Whether this is the footer of a fixed disk in a file of so many bytes: so that nothing else is taken for one.
pub(super) fn is_fixed(footer: &[u8; FOOTER_BYTES], file_bytes: u64) -> bool {
    Footer::parse(footer).is_ok_and(|footer| {
        footer.kind == Kind::Fixed && footer.disk_bytes.checked_add(FOOTER_BYTES as u64) == Some(file_bytes)
    })
}

/// The header of a dynamic disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dynamic {
    table_offset: u64,
    block_bytes: u64,
}

impl Dynamic {
    /// Reads a header. The error says what is wrong with the image.
    ///
    /// # Errors
    /// See above.
    pub fn parse(bytes: &[u8; DYNAMIC_BYTES], disk_bytes: u64, file_bytes: u64) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("is damaged: {what}; get it again"));
        if bytes[..8] != *DYNAMIC_COOKIE || word(bytes, 36) != checksum(bytes, 36) {
            return wrong("its header's checksum is wrong");
        }
        let block_bytes = word(bytes, 32);
        if !block_bytes.is_power_of_two() || !BLOCK_BYTES.contains(&block_bytes) {
            return wrong("it has blocks of an impossible size");
        }
        let entries = word(bytes, 28);
        if u64::from(entries) < disk_bytes.div_ceil(u64::from(block_bytes)) {
            return wrong("its table is too small for the disk");
        }
        let table_offset = long(bytes, 16);
        let end = table_offset.checked_add(4 * u64::from(entries));
        if !table_offset.is_multiple_of(SECTOR) || end.is_none_or(|end| end > file_bytes) {
            return wrong("its table is not in the file");
        }
        Ok(Self {
            table_offset,
            block_bytes: u64::from(block_bytes),
        })
    }
}

/// The block allocation table.
struct Blocks {
    table_offset: u64,
    /// Bytes before a block's data: one bit for each sector, in whole sectors. Sectors that were never written are zero in the data too.
    bitmap_bytes: u64,
}

/// Opens an image.
pub(super) fn open(file: File, path: &Path) -> Result<Box<dyn Storage>, StorageError> {
    let subject = Subject::new(Format::Vhd, &file, path)?;
    let at = subject.length.saturating_sub(FOOTER_BYTES as u64);
    // A dynamic disk that lost its end still has the copy at its start.
    let footer = Footer::parse(&subject.read(at)?).or_else(|problem| {
        let copy = subject.read(0).map_err(|_| problem.clone())?;
        Footer::parse(&copy)
            .ok()
            .filter(|copy| copy.kind != Kind::Fixed)
            .ok_or(problem)
    });
    let footer = footer.map_err(|problem| subject.problem(problem))?;
    subject.check_disk_length(footer.disk_bytes)?;
    let offset = match footer.kind {
        Kind::Fixed => {
            if footer.disk_bytes > at {
                return Err(subject.problem("is cut off: its footer says that it is larger; get it again"));
            }
            return Ok(Box::new(FileStorage::read_only_part(file, footer.disk_bytes)));
        }
        Kind::Dynamic(offset) => offset,
    };
    let header = Dynamic::parse(&subject.read(offset)?, footer.disk_bytes, subject.length);
    let header = header.map_err(|problem| subject.problem(problem))?;
    let shape = Shape {
        file_length: subject.length,
        disk_bytes: footer.disk_bytes,
        unit_bytes: header.block_bytes,
    };
    let tables = Blocks {
        table_offset: header.table_offset,
        bitmap_bytes: (header.block_bytes / SECTOR).div_ceil(8).next_multiple_of(SECTOR),
    };
    Ok(Box::new(MappedImage::new(file, shape, tables, None)))
}

impl Tables for Blocks {
    fn locate(&self, lookup: &Lookup<'_>, unit: u64) -> io::Result<Place> {
        // In the file: Dynamic::parse has seen to that.
        Ok(match lookup.be_u32(self.table_offset + 4 * unit)? {
            UNUSED => Place::Zero,
            sector => Place::At(u64::from(sector) * SECTOR + self.bitmap_bytes),
        })
    }

    fn unpack(&self, _index: u64, _packed: &[u8], _unit: &mut [u8]) -> io::Result<()> {
        Err(damaged("a VHD has no packed blocks"))
    }
}
