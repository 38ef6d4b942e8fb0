//! Formats of disk images. An image is only ever read: what a guest writes goes to an overlay, or to a raw disk that nobody looks for a
//! format in. So what a guest wrote cannot make its disk be read as something else (CVE-2026-27211 is what came of it elsewhere).
//!
//! The format is stated by the configuration, or found in the image as the user gave it. No image makes this process open another file: a
//! qcow2 image's backing file is one that the configuration names, and whatever names are in the image are not looked at.
//!
//! qcow2, dynamic VHD and VMDK are the same thing in different clothes: tables that say where each unit of the disk is in the file.
//! [`mapped`] is what they share; each format only reads its header and its tables.

mod detect;
mod mapped;
mod metadata;
pub mod qcow2;
pub mod vhd;
pub mod vmdk;

use std::fmt;
use std::fs::File;
use std::path::Path;

use self::detect::Found;
use super::file::{FileStorage, check_length, failed, file_length};
use super::storage::{Storage, StorageError};

/// How an image's file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Format {
    /// The disk's bytes.
    Raw = 1,
    /// QEMU's format, versions 2 and 3.
    Qcow2 = 2,
    /// Virtual PC's format, fixed or dynamic.
    Vhd = 3,
    /// `VMware`'s format in one file, sparse or stream-optimised.
    Vmdk = 4,
}

impl Format {
    /// From the number that an overlay's map has.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Raw, Self::Qcow2, Self::Vhd, Self::Vmdk]
            .into_iter()
            .find(|format| *format as u32 == number)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::Vmdk => "vmdk",
        })
    }
}

/// An image that has been opened.
pub struct Image {
    /// How its file holds it.
    pub format: Format,
    /// Its contents, read-only.
    pub storage: Box<dyn Storage>,
}

/// Opens an image that the caller has opened for reading. `stated` is the format that its owner says it has; `backing` is what is below a
/// qcow2 image that is based on another one. `path` is for messages.
///
/// # Errors
/// When it is damaged, uses what this build does not read, or has a backing file where none was given or the other way round.
pub fn open(file: File, path: &Path, stated: Option<Format>, backing: Option<Image>) -> Result<Image, StorageError> {
    let format = match stated {
        Some(format) => format,
        None => match detect::detect(&file, path)? {
            Found::Format(format) => format,
            Found::Unsupported { kind, advice } => {
                return Err(StorageError::Unsupported {
                    path: path.to_owned(),
                    kind,
                    advice,
                });
            }
        },
    };
    if backing.is_some() && format != Format::Qcow2 {
        return Err(StorageError::Format {
            format: name(format),
            path: path.to_owned(),
            problem: "has no backing file, and the configuration names one; leave it out".to_owned(),
        });
    }
    let storage: Box<dyn Storage> = match format {
        Format::Raw => Box::new(FileStorage::read_only(file, path)?),
        Format::Qcow2 => Box::new(qcow2::open(file, path, backing.map(|image| image.storage))?),
        Format::Vhd => vhd::open(file, path)?,
        Format::Vmdk => Box::new(vmdk::open(file, path)?),
    };
    Ok(Image { format, storage })
}

/// For messages.
const fn name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
        Format::Vhd => "VHD",
        Format::Vmdk => "VMDK",
    }
}

/// Collects what a format's reader needs for its errors.
struct Subject<'a> {
    format: Format,
    path: &'a Path,
    file: &'a File,
    length: u64,
}

impl<'a> Subject<'a> {
    fn new(format: Format, file: &'a File, path: &'a Path) -> Result<Self, StorageError> {
        Ok(Self {
            format,
            path,
            file,
            length: file_length(file, path)?,
        })
    }

    fn problem(&self, problem: impl Into<String>) -> StorageError {
        StorageError::Format {
            format: name(self.format),
            path: self.path.to_owned(),
            problem: problem.into(),
        }
    }

    /// Reads bytes that must be there.
    fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], StorageError> {
        let mut bytes = [0; N];
        if offset.checked_add(N as u64).is_none_or(|end| end > self.length) {
            return Err(self.problem(format!(
                "is cut off: it has {} bytes and something at {offset}; get it again",
                self.length
            )));
        }
        std::os::unix::fs::FileExt::read_exact_at(self.file, &mut bytes, offset)
            .map_err(|source| failed("read", self.path, source))?;
        Ok(bytes)
    }

    fn check_disk_length(&self, length: u64) -> Result<(), StorageError> {
        check_length(length, self.path)
    }
}

#[cfg(test)]
mod tests;
