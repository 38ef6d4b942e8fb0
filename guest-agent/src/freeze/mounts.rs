//! Which file systems there are to freeze: `/proc/self/mountinfo` (proc(5)).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Most file systems that are frozen: each has a descriptor.
const FILE_SYSTEMS_MAX: usize = 256;
/// Most mounts of one file system that are tried.
const MOUNTS_MAX: usize = 16;

/// A mount of a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number, by which it is told from one that lies upon it.
    pub id: u64,
    /// Where.
    pub point: PathBuf,
}

/// A file system on a block device that can be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// At least one mount.
    mounts: Vec<Mount>,
    /// Where it is mounted first, for people.
    name: String,
}

impl FileSystem {
    /// Where it is mounted first.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }
}

struct Line {
    device: String,
    mount: Mount,
    /// Whether the file system itself can be written to, whatever this mount says.
    writable: bool,
    on_disk: bool,
}

/// The file systems to freeze, in their order: the last that was mounted is the first.
pub fn plan(mountinfo: &str) -> Vec<FileSystem> {
    let lines: Vec<Line> = mountinfo
        .lines()
        .filter_map(parse)
        .filter(|line| line.writable && line.on_disk)
        .collect();
    let mut seen = BTreeSet::new();
    let mut file_systems = Vec::new();
    // By their first mounts: a second one that came late says nothing of what lies in what.
    for line in &lines {
        if file_systems.len() < FILE_SYSTEMS_MAX && seen.insert(&line.device) {
            let mounts = lines
                .iter()
                .filter(|other| other.device == line.device)
                .map(|other| other.mount.clone());
            file_systems.push(FileSystem {
                mounts: mounts.take(MOUNTS_MAX).collect(),
                name: line.mount.point.display().to_string(),
            });
        }
    }
    file_systems.reverse();
    file_systems
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - TYPE SOURCE SUPER_OPTIONS`.
fn parse(line: &str) -> Option<Line> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    let id = front.next()?.parse().ok()?;
    let device = front.nth(1)?;
    let point = front.nth(1)?;
    let mut back = back.split(' ');
    let (_kind, source, options) = (back.next()?, back.next()?, back.next()?);
    // Those without a device have numbers of major 0; so has btrfs, whose source is a device all the same.
    let on_disk = !device.starts_with("0:") || source.starts_with("/dev/");
    Some(Line {
        device: device.to_owned(),
        mount: Mount {
            id,
            point: unescape(point),
        },
        writable: options.split(',').any(|option| option == "rw"),
        on_disk,
    })
}

/// Blanks, line ends and backslashes are written as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .first_chunk::<3>()
            .filter(|digits| *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        let escaped = digits.and_then(|digits| {
            let value = digits
                .iter()
                .fold(0_u16, |value, digit| value * 8 + u16::from(digit - b'0'));
            u8::try_from(value).ok()
        });
        if let Some(byte) = escaped {
            bytes.push(byte);
            rest = after.get(3..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = r"
22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
24 28 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw,size=488580k
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
29 28 0:24 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=100m
40 28 254:15 / /boot/efi rw,relatime shared:20 - vfat /dev/vda15 rw,fmask=0022
41 28 254:16 / /mnt/seed ro,relatime - vfat /dev/vdb ro,fmask=0022
42 28 254:1 /srv /srv/only\040to\134read ro,relatime - ext4 /dev/vda1 rw,errors=remount-ro
43 28 0:45 /@ /data rw,relatime - btrfs /dev/vdc rw,space_cache=v2,subvol=/@
44 28 0:45 /@home /home rw,relatime - btrfs /dev/vdc rw,space_cache=v2,subvol=/@home
45 28 0:50 / /net rw,relatime - nfs4 server:/export rw,vers=4.2
46 43 7:0 / /data/image rw,relatime - xfs /dev/loop0 rw,attr2
47 28 0:60 / /merged rw,relatime - overlay overlay rw,lowerdir=/a
";

    #[test]
    fn every_writable_file_system_on_a_disk_is_frozen_once_and_the_last_one_first() {
        let planned = plan(DEBIAN);
        let names: Vec<&str> = planned.iter().map(FileSystem::name).collect();
        assert_eq!(names, ["/data/image", "/data", "/boot/efi", "/"]);
        let points = |index: usize| -> Vec<_> {
            planned[index]
                .mounts()
                .iter()
                .map(|mount| mount.point.to_str().unwrap())
                .collect()
        };
        assert_eq!(points(1), ["/data", "/home"]);
        assert_eq!(points(3), ["/", r"/srv/only to\read"]);
        assert_eq!(planned[3].mounts()[1].id, 42);
    }

    #[test]
    fn what_is_no_line_is_left_out() {
        for text in [
            "",
            "\n",
            "1 2 3",
            " - ",
            "x 1 8:1 / / rw - ext4 /dev/sda1 rw",
            "1 1 8:1 / / rw - ext4 /dev/sda1",
            "1 1 8:1 / / rw ext4",
        ] {
            assert_eq!(plan(text), [], "{text}");
        }
        assert_eq!(unescape(r"\040\777\04\\"), PathBuf::from(" \\777\\04\\\\"));
        let many: Vec<String> = (0..1000)
            .map(|n| format!("{n} 1 8:{n} / /m{n} rw - ext4 /dev/sd rw"))
            .collect();
        assert_eq!(plan(&many.join("\n")).len(), FILE_SYSTEMS_MAX);
    }
}
