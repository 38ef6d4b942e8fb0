//! qcow2, versions 2 and 3 (QEMU's docs/interop/qcow2.txt), read-only. Snapshots inside of the image are not looked at. An image that was
//! not closed properly can be read: only its reference counts are then in doubt, which reading does not need.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::super::storage::{Storage, StorageError};
use super::mapped::{Lookup, MappedImage, Place, Shape, Tables};
use super::metadata::damaged;
use super::{Format, Subject};

/// Bytes of a version 2 header, and of the part of a version 3 header that every one has.
const HEADER_BYTES: usize = 104;
/// `cluster_bits`: QEMU makes 9 to 21.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// `incompatible_features`.
const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Where `compression_type` is, in headers that have it.
const COMPRESSION_TYPE_AT: u32 = 104;
/// Bits of a table entry that are an offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// L2 entry: the cluster is packed.
const COMPRESSED: u64 = 1 << 62;
/// L2 entry of version 3: the cluster reads as zeros.
const ZERO: u64 = 1;
/// L1 and L2 entries: the reference count is one. It says nothing to a reader.
const COPIED: u64 = 1 << 63;
/// Largest zstd window: QEMU packs clusters, which are smaller.
const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// How clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Deflate,
    Zstd,
}

/// What of a header matters to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    version: u32,
    cluster_bits: u32,
    disk_bytes: u64,
    level1_offset: u64,
    has_backing: bool,
    /// `header_length` if there may be a compression type, which is behind the header.
    extended_bytes: Option<u32>,
}

impl Header {
    /// Reads a header. The error says what is wrong with the image, and what to do.
    ///
    /// # Errors
    /// See above.
    pub fn parse(bytes: &[u8; HEADER_BYTES], file_bytes: u64) -> Result<Self, String> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        if bytes[..4] != *b"QFI\xfb" {
            return Err("is not one; state another format".to_owned());
        }
        let version = word(4);
        if !matches!(version, 2 | 3) {
            return Err(format!(
                "has version {version}; convert it with `qemu-img convert -O qcow2`"
            ));
        }
        if word(32) != 0 {
            return Err("is encrypted; decrypt it with `qemu-img convert`".to_owned());
        }
        let mut extended_bytes = None;
        if version == 3 {
            check_incompatible(long(72))?;
            let header_bytes = word(100);
            if header_bytes < 104 || !header_bytes.is_multiple_of(8) {
                return Err(format!("has a header of {header_bytes} bytes; get it again"));
            }
            extended_bytes = (long(72) & INCOMPATIBLE_COMPRESSION != 0).then_some(header_bytes);
        }
        let cluster_bits = word(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(format!(
                "has clusters of 2^{cluster_bits} bytes; convert it with `qemu-img convert -O qcow2`"
            ));
        }
        let header = Self {
            version,
            cluster_bits,
            disk_bytes: long(24),
            level1_offset: long(40),
            has_backing: long(8) != 0,
            extended_bytes,
        };
        header.check_tables(word(36), file_bytes)?;
        Ok(header)
    }

    fn check_tables(&self, level1_entries: u32, file_bytes: u64) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("is damaged: {what}; get it again, or see `qemu-img check`"));
        // An L2 table is one cluster of 8-byte entries.
        let covered_bits = self.cluster_bits + self.cluster_bits - 3;
        let needed = self.disk_bytes.div_ceil(1 << covered_bits);
        if u64::from(level1_entries) < needed {
            return wrong("its first table is too small for the disk");
        }
        let end = self.level1_offset.checked_add(8 * u64::from(level1_entries));
        if !self.level1_offset.is_multiple_of(1 << self.cluster_bits) || end.is_none_or(|end| end > file_bytes) {
            return wrong("its first table is not in the file");
        }
        Ok(())
    }
}

fn check_incompatible(features: u64) -> Result<(), String> {
    let known = INCOMPATIBLE_DIRTY | INCOMPATIBLE_COMPRESSION;
    if features & INCOMPATIBLE_CORRUPT != 0 {
        return Err("is marked as corrupt; repair it with `qemu-img check -r all`".to_owned());
    }
    if features & INCOMPATIBLE_DATA_FILE != 0 {
        return Err("has its data in another file; convert it with `qemu-img convert -O qcow2`".to_owned());
    }
    if features & INCOMPATIBLE_EXTENDED_L2 != 0 {
        return Err("has subclusters; convert it with `qemu-img convert -O qcow2 -o extended_l2=off`".to_owned());
    }
    match features & !known {
        0 => Ok(()),
        unknown => Err(format!(
            "needs features that this build does not know (incompatible bits {unknown:#x}); convert it with `qemu-img convert -O qcow2`"
        )),
    }
}

/// The tables of an image.
struct Clusters {
    version: u32,
    cluster_bits: u32,
    level1_offset: u64,
    packing: Packing,
}

/// Opens an image; `backing` is what the configuration names as its backing file.
pub(super) fn open(
    file: File,
    path: &Path,
    backing: Option<Box<dyn Storage>>,
) -> Result<impl Storage + use<>, StorageError> {
    let subject = Subject::new(Format::Qcow2, &file, path)?;
    // A version 2 header is shorter, and its image always has a whole cluster.
    let header = Header::parse(&subject.read(0)?, subject.length).map_err(|problem| subject.problem(problem))?;
    subject.check_disk_length(header.disk_bytes)?;
    match (header.has_backing, &backing) {
        (true, None) => {
            let problem = "is based on another image; name that as its backing image in the configuration, or make one of \
                           both with `qemu-img convert`";
            return Err(subject.problem(problem));
        }
        (false, Some(_)) => {
            let problem = "is based on no other image, and the configuration names a backing image; leave it out";
            return Err(subject.problem(problem));
        }
        (true, Some(_)) | (false, None) => {}
    }
    let packing = packing(&header, &subject)?;
    let shape = Shape {
        file_length: subject.length,
        disk_bytes: header.disk_bytes,
        unit_bytes: 1 << header.cluster_bits,
    };
    let tables = Clusters {
        version: header.version,
        cluster_bits: header.cluster_bits,
        level1_offset: header.level1_offset,
        packing,
    };
    Ok(MappedImage::new(file, shape, tables, backing))
}

fn packing(header: &Header, subject: &Subject<'_>) -> Result<Packing, StorageError> {
    let number = match header.extended_bytes {
        Some(bytes) if bytes > COMPRESSION_TYPE_AT => subject.read::<1>(u64::from(COMPRESSION_TYPE_AT))?[0],
        Some(_) | None => 0,
    };
    match number {
        0 => Ok(Packing::Deflate),
        1 => Ok(Packing::Zstd),
        other => Err(subject.problem(format!(
            "is packed in a way that this build does not know ({other}); convert it with `qemu-img convert -O qcow2`"
        ))),
    }
}

impl Tables for Clusters {
    fn locate(&self, lookup: &Lookup<'_>, unit: u64) -> io::Result<Place> {
        let entries_bits = self.cluster_bits - 3;
        // In the file: Header::check_tables has seen to that.
        let level1 = lookup.be_u64(self.level1_offset + 8 * (unit >> entries_bits))?;
        let table = level1 & OFFSET_MASK;
        if level1 & !(OFFSET_MASK | COPIED) != 0 || !table.is_multiple_of(1 << self.cluster_bits) {
            return Err(damaged(format!("level 1 entry {level1:#x}")));
        }
        if table == 0 {
            return Ok(Place::Absent);
        }
        let index = unit & ((1 << entries_bits) - 1);
        let entry = lookup.be_u64(table + 8 * index)?;
        place(entry, self.cluster_bits, self.version).ok_or_else(|| damaged(format!("level 2 entry {entry:#x}")))
    }

    fn unpack(&self, _index: u64, packed: &[u8], unit: &mut [u8]) -> io::Result<()> {
        match self.packing {
            Packing::Deflate => inflate(packed, unit, false),
            Packing::Zstd => unpack_zstd(packed, unit),
        }
    }
}

/// What a level 2 entry says; `None` when it cannot be one.
fn place(entry: u64, cluster_bits: u32, version: u32) -> Option<Place> {
    if entry & COMPRESSED != 0 {
        if entry & COPIED != 0 {
            return None;
        }
        // Below bit `split` is the offset, above it how many more sectors than the first are touched.
        let split = 62 - (cluster_bits - 8);
        let offset = entry & ((1 << split) - 1);
        let more = (entry & (COMPRESSED - 1)) >> split;
        let length = (more + 1) * 512 - (offset & 511);
        return Some(Place::Packed { offset, length });
    }
    let zero = version >= 3 && entry & ZERO != 0;
    let reserved = !(OFFSET_MASK | COPIED | if version >= 3 { ZERO } else { 0 });
    let offset = entry & OFFSET_MASK;
    if entry & reserved != 0 || !offset.is_multiple_of(1 << cluster_bits) {
        return None;
    }
    Some(match (zero, offset) {
        (true, _) => Place::Zero,
        (false, 0) => Place::Absent,
        (false, offset) => Place::At(offset),
    })
}

/// Inflates exactly `unit`, from raw deflate data or, with `zlib`, from RFC 1950's. What follows in `packed` does not matter.
pub(super) fn inflate(packed: &[u8], unit: &mut [u8], zlib: bool) -> io::Result<()> {
    let mut inflater = Decompress::new(zlib);
    let status = inflater.decompress(packed, unit, FlushDecompress::Finish);
    let status = status.map_err(|error| damaged(format!("packed data: {error}")))?;
    if inflater.total_out() == unit.len() as u64 && matches!(status, Status::StreamEnd | Status::BufError | Status::Ok)
    {
        return Ok(());
    }
    Err(damaged("packed data of less than a whole unit"))
}

fn unpack_zstd(packed: &[u8], unit: &mut [u8]) -> io::Result<()> {
    let wrong = |what: &dyn std::fmt::Display| damaged(format!("packed data: {what}"));
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW_MAX);
    let mut stream = StreamingDecoder::new_with_decoder(packed, decoder).map_err(|error| wrong(&error))?;
    stream.read_exact(unit).map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes[20..24].copy_from_slice(&16_u32.to_be_bytes());
        bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        bytes[36..40].copy_from_slice(&2_u32.to_be_bytes());
        bytes[40..48].copy_from_slice(&0x3_0000_u64.to_be_bytes());
        bytes[100..].copy_from_slice(&104_u32.to_be_bytes());
        bytes
    }

    #[test]
    fn headers() {
        for version in [2, 3] {
            let parsed = Header::parse(&header(version), 1 << 20).unwrap();
            assert_eq!(
                (parsed.disk_bytes, parsed.cluster_bits, parsed.has_backing),
                (1 << 30, 16, false)
            );
        }
        for (at, bytes, expected) in [
            (0, &[0][..], "is not one"),
            (7, &[4], "has version 4"),
            (7, &[1], "has version 1"),
            (35, &[1], "is encrypted"),
            (23, &[8], "clusters of 2^8"),
            (23, &[22], "clusters of 2^22"),
            (20, &[0xff; 4], "clusters of"),
            (39, &[1], "too small for the disk"),
            (24, &[0xff; 8], "too small for the disk"),
            (36, &[0xff; 4], "not in the file"),
            (40, &[0xff; 8], "not in the file"),
            (47, &[8], "not in the file"),
            (79, &[2], "marked as corrupt"),
            (79, &[4], "its data in another file"),
            (79, &[16], "has subclusters"),
            (79, &[0x20], "incompatible bits 0x20"),
            (72, &[0x80], "incompatible bits 0x8000000000000000"),
            (103, &[0], "a header of 0 bytes"),
        ] {
            let mut bad = header(3);
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            let error = Header::parse(&bad, 1 << 20).expect_err(expected);
            assert!(error.contains(expected), "{at}: {error}");
        }
        let mut dirty = header(3);
        dirty[79] = 1;
        assert!(Header::parse(&dirty, 1 << 20).is_ok(), "it may be read");
        let mut old = header(2);
        old[79] = 0xff;
        assert!(Header::parse(&old, 1 << 20).is_ok(), "version 2 has no features");
    }

    #[test]
    fn level_2_entries() {
        let packed = |offset, length| Some(Place::Packed { offset, length });
        for (entry, bits, version, expected) in [
            (0, 16, 3, Some(Place::Absent)),
            (COPIED | 0x5_0000, 16, 3, Some(Place::At(0x5_0000))),
            (0x5_0000, 16, 2, Some(Place::At(0x5_0000))),
            (0x5_0200, 16, 3, None),
            (0x5_0200, 9, 3, Some(Place::At(0x5_0200))),
            (1, 16, 3, Some(Place::Zero)),
            (COPIED | 0x5_0001, 16, 3, Some(Place::Zero)),
            (1, 16, 2, None),
            (2, 16, 3, None),
            (1 << 56, 16, 3, None),
            (1 << 61, 16, 3, None),
            // 64 KiB clusters: 54 bits of offset, 8 of sectors.
            (COMPRESSED | 0x1234, 16, 3, packed(0x1234, 512 - 0x34)),
            (COMPRESSED | 3 << 54 | 0x1234, 16, 3, packed(0x1234, 4 * 512 - 0x34)),
            (COMPRESSED | COPIED | 0x1234, 16, 3, None),
            (u64::MAX >> 1, 21, 3, packed((1 << 49) - 1, (1 << 13) * 512 - 511)),
        ] {
            assert_eq!(place(entry, bits, version), expected, "{entry:#x}");
        }
    }
}
