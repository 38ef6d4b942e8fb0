//! A disk whose units (clusters, blocks, grains) are where tables say.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::super::storage::{Access, Extent, Storage};
use super::metadata::{Metadata, Patience, damaged};
use crate::buffers::Buffers;
use crate::lock::lock;

/// Bytes of unpacked units that are kept.
const UNPACKED_BYTES: u64 = 1 << 20;
/// Most unpacked units that are kept.
const UNPACKED_MAX: u64 = 16;

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it is what the backing image has there, or zeros.
    Absent,
    /// Nowhere: it is zeros.
    Zero,
    /// In the file from this byte on.
    At(u64),
    /// In the file, packed: the byte, and how many at most.
    Packed {
        /// First byte.
        offset: u64,
        /// Bytes, some of which may be behind the packed data.
        length: u64,
    },
}

/// What a format knows.
pub(super) trait Tables: Send + Sync {
    /// Where the unit with this index is.
    fn locate(&self, lookup: &Lookup<'_>, unit: u64) -> io::Result<Place>;
    /// Unpacks a unit. `unit` is filled or it is an error.
    fn unpack(&self, index: u64, packed: &[u8], unit: &mut [u8]) -> io::Result<()>;
}

/// Reads entries of tables.
pub(super) struct Lookup<'a> {
    file: &'a File,
    metadata: &'a Metadata,
    patience: Patience,
}

impl Lookup<'_> {
    /// A big-endian entry.
    pub(super) fn be_u64(&self, offset: u64) -> io::Result<u64> {
        self.metadata
            .read(self.file, offset, self.patience)
            .map(u64::from_be_bytes)
    }

    /// A big-endian entry.
    pub(super) fn be_u32(&self, offset: u64) -> io::Result<u32> {
        self.metadata
            .read(self.file, offset, self.patience)
            .map(u32::from_be_bytes)
    }

    /// A little-endian entry.
    pub(super) fn le_u32(&self, offset: u64) -> io::Result<u32> {
        self.metadata
            .read(self.file, offset, self.patience)
            .map(u32::from_le_bytes)
    }

    /// Bytes that are not in a table: before packed data.
    pub(super) fn bytes<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        if self.patience == Patience::Cached {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

/// The shape of such a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes of the image's file.
    pub(super) file_length: u64,
    /// Bytes of the disk.
    pub(super) disk_bytes: u64,
    /// Bytes of a unit, a power of two.
    pub(super) unit_bytes: u64,
}

/// See the [module](self).
pub(super) struct MappedImage<T> {
    file: File,
    shape: Shape,
    tables: T,
    metadata: Metadata,
    unpacked: Vec<Mutex<Unpacked>>,
    backing: Option<Box<dyn Storage>>,
}

/// One unit that was unpacked.
#[derive(Default)]
struct Unpacked {
    unit: Option<u64>,
    bytes: Vec<u8>,
}

impl<T: Tables> MappedImage<T> {
    pub(super) fn new(file: File, shape: Shape, tables: T, backing: Option<Box<dyn Storage>>) -> Self {
        let slots = (UNPACKED_BYTES / shape.unit_bytes).clamp(1, UNPACKED_MAX);
        Self {
            file,
            shape,
            tables,
            metadata: Metadata::new(shape.file_length),
            unpacked: (0..slots).map(|_| Mutex::default()).collect(),
            backing,
        }
    }

    fn locate(&self, unit: u64, patience: Patience) -> io::Result<Place> {
        let lookup = Lookup {
            file: &self.file,
            metadata: &self.metadata,
            patience,
        };
        self.tables.locate(&lookup, unit)
    }

    /// Fills from the file; what an image lacks at its end is zero.
    fn read_file(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        let there = self.shape.file_length.checked_sub(offset).filter(|there| *there > 0);
        let there = there.ok_or_else(|| damaged(format!("data at {offset} is not in the file")))?;
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(length);
        buffers.read_exact_at(self.file.as_fd(), there, offset)?;
        buffers.fill_zero(length - there);
        Ok(())
    }

    /// Fills from the backing image, which may be shorter.
    fn read_backing(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        let backing = self.backing.as_deref();
        let there = backing.map_or(0, |backing| backing.len().saturating_sub(offset));
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(length);
        if let Some(backing) = backing.filter(|_| there > 0) {
            backing.read_at(buffers, there, offset)?;
        }
        buffers.fill_zero(length - there);
        Ok(())
    }

    fn read_packed(
        &self,
        buffers: &mut Buffers<'_>,
        range: std::ops::Range<usize>,
        unit: u64,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let slots = self.unpacked.len() as u64;
        let slot = usize::try_from(unit % slots).map_err(io::Error::other)?;
        // The lock is held while unpacking: who wants the same unit waits for it rather than unpack it again.
        let mut slot = lock(&self.unpacked[slot]);
        if slot.unit != Some(unit) {
            slot.unit = None;
            // The last unit may have less.
            let bytes = self
                .shape
                .unit_bytes
                .min(self.shape.disk_bytes - unit * self.shape.unit_bytes);
            slot.bytes.resize(usize::try_from(bytes).map_err(io::Error::other)?, 0);
            let there = self.shape.file_length.saturating_sub(offset).min(length);
            let mut packed = vec![0; usize::try_from(there).map_err(io::Error::other)?];
            self.file.read_exact_at(&mut packed, offset)?;
            self.tables.unpack(unit, &packed, &mut slot.bytes)?;
            slot.unit = Some(unit);
        }
        buffers.fill_from(&slot.bytes[range]);
        Ok(())
    }
}

impl<T: Tables> Storage for MappedImage<T> {
    fn len(&self) -> u64 {
        self.shape.disk_bytes
    }

    fn read_at(&self, buffers: &mut Buffers<'_>, length: usize, offset: u64) -> io::Result<()> {
        let unit_bytes = self.shape.unit_bytes;
        let end = offset + length as u64;
        let mut at = offset;
        while at < end {
            let (unit, inside) = (at / unit_bytes, at % unit_bytes);
            let count = (unit_bytes - inside).min(end - at);
            let bytes = usize::try_from(count).map_err(io::Error::other)?;
            match self.locate(unit, Patience::Wait)? {
                Place::Absent => self.read_backing(buffers, bytes, at)?,
                Place::Zero => buffers.fill_zero(bytes),
                Place::At(start) => {
                    let start = start.checked_add(inside);
                    let start = start.ok_or_else(|| damaged("data beyond all files"))?;
                    self.read_file(buffers, bytes, start)?;
                }
                Place::Packed { offset, length } => {
                    let from = usize::try_from(inside).map_err(io::Error::other)?;
                    self.read_packed(buffers, from..from + bytes, unit, offset, length)?;
                }
            }
            at += count;
        }
        Ok(())
    }

    fn extents<'a>(&'a self, offset: u64, length: u64, access: Access, extents: &mut Vec<Extent<'a>>) -> bool {
        if access == Access::Write {
            return false;
        }
        let unit_bytes = self.shape.unit_bytes;
        let mut at = offset;
        while at < offset + length {
            let inside = at % unit_bytes;
            let count = (unit_bytes - inside).min(offset + length - at);
            let Ok(Place::At(start)) = self.locate(at / unit_bytes, Patience::Cached) else {
                return false;
            };
            let Some(start) = start.checked_add(inside).filter(|start| {
                start
                    .checked_add(count)
                    .is_some_and(|end| end <= self.shape.file_length)
            }) else {
                return false;
            };
            extents.push(Extent {
                file: self.file.as_fd(),
                offset: start,
                length: count,
            });
            at += count;
        }
        true
    }
}
