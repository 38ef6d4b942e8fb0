//! Small read-only disks with files on them, made in memory: a FAT file system on the whole disk, which every guest reads.

use std::collections::BTreeSet;
use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// Bytes of a label, padded with spaces.
pub const LABEL_BYTES: usize = 11;
/// Bytes of a directory entry; a FAT sector has 16 of them.
const ENTRIES_PER_SECTOR: usize = 16;
/// Characters of a long name in one directory entry.
const NAME_PER_ENTRY: usize = 13;
/// Directory entries without which a FAT16 file system is unusual: what other tools give it.
const ENTRIES_MIN: usize = 512;

/// A label as FAT has it. What is longer is cut off.
pub fn label(text: &str) -> [u8; LABEL_BYTES] {
    let mut label = [b' '; LABEL_BYTES];
    for (byte, given) in label.iter_mut().zip(text.bytes()) {
        *byte = given;
    }
    label
}

/// A disk of so many bytes with these files in its root directory. They have no times, so that the same files make the same disk. How long it takes grows
/// with the square of their number: some hundreds are enough.
///
/// # Errors
/// When they do not fit, or a name is not one: FAT takes two that differ only in case for the same.
pub fn disk(label: [u8; LABEL_BYTES], files: &[(&str, &[u8])], bytes: usize) -> io::Result<Vec<u8>> {
    // Zeros that nobody has written to take no memory.
    let mut disk = Cursor::new(vec![0; bytes]);
    let options = FormatVolumeOptions::new().volume_label(label);
    fatfs::format_volume(&mut disk, options.max_root_dir_entries(root_entries(files)?))?;
    let file_system = FileSystem::new(&mut disk, FsOptions::new())?;
    let mut names = BTreeSet::new();
    for (name, data) in files {
        if !names.insert(name.to_ascii_lowercase()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut file = file_system.root_dir().create_file(name)?;
        file.write_all(data)?;
        file.flush()?;
    }
    file_system.unmount()?;
    Ok(disk.into_inner())
}

/// Entries of the root directory: the label's, and for each file one and those of its long name.
fn root_entries(files: &[(&str, &[u8])]) -> io::Result<u16> {
    let of_files = files.iter().map(|(name, _)| 1 + name.len().div_ceil(NAME_PER_ENTRY));
    let entries = (1 + of_files.sum::<usize>())
        .max(ENTRIES_MIN)
        .next_multiple_of(ENTRIES_PER_SECTOR);
    u16::try_from(entries).map_err(|_| {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            "their names are too many for one directory",
        )
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;

    use super::*;

    /// A file of such a disk.
    pub(crate) fn read(disk: &[u8], name: &str) -> Vec<u8> {
        let mut bytes = disk.to_vec();
        let file_system = FileSystem::new(Cursor::new(&mut bytes), FsOptions::new()).unwrap();
        let mut contents = Vec::new();
        file_system
            .root_dir()
            .open_file(name)
            .unwrap()
            .read_to_end(&mut contents)
            .unwrap();
        contents
    }

    #[test]
    fn labels_are_padded_and_cut() {
        assert_eq!(label("conf"), *b"conf       ");
        assert_eq!(label("a-name-that-is-long"), *b"a-name-that");
    }

    #[test]
    fn many_files_with_long_names_are_all_there() {
        let names: Vec<String> = (0..100).map(|number| format!("{number}-{}", "n".repeat(200))).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
        let disk = disk(label("many"), &files, 8 << 20).unwrap();
        for name in [&names[0], &names[50], &names[99]] {
            assert_eq!(read(&disk, name), name.as_bytes());
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let large = vec![1; 300 << 10];
        assert!(disk(label("full"), &[("large", &large)], 256 << 10).is_err());
        let same = disk(label("same"), &[("a", b"1"), ("A", b"2")], 256 << 10);
        assert_eq!(same.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
