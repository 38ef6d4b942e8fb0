//! What an image's file is, by its first bytes and its last.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::file::{failed, file_length};
use super::super::storage::StorageError;
use super::{Format, vhd};

/// Bytes that are looked at.
const HEAD_BYTES: usize = 512;
const CONVERT: &str = "convert it with `qemu-img convert -O qcow2`";
const UNPACK: &str = "unpack it first";

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A disk.
    Format(Format),
    /// Something that is certainly no raw disk, and not read.
    Unsupported {
        /// What it is.
        kind: &'static str,
        /// What to do.
        advice: &'static str,
    },
}

/// Magic numbers at the start of a file. No boot sector, partition table or file system starts with one of them.
const MAGICS: [(&[u8], Found); 10] = [
    (b"QFI\xfb", Found::Format(Format::Qcow2)),
    (b"KDMV", Found::Format(Format::Vmdk)),
    (b"conectix", Found::Format(Format::Vhd)),
    (b"vhdxfile", unsupported("a VHDX image", CONVERT)),
    (b"QED\0", unsupported("a QED image", CONVERT)),
    (
        b"# Disk DescriptorFile",
        unsupported("the descriptor of a VMDK image whose data is in other files", CONVERT),
    ),
    (
        b"LUKS\xba\xbe",
        unsupported("an encrypted LUKS container", "decrypt it, or state format: raw"),
    ),
    (b"\x1f\x8b", unsupported("packed with gzip", UNPACK)),
    (b"\xfd7zXZ\0", unsupported("packed with xz", UNPACK)),
    (b"\x28\xb5\x2f\xfd", unsupported("packed with zstd", UNPACK)),
];
/// `VirtualBox`'s magic is not at the start.
const VDI: (usize, [u8; 4]) = (64, [0x7f, 0x10, 0xda, 0xbe]);

const fn unsupported(kind: &'static str, advice: &'static str) -> Found {
    Found::Unsupported { kind, advice }
}

/// Looks at a file.
pub(super) fn detect(file: &File, path: &Path) -> Result<Found, StorageError> {
    let length = file_length(file, path)?;
    let read = |bytes: &mut [u8], offset| {
        file.read_exact_at(bytes, offset)
            .map_err(|source| failed("read", path, source))
    };
    let mut head = [0; HEAD_BYTES];
    let there = usize::try_from(length).unwrap_or(usize::MAX).min(HEAD_BYTES);
    read(&mut head[..there], 0)?;
    let mut tail = [0; vhd::FOOTER_BYTES];
    if let Some(at) = length.checked_sub(tail.len() as u64) {
        read(&mut tail, at)?;
    }
    Ok(judge(&head[..there], &tail, length))
}

/// Decides by the first bytes and the last 512. What nothing speaks against is raw.
fn judge(head: &[u8], tail: &[u8; vhd::FOOTER_BYTES], length: u64) -> Found {
    if let Some((_, found)) = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return *found;
    }
    if head.get(VDI.0..VDI.0 + 4) == Some(&VDI.1) {
        return unsupported("a VDI image", CONVERT);
    }
    // A fixed VHD is a raw disk with a footer: everything about it must fit.
    if vhd::is_fixed(tail, length) {
        return Found::Format(Format::Vhd);
    }
    Found::Format(Format::Raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is() {
        let mut vdi = [0; 512];
        vdi[..10].copy_from_slice(b"<<< Oracle");
        vdi[64..68].copy_from_slice(&VDI.1);
        let mut boot_sector = [0x90; 512];
        boot_sector[510..].copy_from_slice(&[0x55, 0xaa]);
        let of = |kind| Found::Format(kind);
        let kind = |found| match found {
            Found::Unsupported { kind, .. } => kind,
            Found::Format(_) => "",
        };
        for (head, expected) in [
            (&b"QFI\xfb\0\0\0\x03"[..], of(Format::Qcow2)),
            (b"QFI", of(Format::Raw)),
            (b"KDMV\x01", of(Format::Vmdk)),
            (b"conectix\0", of(Format::Vhd)),
            (b"", of(Format::Raw)),
            (&[0; 512], of(Format::Raw)),
            (&boot_sector, of(Format::Raw)),
            (b"CONECTIX", of(Format::Raw)),
        ] {
            assert_eq!(judge(head, &[0; 512], 1 << 20), expected, "{head:x?}");
        }
        for (head, expected) in [
            (&b"vhdxfileM"[..], "a VHDX image"),
            (
                b"# Disk DescriptorFile\nversion=1",
                "the descriptor of a VMDK image whose data is in other files",
            ),
            (b"\x1f\x8b\x08", "packed with gzip"),
            (&vdi, "a VDI image"),
        ] {
            assert_eq!(kind(judge(head, &[0; 512], 1 << 20)), expected);
        }
    }
}
