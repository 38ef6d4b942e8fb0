//! Requests of a block driver (virtio 1.2, section 5.2.6), as pure functions of what it wrote.

use virtio_bindings::bindings::virtio_blk;

use super::storage::SECTOR_BYTES;

/// Bytes of `struct virtio_blk_req` before the data.
pub const HEADER_BYTES: usize = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
pub const RANGE_BYTES: usize = 16;
/// Most ranges in one discard or write-zeroes request.
pub const MAX_RANGES: usize = 16;
/// [`MAX_RANGES`], as the configuration says it.
pub const MAX_RANGES_U32: u32 = 16;
/// Most sectors in one range: 4 GiB.
pub const MAX_RANGE_SECTORS: u32 = 8 << 20;
/// Bytes of the answer to a request for the serial number.
const ID_BYTES: usize = virtio_blk::VIRTIO_BLK_ID_BYTES as usize;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`
    IoError = 1,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupported = 2,
}

/// What the disk allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes.
    pub capacity: u64,
    /// Nothing may change.
    pub read_only: bool,
    /// Space may be given back.
    pub discard: bool,
}

/// A request that may be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill all writable buffers from this byte on.
    Read {
        /// Bytes from the start of the disk.
        offset: u64,
    },
    /// Store all readable buffers from this byte on.
    Write {
        /// Bytes from the start of the disk.
        offset: u64,
    },
    /// Make everything that was written stable.
    Flush,
    /// Say the serial number.
    Identify,
    /// The contents of these ranges no longer matter.
    Discard {
        /// How many follow.
        ranges: usize,
    },
    /// These ranges shall read as zeros.
    WriteZeroes {
        /// How many follow.
        ranges: usize,
    },
}

impl Operation {
    /// Reads a header, with `input` bytes of data after it and `output` bytes of room before the status.
    ///
    /// # Errors
    /// The status that the driver gets instead.
    pub fn parse(header: [u8; HEADER_BYTES], input: usize, output: usize, limits: Limits) -> Result<Self, Status> {
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            virtio_blk::VIRTIO_BLK_T_IN => {
                span(sector, output as u64, limits.capacity).map(|offset| Self::Read { offset })
            }
            virtio_blk::VIRTIO_BLK_T_OUT if limits.read_only => Err(Status::IoError),
            virtio_blk::VIRTIO_BLK_T_OUT => {
                span(sector, input as u64, limits.capacity).map(|offset| Self::Write { offset })
            }
            virtio_blk::VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            virtio_blk::VIRTIO_BLK_T_GET_ID if output < ID_BYTES => Err(Status::IoError),
            virtio_blk::VIRTIO_BLK_T_GET_ID => Ok(Self::Identify),
            virtio_blk::VIRTIO_BLK_T_DISCARD if !limits.read_only && limits.discard => {
                Ok(Self::Discard { ranges: ranges(input)? })
            }
            virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES if !limits.read_only => {
                Ok(Self::WriteZeroes { ranges: ranges(input)? })
            }
            _ => Err(Status::Unsupported),
        }
    }
}

/// A range to discard or to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Zeroing may deallocate.
    pub unmap: bool,
}

impl Range {
    /// Reads one range of a discard or write-zeroes request.
    ///
    /// # Errors
    /// The status that the driver gets instead.
    pub fn parse(bytes: [u8; RANGE_BYTES], operation: Operation, limits: Limits) -> Result<Self, Status> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        // Unknown flags, and unmap in a discard, are unsupported (5.2.6.2).
        let known = if matches!(operation, Operation::WriteZeroes { .. }) {
            virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        } else {
            0
        };
        if flags & !known != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Status::IoError);
        }
        let length = u64::from(sectors) * SECTOR_BYTES;
        Ok(Self {
            offset: span(sector, length, limits.capacity)?,
            length,
            // Where the configuration says that zeroing never deallocates, a driver may ask for it all the same (5.2.6.2).
            unmap: flags != 0 && limits.discard,
        })
    }
}

fn ranges(input: usize) -> Result<usize, Status> {
    let count = input / RANGE_BYTES;
    if input.is_multiple_of(RANGE_BYTES) && (1..=MAX_RANGES).contains(&count) {
        Ok(count)
    } else {
        Err(Status::IoError)
    }
}

/// The first byte of whole sectors that are all on the disk.
fn span(sector: u64, length: u64, capacity: u64) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
    let end = offset.checked_add(length).ok_or(Status::IoError)?;
    if length.is_multiple_of(SECTOR_BYTES) && end <= capacity {
        Ok(offset)
    } else {
        Err(Status::IoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Limits = Limits {
        capacity: 1 << 20,
        read_only: false,
        discard: true,
    };
    const READ_ONLY: Limits = Limits {
        read_only: true,
        ..DISK
    };
    const KEEPS_SPACE: Limits = Limits { discard: false, ..DISK };

    fn header(kind: u32, sector: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    #[test]
    fn requests() {
        let io_error = Err(Status::IoError);
        for (kind, sector, input, output, limits, expected) in [
            (0, 0, 0, 512, DISK, Ok(Operation::Read { offset: 0 })),
            (0, 2047, 0, 512, DISK, Ok(Operation::Read { offset: 2047 * 512 })),
            (0, 2047, 0, 1024, DISK, io_error),
            (0, 0, 0, 511, DISK, io_error),
            (0, 0, 0, (1 << 20) + 512, DISK, io_error),
            (0, u64::MAX, 0, 512, DISK, io_error),
            (0, u64::MAX / 512, 0, 512, DISK, io_error),
            (1, 8, 4096, 0, DISK, Ok(Operation::Write { offset: 4096 })),
            (1, 8, 4096, 0, READ_ONLY, io_error),
            (1, 2048, 512, 0, DISK, io_error),
            (4, 0, 0, 0, DISK, Ok(Operation::Flush)),
            (8, 0, 0, 20, DISK, Ok(Operation::Identify)),
            (8, 0, 0, 19, DISK, io_error),
            (11, 0, 32, 0, DISK, Ok(Operation::Discard { ranges: 2 })),
            (11, 0, 0, 0, DISK, io_error),
            (11, 0, 17, 0, DISK, io_error),
            (11, 0, 17 * 16, 0, DISK, io_error),
            (11, 0, 16, 0, READ_ONLY, Err(Status::Unsupported)),
            (11, 0, 16, 0, KEEPS_SPACE, Err(Status::Unsupported)),
            (13, 0, 16, 0, KEEPS_SPACE, Ok(Operation::WriteZeroes { ranges: 1 })),
            (13, 0, 16, 0, DISK, Ok(Operation::WriteZeroes { ranges: 1 })),
            (2, 0, 16, 0, DISK, Err(Status::Unsupported)),
            (u32::MAX, 0, 16, 0, DISK, Err(Status::Unsupported)),
        ] {
            let parsed = Operation::parse(header(kind, sector), input, output, limits);
            assert_eq!(
                parsed, expected,
                "type {kind} sector {sector} input {input} output {output}"
            );
        }
    }

    #[test]
    fn ranges_are_checked() {
        let range = |sector: u64, sectors: u32, flags: u32| {
            let mut bytes = [0; RANGE_BYTES];
            bytes[..8].copy_from_slice(&sector.to_le_bytes());
            bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
            bytes[12..].copy_from_slice(&flags.to_le_bytes());
            bytes
        };
        let (discard, zero) = (Operation::Discard { ranges: 1 }, Operation::WriteZeroes { ranges: 1 });
        let ok = |offset, length, unmap| Ok(Range { offset, length, unmap });
        for (bytes, operation, expected) in [
            (range(8, 8, 0), discard, ok(4096, 4096, false)),
            (range(8, 8, 1), discard, Err(Status::Unsupported)),
            (range(8, 8, 1), zero, ok(4096, 4096, true)),
            (range(8, 8, 2), zero, Err(Status::Unsupported)),
            (range(0, u32::MAX, 0), zero, Err(Status::IoError)),
            (range(2048, 1, 0), zero, Err(Status::IoError)),
            (range(u64::MAX, 1, 0), discard, Err(Status::IoError)),
        ] {
            assert_eq!(Range::parse(bytes, operation, DISK), expected, "{bytes:x?}");
        }
        assert_eq!(Range::parse(range(8, 8, 1), zero, KEEPS_SPACE), ok(4096, 4096, false));
    }
}
