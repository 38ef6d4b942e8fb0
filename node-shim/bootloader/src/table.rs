//! Where a disk's partitions are: GPT, MBR, or one file system on the whole disk.
//!
//! The `gpt` crate was looked at: it trusts the sizes in a header when it allocates, and knows no extended MBR partitions. These
//! two tables are small.

use std::fmt;
use std::io;

use crate::disk::Window;
use crate::filesystem;

mod gpt;
mod mbr;

/// What a table says about a partition's purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// EFI system partition.
    Efi,
    /// Extended boot loader partition (Boot Loader Specification).
    ExtendedBoot,
    /// Anything else.
    Other,
}

/// The way a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// GUID partition table (UEFI 2.10, chapter 5).
    Gpt,
    /// Master boot record, with logical partitions.
    Mbr,
    /// Not at all: a file system on the whole disk.
    Whole,
}

impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gpt => "GPT",
            Self::Mbr => "MBR",
            Self::Whole => "no partition table",
        })
    }
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As Linux numbers it; 0 is the whole disk.
    pub(crate) number: u32,
    /// The table it is from.
    pub(crate) scheme: Scheme,
    /// What it is for.
    pub(crate) purpose: Purpose,
    /// First byte on the disk.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// `PARTUUID` as Linux writes it.
    pub(crate) uuid: Option<String>,
}

impl fmt::Display for Partition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Gpt | Scheme::Mbr => write!(formatter, "partition {}", self.number),
            Scheme::Whole => formatter.write_str("the whole disk"),
        }
    }
}

/// A disk's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// How the disk is divided.
    pub(crate) scheme: Scheme,
    /// In the order of their numbers.
    pub(crate) partitions: Vec<Partition>,
    /// What was wrong and got around: a damaged header whose backup was used.
    pub(crate) warning: Option<String>,
}

/// Why no partition was found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    /// The disk cannot be read.
    #[error("failed to read the partition table: {0}")]
    Read(io::Error),
    /// The table and its backup are damaged.
    #[error("its GUID partition table is damaged ({primary}) and so is the backup ({backup}); repair it with sgdisk")]
    Damaged {
        /// What is wrong with the first.
        primary: String,
        /// What is wrong with the second.
        backup: String,
    },
    /// There is nothing that could be one.
    #[error("the disk has no partition table and no file system that is known (ext4, XFS, btrfs, FAT)")]
    Unknown,
}

/// Finds a disk's partitions, at most `limit` of them.
pub(crate) fn read(disk: &Window, limit: usize) -> Result<Table, TableError> {
    let boot_record = mbr::read(disk).map_err(TableError::Read)?;
    match gpt::read(disk, limit) {
        Ok(Some(table)) => return Ok(table),
        Err(error) if boot_record.as_ref().is_some_and(mbr::BootRecord::is_protective) => return Err(error),
        // None, or a header that is left over on a disk that was partitioned anew.
        Ok(None) | Err(_) => {}
    }
    let whole = filesystem::identify(disk).map_err(TableError::Read)?;
    let divided = boot_record.filter(|record| record.is_plausible(disk.length()));
    match (divided, whole) {
        // A FAT boot sector ends like a boot record, with code where that has its table.
        (Some(record), kind) if kind != Some(filesystem::Kind::Fat) => {
            let partitions = mbr::partitions(disk, &record, limit).map_err(TableError::Read)?;
            Ok(Table {
                scheme: Scheme::Mbr,
                partitions,
                warning: None,
            })
        }
        (_, Some(_)) => Ok(Table {
            scheme: Scheme::Whole,
            partitions: vec![Partition {
                number: 0,
                scheme: Scheme::Whole,
                purpose: Purpose::Other,
                start: 0,
                length: disk.length(),
                uuid: None,
            }],
            warning: None,
        }),
        (_, None) => Err(TableError::Unknown),
    }
}

#[cfg(test)]
mod tests;
