//! What a boot loader sees of a disk: volumes with files. The readers of configurations work on this alone.

use std::fmt;

use crate::limits::Limits;
use crate::table::{Purpose, Scheme};

/// One of the volumes, by its place in [`Files::volumes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub usize);

/// A partition with a file system on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The partition's number; 0 is the whole disk.
    pub number: u32,
    /// The table it is from.
    pub scheme: Scheme,
    /// What it is for.
    pub purpose: Purpose,
    /// The file system's UUID as `blkid` writes it.
    pub uuid: String,
    /// The file system's label.
    pub label: Option<String>,
    /// The file system's name as GRUB's `probe --fs` says it: `ext2`, `xfs`, `btrfs`, `fat`.
    pub file_system: &'static str,
    /// The partition's UUID.
    pub partition_uuid: Option<String>,
}

impl fmt::Display for Volume {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Gpt | Scheme::Mbr => write!(formatter, "partition {}", self.number),
            Scheme::Whole => formatter.write_str("the whole disk"),
        }
    }
}

/// A path on a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileRef {
    /// Where.
    pub volume: VolumeId,
    /// Absolute.
    pub path: String,
}

/// What a path leads to, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A file of so many bytes.
    File(u64),
    /// A directory.
    Directory,
}

/// Looking up files. Paths start with `/`; links are followed within their volume.
///
/// What cannot be read is as if it did not exist: an implementation keeps what went wrong for the report.
pub trait Files {
    /// The volumes, in the order of their partitions.
    fn volumes(&self) -> &[Volume];
    /// What `path` leads to.
    fn find(&self, volume: VolumeId, path: &str) -> Option<Found>;
    /// A whole file, if it has at most `limit` bytes.
    fn read(&self, volume: VolumeId, path: &str, limit: u64) -> Option<Vec<u8>>;
    /// Fills `buffer` from `offset` on, as far as the file reaches.
    fn read_part(&self, volume: VolumeId, path: &str, offset: u64, buffer: &mut [u8]) -> Option<usize>;
    /// The names in a directory, sorted; none where it does not exist.
    fn list(&self, volume: VolumeId, path: &str) -> Vec<String>;

    /// Whether `path` leads to a file.
    fn is_file(&self, volume: VolumeId, path: &str) -> bool {
        matches!(self.find(volume, path), Some(Found::File(_)))
    }

    /// A configuration file, with what is not UTF-8 replaced.
    fn text(&self, volume: VolumeId, path: &str, limits: &Limits) -> Option<String> {
        let bytes = self.read(volume, path, limits.configuration_bytes)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The volumes' ids.
    fn ids(&self) -> Vec<VolumeId> {
        (0..self.volumes().len()).map(VolumeId).collect()
    }

    /// A volume's description.
    fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes().get(id.0)
    }
}

/// `path` below `directory`, or itself where it is absolute; without `.`, `..` and empty parts.
pub fn join(directory: &str, path: &str) -> String {
    let all = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{directory}/{path}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in all.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The directory that `path` is in.
pub fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        None | Some(("", _)) => "/",
        Some((directory, _)) => directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_never_lead_out() {
        for (directory, path, expected) in [
            ("/boot", "vmlinuz", "/boot/vmlinuz"),
            ("/boot/", "/vmlinuz", "/vmlinuz"),
            ("/boot", "../../../etc//./passwd", "/etc/passwd"),
            ("/", "a/b/..", "/a"),
            ("", "", "/"),
        ] {
            assert_eq!(join(directory, path), expected);
        }
        for (path, expected) in [("/a/b", "/a"), ("/a", "/"), ("a", "/"), ("/", "/")] {
            assert_eq!(parent(path), expected);
        }
    }
}
