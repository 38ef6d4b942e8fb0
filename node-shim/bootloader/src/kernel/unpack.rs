//! Taking the kernel out of a bzImage, once on the host instead of at each start in the guest.
//!
//! The payload ends with the unpacked size as a 32-bit number, whatever it is packed with (Linux scripts/Makefile.lib, `size_append`).

use std::io::{self, Read};

use flate2::read::GzDecoder;
use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::StreamingDecoder;

use super::header::{Compression, Format, Header};
use crate::bytes::le_u32;

/// Bytes of the size at a payload's end.
const SIZE_BYTES: usize = 4;
/// Largest block of a legacy frame of lz4 (`LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE` in Linux `lib/decompress_unlz4.c`).
const LZ4_BLOCK_BYTES: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
/// Memory that unpacking lzma and xz may take beyond the kernel: Linux uses dictionaries of up to 128 MiB.
const LZMA_MEMORY_KIB: u32 = 160 << 10;

/// Why a kernel cannot be unpacked. It can still be started as it is.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is no bzImage with a payload.
    #[error("the kernel is not a bzImage with a packed kernel in it")]
    NotPacked,
    /// Its payload is beyond its end.
    #[error(
        "the kernel's payload of {bytes} bytes at {start} is beyond its end at {file} bytes: it was cut short; copy it again"
    )]
    CutShort {
        /// First byte.
        start: u64,
        /// Bytes.
        bytes: u64,
        /// Bytes of the file.
        file: usize,
    },
    /// It is packed in a way that is not known.
    #[error("the kernel is packed with {0}, which is not unpacked here; it can be booted as it is")]
    Unsupported(String),
    /// It says that it is larger than allowed.
    #[error("the kernel unpacks to {bytes} bytes, more than the {most} that are allowed")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// It is damaged.
    #[error("the kernel is damaged: {compression}: {why}; copy it again")]
    Damaged {
        /// What it is packed with.
        compression: Compression,
        /// What the unpacking said.
        why: String,
    },
}

/// Unpacks the ELF file of a bzImage, of at most `most` bytes.
///
/// # Errors
/// Where there is none, it is damaged, or larger than `most`.
pub fn unpack(image: &[u8], most: u64) -> Result<Vec<u8>, UnpackError> {
    let payload = payload(image)?;
    let (packed, size) = payload.split_at(payload.len().saturating_sub(SIZE_BYTES));
    let compression =
        Compression::of(payload).ok_or_else(|| UnpackError::Unsupported("something unknown".to_owned()))?;
    match compression {
        Compression::None => return check(compression, payload.to_vec()),
        Compression::Bzip2 | Compression::Lzo => return Err(UnpackError::Unsupported(compression.to_string())),
        Compression::Gzip | Compression::Xz | Compression::Zstd | Compression::Lz4 | Compression::Lzma => {}
    }
    let bytes = u64::from(le_u32(size, 0));
    if bytes > most {
        return Err(UnpackError::TooLarge { bytes, most });
    }
    let damaged = |why: io::Error| UnpackError::Damaged {
        compression,
        why: why.to_string(),
    };
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    let unpacked = match compression {
        // Its own trailer ends with that same number.
        Compression::Gzip => exactly(GzDecoder::new(payload), length),
        Compression::Xz => exactly(XzReader::new_mem_limit(packed, false, LZMA_MEMORY_KIB), length),
        Compression::Lzma => {
            LzmaReader::new_mem_limit(packed, LZMA_MEMORY_KIB, None).and_then(|reader| exactly(reader, length))
        }
        Compression::Zstd => StreamingDecoder::new(packed)
            .map_err(io::Error::other)
            .and_then(|reader| exactly(reader, length)),
        Compression::Lz4 => lz4_legacy(packed, length),
        Compression::Bzip2 | Compression::Lzo | Compression::None => {
            return Err(UnpackError::Unsupported(compression.to_string()));
        }
    };
    check(compression, unpacked.map_err(damaged)?)
}

/// The packed kernel in a bzImage.
pub(super) fn payload(image: &[u8]) -> Result<&[u8], UnpackError> {
    let header = Header::read(image).ok_or(UnpackError::NotPacked)?;
    let range = usize::try_from(header.payload)
        .ok()
        .zip(usize::try_from(header.payload_bytes).ok());
    range
        .and_then(|(start, bytes)| image.get(start..start.checked_add(bytes)?))
        .ok_or(UnpackError::CutShort {
            start: header.payload,
            bytes: header.payload_bytes,
            file: image.len(),
        })
}

fn check(compression: Compression, unpacked: Vec<u8>) -> Result<Vec<u8>, UnpackError> {
    match Format::of(&unpacked) {
        Ok(Format::Elf) => Ok(unpacked),
        Ok(Format::BzImage) | Err(_) => Err(UnpackError::Damaged {
            compression,
            why: "what is in it is no ELF file".to_owned(),
        }),
    }
}

/// Reads `length` bytes and makes sure that there are no more.
fn exactly(mut reader: impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let read = reader.by_ref().take(length as u64 + 1).read_to_end(&mut unpacked)?;
    right_size(read, length)?;
    Ok(unpacked)
}

fn right_size(bytes: usize, expected: usize) -> io::Result<()> {
    if bytes == expected {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it unpacks to {bytes} bytes or more, not to the {expected} that it says"),
    ))
}

/// The format of `lz4 -l`: a magic number, then blocks with their packed sizes.
fn lz4_legacy(packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let broken = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut unpacked: Vec<u8> = Vec::new();
    let mut block = vec![0; LZ4_BLOCK_BYTES.min(length)];
    let mut rest = packed;
    while rest.len() >= SIZE_BYTES {
        let size = le_u32(rest, 0);
        rest = &rest[SIZE_BYTES..];
        // Files that were joined have their magic numbers in between.
        if size == LZ4_LEGACY_MAGIC {
            continue;
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let (this, next) = rest
            .split_at_checked(size)
            .ok_or_else(|| broken(format!("a block of {size} bytes is beyond the end")))?;
        let bytes = lz4_flex::block::decompress_into(this, &mut block).map_err(|error| broken(error.to_string()))?;
        if unpacked.len() + bytes > length {
            return Err(broken(format!(
                "it unpacks to more than the {length} bytes that it says"
            )));
        }
        unpacked.extend_from_slice(&block[..bytes]);
        rest = next;
    }
    right_size(unpacked.len(), length)?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests;
