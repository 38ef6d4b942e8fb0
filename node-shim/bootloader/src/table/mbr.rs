//! Master boot record: four entries in the disk's first sector, and a chain of records for logical partitions.

use std::io;

use super::{Partition, Purpose, Scheme};
use crate::bytes::le_u32;
use crate::disk::Window;

const SECTOR_BYTES: u64 = 512;
const TABLE_OFFSET: usize = 446;
const ENTRY_BYTES: usize = 16;
/// First number of a logical partition.
const LOGICAL_FIRST: u32 = 5;
/// The kinds that hold logical partitions: CHS, LBA, Linux.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The disk has a GPT.
const PROTECTIVE: u8 = 0xee;
const EFI_SYSTEM: u8 = 0xef;
const LINUX_EXTENDED_BOOT: u8 = 0xea;

/// A sector with a table.
pub(super) struct BootRecord {
    signature: u32,
    entries: [Entry; 4],
}

#[derive(Clone, Copy)]
struct Entry {
    active: u8,
    kind: u8,
    first: u64,
    sectors: u64,
}

impl Entry {
    fn in_use(self) -> bool {
        self.kind != 0 && self.sectors > 0
    }

    fn is_extended(self) -> bool {
        EXTENDED.contains(&self.kind)
    }
}

impl BootRecord {
    /// Whether the disk's real table is a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == PROTECTIVE)
    }

    /// Whether this is a table at all and not a boot sector's code.
    pub(super) fn is_plausible(&self, disk_bytes: u64) -> bool {
        let sectors = disk_bytes / SECTOR_BYTES;
        self.entries.iter().any(|entry| entry.in_use())
            && self.entries.iter().all(|entry| {
                !entry.in_use() || (matches!(entry.active, 0 | 0x80) && entry.first > 0 && entry.first < sectors)
            })
    }
}

/// Reads the disk's first sector.
pub(super) fn read(disk: &Window) -> io::Result<Option<BootRecord>> {
    if disk.length() < SECTOR_BYTES {
        return Ok(None);
    }
    record(disk, 0)
}

fn record(disk: &Window, offset: u64) -> io::Result<Option<BootRecord>> {
    let sector = disk.array::<512>(offset)?;
    if sector[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let entry = |index: usize| {
        let bytes = &sector[TABLE_OFFSET + index * ENTRY_BYTES..][..ENTRY_BYTES];
        Entry {
            active: bytes[0],
            kind: bytes[4],
            first: u64::from(le_u32(bytes, 8)),
            sectors: u64::from(le_u32(bytes, 12)),
        }
    };
    Ok(Some(BootRecord {
        signature: le_u32(&sector, 440),
        entries: [entry(0), entry(1), entry(2), entry(3)],
    }))
}

/// The partitions of a record, logical ones included, at most `limit`.
pub(super) fn partitions(disk: &Window, record: &BootRecord, limit: usize) -> io::Result<Vec<Partition>> {
    let mut found: Vec<Partition> = (1..)
        .zip(record.entries)
        .filter(|(_, entry)| entry.in_use() && !entry.is_extended())
        .filter_map(|(number, entry)| partition(disk, record.signature, number, entry, 0))
        .collect();
    if let Some(extended) = record
        .entries
        .into_iter()
        .find(|entry| entry.in_use() && entry.is_extended())
    {
        logical(disk, record.signature, extended.first, limit, &mut found)?;
    }
    found.truncate(limit);
    Ok(found)
}

/// Follows the chain: each record names one partition relative to itself and the next record relative to the first.
fn logical(disk: &Window, signature: u32, base: u64, limit: usize, found: &mut Vec<Partition>) -> io::Result<()> {
    let mut at = base;
    let mut number = LOGICAL_FIRST;
    for _ in 0..limit {
        let Some(offset) = at
            .checked_mul(SECTOR_BYTES)
            .filter(|offset| offset.saturating_add(SECTOR_BYTES) <= disk.length())
        else {
            return Ok(());
        };
        let Some(record) = self::record(disk, offset)? else {
            return Ok(());
        };
        let [own, next, ..] = record.entries;
        if own.in_use() && !own.is_extended() {
            found.extend(partition(disk, signature, number, own, at));
            number += 1;
        }
        if !next.in_use() || !next.is_extended() || next.first == 0 {
            return Ok(());
        }
        at = base.saturating_add(next.first);
    }
    Ok(())
}

fn partition(disk: &Window, signature: u32, number: u32, entry: Entry, base: u64) -> Option<Partition> {
    let start = base
        .checked_add(entry.first)?
        .checked_mul(SECTOR_BYTES)
        .filter(|start| *start < disk.length())?;
    Some(Partition {
        number,
        scheme: Scheme::Mbr,
        purpose: match entry.kind {
            EFI_SYSTEM => Purpose::Efi,
            LINUX_EXTENDED_BOOT => Purpose::ExtendedBoot,
            _ => Purpose::Other,
        },
        start,
        length: entry.sectors.saturating_mul(SECTOR_BYTES).min(disk.length() - start),
        uuid: Some(format!("{signature:08x}-{number:02x}")),
    })
}
