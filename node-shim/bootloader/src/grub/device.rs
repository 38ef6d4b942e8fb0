//! Names of devices and files: `(hd0,gpt1)/boot/vmlinuz`. There is one disk, `hd0`.

use crate::files::{Files, Volume, VolumeId};
use crate::table::Scheme;
use crate::volumes::grub_scheme;

const DISK: &str = "hd0";

/// How GRUB names a volume.
pub(super) fn name(volume: &Volume) -> String {
    match volume.scheme {
        Scheme::Gpt | Scheme::Mbr => format!("{DISK},{}{}", grub_scheme(volume.scheme), volume.number),
        Scheme::Whole => DISK.to_owned(),
    }
}

/// The volume of such a name, with or without the scheme's name and parentheses.
pub(super) fn find(files: &dyn Files, text: &str) -> Option<VolumeId> {
    let text = text
        .strip_prefix('(')
        .and_then(|text| text.strip_suffix(')'))
        .unwrap_or(text);
    let (disk, partition) = match text.split_once(',') {
        Some((disk, partition)) => (disk, partition),
        None => (text, ""),
    };
    if disk != DISK {
        return None;
    }
    // Names may be nested, `hd0,msdos1,bsd1`: those are not partitions that Linux is on.
    let digits = partition.trim_start_matches(|letter: char| letter.is_ascii_alphabetic());
    let scheme = &partition[..partition.len() - digits.len()];
    let number: u32 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    files.ids().into_iter().find(|id| {
        files.volume(*id).is_some_and(|volume| {
            volume.number == number && (scheme.is_empty() || scheme == grub_scheme(volume.scheme))
        })
    })
}

/// Splits `(device)/path`; the device is `None` where the name has none.
pub(super) fn split(name: &str) -> (Option<&str>, &str) {
    match name.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((device, path)) => (Some(device), path),
        None => (None, name),
    }
}
