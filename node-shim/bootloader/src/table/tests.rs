use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::disk::Meter;

const SECTOR: usize = 512;

fn table(disk: Vec<u8>) -> Result<Table, TableError> {
    let meter = Meter::new(1 << 30, 1 << 30, Duration::from_mins(10));
    read(&Window::whole(Rc::new(disk), meter), 16)
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A GPT with one partition from sector 40 on, primary and backup.
fn gpt_disk(sectors: usize, block: usize) -> Vec<u8> {
    let mut disk = vec![0; sectors * block];
    put(&mut disk, 446 + 4, &[0xee]);
    put(&mut disk, 446 + 12, &[1]);
    put(&mut disk, 510, &[0x55, 0xaa]);
    let mut entries = vec![0; 4 * 128];
    put(
        &mut entries,
        128,
        &[
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
        ],
    );
    put(
        &mut entries,
        128 + 16,
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    );
    put(&mut entries, 128 + 32, &40_u64.to_le_bytes());
    put(&mut entries, 128 + 40, &49_u64.to_le_bytes());
    for (at, entries_at) in [(1, 2), (sectors - 1, sectors - 2)] {
        put(&mut disk, entries_at * block, &entries);
        seal(&mut disk, block, at, entries_at, 4, 128);
    }
    disk
}

fn seal(disk: &mut [u8], block: usize, at: usize, entries_at: usize, count: u32, size: u32) {
    let mut header = vec![0; 92];
    put(&mut header, 0, b"EFI PART");
    put(&mut header, 12, &92_u32.to_le_bytes());
    put(&mut header, 24, &(at as u64).to_le_bytes());
    put(&mut header, 72, &(entries_at as u64).to_le_bytes());
    put(&mut header, 80, &count.to_le_bytes());
    put(&mut header, 84, &size.to_le_bytes());
    let end = (entries_at * block + (count * size) as usize).min(disk.len());
    let sum = crc32fast::hash(&disk[entries_at * block..end]);
    put(&mut header, 88, &sum.to_le_bytes());
    let sum = crc32fast::hash(&header);
    put(&mut header, 16, &sum.to_le_bytes());
    put(disk, at * block, &header);
}

#[test]
fn gpt_partitions_are_found_with_their_purpose() {
    for block in [512, 4096] {
        let found = table(gpt_disk(100, block)).unwrap();
        assert_eq!((found.scheme, found.warning), (Scheme::Gpt, None));
        let [partition] = found.partitions.try_into().unwrap();
        assert_eq!(
            partition,
            Partition {
                number: 2,
                scheme: Scheme::Gpt,
                purpose: Purpose::Efi,
                start: 40 * block as u64,
                length: 10 * block as u64,
                uuid: Some("04030201-0605-0807-090a-0b0c0d0e0f10".to_owned()),
            }
        );
    }
}

#[test]
fn a_damaged_header_is_replaced_by_the_backup() {
    // The header, its checksum, an entry, everything.
    for damage in [SECTOR + 30, SECTOR + 17, 2 * SECTOR + 130, SECTOR] {
        let mut disk = gpt_disk(100, SECTOR);
        disk[damage] ^= 0xff;
        let found = table(disk.clone()).unwrap();
        assert_eq!(found.partitions.len(), 1, "{damage}");
        assert!(found.warning.unwrap().contains("backup"));
        let last = disk.len() - SECTOR + 60;
        disk[last] ^= 1;
        let error = table(disk).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}

#[test]
fn sizes_in_a_header_are_not_trusted() {
    for (count, size) in [
        (u32::MAX, 128),
        (4, u32::MAX),
        (u32::MAX, u32::MAX),
        (4, 0),
        (4, 100),
        (257, 128),
    ] {
        let mut disk = gpt_disk(100, SECTOR);
        let last = disk.len() - SECTOR;
        disk[last..].fill(0);
        put(&mut disk, SECTOR + 80, &count.to_le_bytes());
        put(&mut disk, SECTOR + 84, &size.to_le_bytes());
        put(&mut disk, SECTOR + 16, &[0; 4]);
        let sum = crc32fast::hash(&disk[SECTOR..SECTOR + 92]);
        put(&mut disk, SECTOR + 16, &sum.to_le_bytes());
        assert!(matches!(table(disk), Err(TableError::Damaged { .. })), "{count} {size}");
    }
}

fn mbr_entry(disk: &mut [u8], sector: usize, index: usize, kind: u8, first: u32, sectors: u32) {
    let at = sector * SECTOR + 446 + index * 16;
    put(disk, at + 4, &[kind]);
    put(disk, at + 8, &first.to_le_bytes());
    put(disk, at + 12, &sectors.to_le_bytes());
    put(disk, sector * SECTOR + 510, &[0x55, 0xaa]);
}

#[test]
fn logical_partitions_are_followed_and_not_for_ever() {
    let mut disk = vec![0; 200 * SECTOR];
    put(&mut disk, 440, &[0x78, 0x56, 0x34, 0x12]);
    mbr_entry(&mut disk, 0, 0, 0xef, 10, 10);
    mbr_entry(&mut disk, 0, 1, 0x05, 50, 150);
    mbr_entry(&mut disk, 50, 0, 0x83, 2, 10);
    mbr_entry(&mut disk, 50, 1, 0x05, 30, 20);
    mbr_entry(&mut disk, 80, 0, 0x83, 2, 1000);
    let found = table(disk.clone()).unwrap();
    let seen: Vec<_> = found
        .partitions
        .iter()
        .map(|partition| {
            (
                partition.number,
                partition.start / 512,
                partition.length / 512,
                partition.purpose,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (1, 10, 10, Purpose::Efi),
            (5, 52, 10, Purpose::Other),
            (6, 82, 118, Purpose::Other)
        ]
    );
    assert_eq!(found.partitions[1].uuid.as_deref(), Some("12345678-05"));
    // A circle.
    mbr_entry(&mut disk, 80, 1, 0x05, 30, 20);
    assert_eq!(table(disk).unwrap().partitions.len(), 16);
}

#[test]
fn boot_code_is_no_table() {
    let mut disk = vec![0xf4; 4 * SECTOR];
    put(&mut disk, 510, &[0x55, 0xaa]);
    assert!(matches!(table(disk), Err(TableError::Unknown)));
    for length in [0, 1, 511, 512, 513, 2047, 2048] {
        assert!(table(vec![0; length]).is_err());
        let _ = table(vec![0xff; length]);
    }
}
