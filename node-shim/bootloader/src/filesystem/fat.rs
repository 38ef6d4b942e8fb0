//! FAT12, FAT16 and FAT32: Microsoft's "FAT: General Overview of On-Disk Format", version 1.03.
//!
//! The `fatfs` crate multiplies fields of the boot sector unchecked, so a hostile one panics it, and it wants to write; so this is our own.

use std::cell::RefCell;

use super::{FileSystem, FileSystemError, Node, Result};
use crate::bytes::{le_u16, le_u32};
use crate::disk::Window;

/// Bytes of an entry of a directory.
const ENTRY_BYTES: usize = 32;
/// Attributes of an entry.
const VOLUME_LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
/// First byte of an entry: no more entries, or this one was deleted.
const END: u8 = 0x00;
const DELETED: u8 = 0xe5;
/// The table is read in pieces of this many bytes.
const TABLE_PAGE_BYTES: u64 = 4096;
/// Least number of clusters of a FAT16 and a FAT32.
const FAT16_CLUSTERS: u64 = 4085;
const FAT32_CLUSTERS: u64 = 65525;
/// Most clusters of a FAT32: its numbers have 28 bits.
const CLUSTERS_MAX: u64 = 0x0fff_fff5;
/// Characters of a long name.
const NAME_MAX: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

#[derive(Clone, Debug)]
struct Geometry {
    width: Width,
    cluster_bytes: u64,
    clusters: u64,
    table: u64,
    table_bytes: u64,
    /// Where the root directory of FAT12 and FAT16 is, and its bytes.
    root: (u64, u64),
    root_cluster: u64,
    data: u64,
    serial: u32,
    label: String,
}

/// A mounted FAT file system.
pub(super) struct FatFileSystem {
    window: Window,
    geometry: Geometry,
    entries_max: usize,
    /// The piece of the table that was read last, by its number.
    page: RefCell<(u64, Vec<u8>)>,
}

/// Where something's bytes are.
#[derive(Clone, Copy, Debug)]
enum Place {
    Root,
    Cluster(u64),
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    short_name: String,
    directory: bool,
    place: Place,
    bytes: u64,
}

/// Whether these first bytes are a FAT's boot sector.
pub(super) fn looks_like(head: &[u8]) -> bool {
    head.get(510..512) == Some(&[0x55, 0xaa]) && geometry(head, u64::MAX).is_ok()
}

fn geometry(head: &[u8], length: u64) -> Result<Geometry> {
    let damaged = |why: &str| FileSystemError::new(format!("its boot sector is damaged: {why}"));
    let sector = u64::from(le_u16(head, 11));
    let per_cluster = u64::from(head.get(13).copied().unwrap_or(0));
    if !(512..=4096).contains(&sector) || !sector.is_power_of_two() || !per_cluster.is_power_of_two() {
        return Err(damaged("sectors or clusters of a size that does not exist"));
    }
    let reserved = u64::from(le_u16(head, 14));
    let tables = u64::from(head.get(16).copied().unwrap_or(0));
    let root_entries = u64::from(le_u16(head, 17));
    let either = |short: u64, long: u64| if short == 0 { long } else { short };
    let sectors = either(u64::from(le_u16(head, 19)), u64::from(le_u32(head, 32)));
    let table_sectors = either(u64::from(le_u16(head, 22)), u64::from(le_u32(head, 36)));
    if reserved == 0 || !(1..=4).contains(&tables) || table_sectors == 0 {
        return Err(damaged("no allocation table"));
    }
    let root_start = reserved + tables * table_sectors;
    let root_bytes = root_entries * ENTRY_BYTES as u64;
    let data_start = root_start + root_bytes.div_ceil(sector);
    let clusters = sectors
        .checked_sub(data_start)
        .map(|sectors| sectors / per_cluster)
        .filter(|clusters| (1..=CLUSTERS_MAX).contains(clusters))
        .ok_or_else(|| damaged("no room for data"))?;
    let width = match clusters {
        ..FAT16_CLUSTERS => Width::Bits12,
        FAT16_CLUSTERS..FAT32_CLUSTERS => Width::Bits16,
        FAT32_CLUSTERS.. => Width::Bits32,
    };
    if (width == Width::Bits32) != (root_entries == 0) {
        return Err(damaged("a root directory that does not fit its size"));
    }
    let (serial_at, label_at) = if width == Width::Bits32 { (67, 71) } else { (39, 43) };
    if data_start.saturating_mul(sector) > length {
        return Err(damaged("its data are beyond its end"));
    }
    Ok(Geometry {
        width,
        cluster_bytes: sector * per_cluster,
        clusters,
        table: reserved * sector,
        table_bytes: table_sectors * sector,
        root: (root_start * sector, root_bytes),
        root_cluster: u64::from(le_u32(head, 44)),
        data: data_start * sector,
        serial: le_u32(head, serial_at),
        label: padded(head.get(label_at..label_at + 11).unwrap_or_default()),
    })
}

/// Text that is filled up with spaces.
fn padded(bytes: &[u8]) -> String {
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    text.trim_end_matches([' ', '\0']).to_owned()
}

impl FatFileSystem {
    /// Mounts the file system in a window; directories have up to `entries_max` entries.
    pub(super) fn mount(window: Window, entries_max: usize) -> Result<Self> {
        let head: [u8; 512] = window.array(0).map_err(FileSystemError::new)?;
        let geometry = geometry(&head, window.length())?;
        Ok(Self {
            window,
            geometry,
            entries_max,
            page: RefCell::new((u64::MAX, Vec::new())),
        })
    }

    /// What the table says at a byte.
    fn table_u32(&self, at: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        for (at, byte) in (at..).zip(&mut bytes) {
            if at < self.geometry.table_bytes {
                *byte = self.table_byte(at)?;
            }
        }
        Ok(u32::from_le_bytes(bytes))
    }

    fn table_byte(&self, at: u64) -> Result<u8> {
        let number = at / TABLE_PAGE_BYTES;
        let mut page = self.page.borrow_mut();
        if page.0 != number {
            let start = number * TABLE_PAGE_BYTES;
            let bytes = (self.geometry.table_bytes - start).min(TABLE_PAGE_BYTES);
            let mut contents = vec![0; usize::try_from(bytes).unwrap_or(0)];
            self.window
                .read_at(self.geometry.table + start, &mut contents)
                .map_err(FileSystemError::new)?;
            *page = (number, contents);
        }
        let index = usize::try_from(at % TABLE_PAGE_BYTES).unwrap_or(usize::MAX);
        Ok(page.1.get(index).copied().unwrap_or(0))
    }

    /// The cluster after `cluster`; `None` at the end of its chain.
    fn next(&self, cluster: u64) -> Result<Option<u64>> {
        let (value, end) = match self.geometry.width {
            Width::Bits12 => {
                let pair = self.table_u32(cluster + cluster / 2)?;
                let shift = if cluster.is_multiple_of(2) { 0 } else { 4 };
                (pair >> shift & 0xfff, 0xff8)
            }
            Width::Bits16 => (self.table_u32(cluster * 2)? & 0xffff, 0xfff8),
            Width::Bits32 => (self.table_u32(cluster * 4)? & 0x0fff_ffff, 0x0fff_fff8),
        };
        if value >= end {
            return Ok(None);
        }
        self.check(u64::from(value)).map(Some)
    }

    fn check(&self, cluster: u64) -> Result<u64> {
        // The first cluster has the number 2.
        if (2..self.geometry.clusters + 2).contains(&cluster) {
            Ok(cluster)
        } else {
            Err(FileSystemError::new(format!(
                "a chain of clusters leads to number {cluster}, which does not exist"
            )))
        }
    }

    fn offset(&self, cluster: u64) -> u64 {
        self.geometry.data + (cluster - 2) * self.geometry.cluster_bytes
    }

    /// Reads `bytes` of a directory, or up to its end.
    fn directory(&self, place: Place) -> Result<Vec<u8>> {
        let most = self.entries_max as u64 * ENTRY_BYTES as u64;
        let first = match place {
            Place::Root if self.geometry.width == Width::Bits32 => self.geometry.root_cluster,
            Place::Root => {
                let (start, bytes) = self.geometry.root;
                let mut contents = vec![0; usize::try_from(bytes.min(most)).unwrap_or(0)];
                self.window
                    .read_at(start, &mut contents)
                    .map_err(FileSystemError::new)?;
                return Ok(contents);
            }
            Place::Cluster(cluster) => cluster,
        };
        let mut contents = Vec::new();
        let mut cluster = Some(self.check(first)?);
        while let Some(at) = cluster
            && (contents.len() as u64) < most
        {
            let from = contents.len();
            contents.resize(from + usize::try_from(self.geometry.cluster_bytes).unwrap_or(0), 0);
            self.window
                .read_at(self.offset(at), &mut contents[from..])
                .map_err(FileSystemError::new)?;
            // Nothing is after the end mark.
            if contents[from..].chunks_exact(ENTRY_BYTES).any(|entry| entry[0] == END) {
                break;
            }
            cluster = self.next(at)?;
        }
        Ok(contents)
    }

    fn entries(&self, place: Place) -> Result<Vec<Entry>> {
        Ok(entries(&self.directory(place)?))
    }

    fn find(&self, path: &str) -> Result<Option<Entry>> {
        let mut found = Entry {
            name: String::new(),
            short_name: String::new(),
            directory: true,
            place: Place::Root,
            bytes: 0,
        };
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !found.directory {
                return Ok(None);
            }
            let next = self
                .entries(found.place)?
                .into_iter()
                .find(|entry| same_name(&entry.name, part) || same_name(&entry.short_name, part));
            match next {
                Some(entry) => found = entry,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }
}

/// Names are the same whatever their case.
fn same_name(one: &str, other: &str) -> bool {
    one.chars()
        .flat_map(char::to_lowercase)
        .eq(other.chars().flat_map(char::to_lowercase))
}

/// The entries of a directory's bytes. Long names come before the entry they belong to, last part first.
fn entries(directory: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut long = LongName::default();
    for raw in directory.chunks_exact(ENTRY_BYTES) {
        match (raw[0], raw[11]) {
            (END, _) => break,
            (DELETED, _) => long = LongName::default(),
            (_, attributes) if attributes & 0x3f == LONG_NAME => long.add(raw),
            (_, attributes) if attributes & VOLUME_LABEL != 0 => long = LongName::default(),
            (_, attributes) => {
                let short_name = short_name(raw);
                let name = std::mem::take(&mut long)
                    .finish(raw)
                    .unwrap_or_else(|| short_name.clone());
                if !matches!(short_name.as_str(), "." | "..") {
                    found.push(Entry {
                        name,
                        short_name,
                        directory: attributes & DIRECTORY != 0,
                        place: Place::Cluster(u64::from(le_u16(raw, 20)) << 16 | u64::from(le_u16(raw, 26))),
                        bytes: u64::from(le_u32(raw, 28)),
                    });
                }
            }
        }
    }
    found
}

/// `NAME.EXT`, in the case that Windows NT's bits say.
fn short_name(raw: &[u8]) -> String {
    let part = |bytes: &[u8], lower: bool| {
        let text = padded(bytes);
        if lower { text.to_lowercase() } else { text }
    };
    let mut base = part(&raw[..8], raw[12] & 0x08 != 0);
    // 0x05 stands for a first byte that would mean that the entry was deleted.
    if raw[0] == 0x05 {
        base.replace_range(..1, "\u{e5}");
    }
    let extension = part(&raw[8..11], raw[12] & 0x10 != 0);
    if extension.is_empty() {
        base
    } else {
        format!("{base}.{extension}")
    }
}

#[derive(Default)]
struct LongName {
    /// In the order of the directory: the end of the name first.
    parts: Vec<[u16; 13]>,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        if raw[0] & 0x40 != 0 || raw[13] != self.checksum {
            *self = Self {
                parts: Vec::new(),
                checksum: raw[13],
            };
        }
        if self.parts.len() <= NAME_MAX / 13 {
            let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
            self.parts.push(places.map(|at| le_u16(raw, at)));
        }
    }

    /// The name, if it belongs to this short one.
    fn finish(self, raw: &[u8]) -> Option<String> {
        let checksum = raw[..11]
            .iter()
            .fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.parts.is_empty() || checksum != self.checksum {
            return None;
        }
        let units: Vec<u16> = self
            .parts
            .iter()
            .rev()
            .flatten()
            .copied()
            .take_while(|unit| *unit != 0)
            .collect();
        String::from_utf16(&units)
            .ok()
            .filter(|name| !name.is_empty() && !name.contains('/'))
    }
}

impl FileSystem for FatFileSystem {
    fn node(&self, path: &str) -> Result<Option<Node>> {
        Ok(self.find(path)?.map(|entry| {
            if entry.directory {
                Node::Directory
            } else {
                Node::File(entry.bytes)
            }
        }))
    }

    fn list(&self, path: &str, limit: usize) -> Result<Vec<String>> {
        match self.find(path)? {
            Some(entry) if entry.directory => {
                let entries = self.entries(entry.place)?;
                Ok(entries.into_iter().map(|entry| entry.name).take(limit).collect())
            }
            _ => Err(FileSystemError::new(format!("{path} is not a directory"))),
        }
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let entry = self.find(path)?.filter(|entry| !entry.directory);
        let Some(Entry {
            place: Place::Cluster(first),
            bytes,
            ..
        }) = entry
        else {
            return Err(FileSystemError::new(format!("{path} is not a file")));
        };
        let wanted = bytes.saturating_sub(offset).min(buffer.len() as u64);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        if wanted == 0 {
            return Ok(0);
        }
        let cut = || FileSystemError::new(format!("{path} has fewer clusters than bytes"));
        let mut cluster = self.check(first)?;
        for _ in 0..offset / self.geometry.cluster_bytes {
            cluster = self.next(cluster)?.ok_or_else(cut)?;
        }
        let mut within = offset % self.geometry.cluster_bytes;
        let mut filled = 0;
        loop {
            let room = usize::try_from(self.geometry.cluster_bytes - within).unwrap_or(0);
            let end = wanted.min(filled + room);
            self.window
                .read_at(self.offset(cluster) + within, &mut buffer[filled..end])
                .map_err(FileSystemError::new)?;
            filled = end;
            within = 0;
            if filled == wanted {
                return Ok(filled);
            }
            cluster = self.next(cluster)?.ok_or_else(cut)?;
        }
    }

    fn label(&self) -> Option<String> {
        let root = self.directory(Place::Root).unwrap_or_default();
        let of_root = root
            .chunks_exact(ENTRY_BYTES)
            .take_while(|raw| raw[0] != END)
            .find(|raw| raw[0] != DELETED && raw[11] & 0x3f != LONG_NAME && raw[11] & VOLUME_LABEL != 0)
            .map(|raw| padded(&raw[..11]));
        of_root
            .or_else(|| Some(self.geometry.label.clone()))
            .filter(|label| !label.is_empty() && label != "NO NAME")
    }

    fn uuid(&self) -> String {
        let serial = self.geometry.serial;
        format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)
    }
}
