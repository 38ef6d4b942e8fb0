//! GUID partition table: UEFI specification 2.10, section 5.3.

use std::io;

use super::{Partition, Purpose, Scheme, Table, TableError};
use crate::bytes::{le_u16, le_u32, le_u64};
use crate::disk::Window;

const SIGNATURE: &[u8] = b"EFI PART";
/// Sizes of a disk's blocks: what nearly all have, and what some large ones have.
const BLOCK_SIZES: [u64; 2] = [512, 4096];
/// Bytes of the header that are defined.
const HEADER_BYTES: u32 = 92;
/// Bytes of a partition's entry: 128 times a power of two; larger ones than this are not in use.
const ENTRY_BYTES_MAX: u32 = 4096;
/// Partitions that are listed: Linux itself takes no more than 256.
const ENTRIES_MAX: u32 = 256;

/// The entry's type GUIDs as they lie on the disk: the first three groups have their bytes swapped.
const EFI_SYSTEM: [u8; 16] = guid(0xc12a_7328, 0xf81f, 0x11d2, 0xba4b, 0x00a0_c93e_c93b);
const EXTENDED_BOOT: [u8; 16] = guid(0xbc13_c2ff, 0x59e6, 0x4262, 0xa352, 0xb275_fd6f_7172);

/// Reads the table, or its backup. `None` where the disk has none.
pub(super) fn read(disk: &Window, limit: usize) -> Result<Option<Table>, TableError> {
    let mut damage = None;
    for block in BLOCK_SIZES {
        match header(disk, block, 1, limit).map_err(TableError::Read)? {
            Header::Good(partitions) => return Ok(Some(table(partitions, None))),
            Header::Absent => {}
            Header::Damaged(why) => damage = Some(damage.unwrap_or(why)),
        }
    }
    let primary = damage.clone().unwrap_or_else(|| "no header".to_owned());
    let mut backup = "no header".to_owned();
    for block in BLOCK_SIZES {
        let Some(last) = (disk.length() / block).checked_sub(1).filter(|last| *last > 1) else {
            continue;
        };
        match header(disk, block, last, limit).map_err(TableError::Read)? {
            Header::Good(partitions) => {
                let warning = format!("the GUID partition table is damaged ({primary}); its backup was used");
                return Ok(Some(table(partitions, Some(warning))));
            }
            Header::Absent => {}
            Header::Damaged(why) => {
                backup = why;
                damage = Some(primary.clone());
            }
        }
    }
    match damage {
        None => Ok(None),
        Some(_) => Err(TableError::Damaged { primary, backup }),
    }
}

fn table(partitions: Vec<Partition>, warning: Option<String>) -> Table {
    Table {
        scheme: Scheme::Gpt,
        partitions,
        warning,
    }
}

enum Header {
    Good(Vec<Partition>),
    Absent,
    Damaged(String),
}

fn header(disk: &Window, block: u64, at: u64, limit: usize) -> io::Result<Header> {
    let offset = at * block;
    if offset.saturating_add(block) > disk.length() {
        return Ok(Header::Absent);
    }
    let mut header = vec![0; usize::try_from(block).unwrap_or(0)];
    disk.read_at(offset, &mut header)?;
    if !header.starts_with(SIGNATURE) {
        return Ok(Header::Absent);
    }
    let size = le_u32(&header, 12);
    if size < HEADER_BYTES || u64::from(size) > block {
        return Ok(Header::Damaged(format!("a header of {size} bytes")));
    }
    let expected = le_u32(&header, 16);
    header.truncate(size as usize);
    header[16..20].fill(0);
    if crc32fast::hash(&header) != expected {
        return Ok(Header::Damaged("the checksum of its header is wrong".to_owned()));
    }
    if le_u64(&header, 24) != at {
        return Ok(Header::Damaged("its header belongs elsewhere".to_owned()));
    }
    entries(disk, block, &header, limit)
}

fn entries(disk: &Window, block: u64, header: &[u8], limit: usize) -> io::Result<Header> {
    let (first, count, size) = (le_u64(header, 72), le_u32(header, 80), le_u32(header, 84));
    if !size.is_multiple_of(128) || !(128..=ENTRY_BYTES_MAX).contains(&size) || count > ENTRIES_MAX {
        return Ok(Header::Damaged(format!("{count} entries of {size} bytes")));
    }
    let bytes = count as usize * size as usize;
    let range = first
        .checked_mul(block)
        .filter(|start| start.saturating_add(bytes as u64) <= disk.length());
    let Some(start) = range else {
        return Ok(Header::Damaged("its entries are beyond the end of the disk".to_owned()));
    };
    let mut entries = vec![0; bytes];
    disk.read_at(start, &mut entries)?;
    if crc32fast::hash(&entries) != le_u32(header, 88) {
        return Ok(Header::Damaged("the checksum of its entries is wrong".to_owned()));
    }
    let partitions = (1..)
        .zip(entries.chunks_exact(size as usize))
        .filter_map(|(number, entry)| partition(number, entry, block, disk.length()))
        .take(limit)
        .collect();
    Ok(Header::Good(partitions))
}

/// An entry in use whose range starts within the disk. An image may be cut short, or its disk larger than it.
fn partition(number: u32, entry: &[u8], block: u64, disk_bytes: u64) -> Option<Partition> {
    let (kind, uuid) = (entry.get(..16)?, entry.get(16..32)?);
    if kind == [0; 16] {
        return None;
    }
    let (first, last) = (le_u64(entry, 32), le_u64(entry, 40));
    let start = first.checked_mul(block).filter(|start| *start < disk_bytes)?;
    let blocks = last.checked_sub(first)?.checked_add(1)?;
    Some(Partition {
        number,
        scheme: Scheme::Gpt,
        purpose: if kind == EFI_SYSTEM {
            Purpose::Efi
        } else if kind == EXTENDED_BOOT {
            Purpose::ExtendedBoot
        } else {
            Purpose::Other
        },
        start,
        length: blocks.saturating_mul(block).min(disk_bytes - start),
        uuid: Some(text(uuid)),
    })
}

const fn guid(one: u32, two: u16, three: u16, four: u16, five: u64) -> [u8; 16] {
    // The first three are little endian, the others big endian: one number of 128 bits after swapping.
    let first =
        (one.swap_bytes() as u128) << 96 | (two.swap_bytes() as u128) << 80 | (three.swap_bytes() as u128) << 64;
    (first | (four as u128) << 48 | five as u128).to_be_bytes()
}

/// A GUID as people write it.
fn text(bytes: &[u8]) -> String {
    let (one, two, three) = (le_u32(bytes, 0), le_u16(bytes, 4), le_u16(bytes, 6));
    let rest = le_u64(bytes, 8).swap_bytes();
    let (four, five) = (rest >> 48, rest & 0xffff_ffff_ffff);
    format!("{one:08x}-{two:04x}-{three:04x}-{four:04x}-{five:012x}")
}
