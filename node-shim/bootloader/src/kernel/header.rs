//! The setup header of a bzImage: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".

use std::fmt;

use crate::bytes::{le_u16, le_u32};

const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// The first protocol with `payload_offset` and `payload_length`.
const VERSION_MIN: u16 = 0x0208;
/// `setup_sects` where it is 0, for reasons of history.
const SETUP_SECTORS_DEFAULT: u64 = 4;
const SECTOR_BYTES: u64 = 512;
/// Characters of a release (`__NEW_UTS_LEN`).
const RELEASE_MAX: usize = 64;

/// What a kernel file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Linux's own format, with a packed kernel in it.
    BzImage,
    /// An ELF file.
    Elf,
}

impl Format {
    /// Tells by a file's first bytes.
    ///
    /// # Errors
    /// What it is instead.
    pub fn of(head: &[u8]) -> Result<Self, String> {
        if head.starts_with(b"\x7fELF") {
            return Ok(Self::Elf);
        }
        if head.get(MAGIC_AT..MAGIC_AT + 4) == Some(MAGIC) {
            return Ok(Self::BzImage);
        }
        Err(match head {
            [] => "the kernel is empty".to_owned(),
            [b'M', b'Z', ..] => "it is an EFI program without a Linux kernel in it, which needs firmware".to_owned(),
            [0x1f, 0x8b, ..] => "it is a gzip file and no kernel for x86".to_owned(),
            _ => "it starts like neither a bzImage nor an ELF file".to_owned(),
        })
    }
}

/// What a kernel is packed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// xz, with the filter for x86.
    Xz,
    /// zstd.
    Zstd,
    /// lz4, in its legacy frames.
    Lz4,
    /// lzma alone.
    Lzma,
    /// bzip2.
    Bzip2,
    /// lzo.
    Lzo,
    /// Nothing.
    None,
}

impl Compression {
    /// Tells by a payload's first bytes; Linux lib/decompress.c has the same table.
    pub fn of(payload: &[u8]) -> Option<Self> {
        Some(match payload {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4,
            [0x5d, 0, 0, ..] => Self::Lzma,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0x89, b'L', b'Z', b'O', ..] => Self::Lzo,
            [0x7f, b'E', b'L', b'F', ..] => Self::None,
            _ => return None,
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
            Self::None => "nothing",
        })
    }
}

/// Where the packed kernel is in a bzImage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// First byte, in the file.
    pub payload: u64,
    /// Bytes.
    pub payload_bytes: u64,
}

impl Header {
    /// Reads it from a file's first bytes; `None` where there is none or an older one.
    pub fn read(head: &[u8]) -> Option<Self> {
        if Format::of(head) != Ok(Format::BzImage) || le_u16(head, 0x206) < VERSION_MIN {
            return None;
        }
        let sectors = match u64::from(*head.get(0x1f1)?) {
            0 => SETUP_SECTORS_DEFAULT,
            sectors => sectors,
        };
        let protected_mode = (sectors + 1) * SECTOR_BYTES;
        Some(Self {
            payload: protected_mode + u64::from(le_u32(head, 0x248)),
            payload_bytes: u64::from(le_u32(head, 0x24c)),
        })
        .filter(|header| header.payload_bytes > 0)
    }
}

/// The release that a bzImage says it is, such as `6.1.0-40-cloud-amd64`, from its first 64 KiB.
pub fn release(head: &[u8]) -> Option<String> {
    if Format::of(head) != Ok(Format::BzImage) {
        return None;
    }
    let offset = usize::from(le_u16(head, 0x20e));
    // It is an offset less 512; 0 means that there is no text.
    let text = head.get(offset.checked_add(0x200).filter(|_| offset != 0)?..)?;
    let end = text.iter().position(|byte| !byte.is_ascii_graphic())?;
    let release = std::str::from_utf8(text.get(..end.min(RELEASE_MAX))?).ok()?;
    (!release.is_empty()).then(|| release.to_owned())
}
