//! Making disks: partitions by sgdisk or sfdisk, file systems by their mkfs.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use tempfile::TempDir;

use crate::{BootImage, FindError, Limits, RawDisk, find};

pub(super) const MIB: u64 = 1 << 20;

/// A directory with what a test makes.
pub(super) struct Workshop {
    directory: TempDir,
}

impl Workshop {
    pub(super) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An empty tree of files.
    pub(super) fn tree(&self, name: &str) -> Tree {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        Tree { path }
    }

    /// A file of zeros.
    pub(super) fn blank(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    pub(super) fn ext4(&self, name: &str, tree: &Tree, uuid: &str, label: &str) -> PathBuf {
        let path = self.blank(name, 64 * MIB);
        run(
            "mke2fs",
            &[
                "-q",
                "-t",
                "ext4",
                "-U",
                uuid,
                "-L",
                label,
                "-d",
                tree.text(),
                text(&path),
            ],
        );
        path
    }

    pub(super) fn fat(&self, name: &str, tree: &Tree, serial: &str, bits: &str) -> PathBuf {
        let path = self.blank(name, 64 * MIB);
        let sectors_per_cluster = if bits == "32" { "1" } else { "4" };
        run(
            "mkfs.vfat",
            &[
                "-F",
                bits,
                "-s",
                sectors_per_cluster,
                "-i",
                serial,
                "-n",
                "UEFI",
                text(&path),
            ],
        );
        for entry in fs::read_dir(&tree.path).unwrap() {
            let entry = entry.unwrap().path();
            run("mcopy", &["-s", "-i", text(&path), text(&entry), "::"]);
        }
        path
    }

    /// Makes a file system and fills it while it is mounted. With `crashed` it is copied before it is unmounted.
    fn mounted(&self, name: &str, kind: &str, make: &[&str], options: &str, fill: &str, crashed: bool) -> PathBuf {
        let path = self.blank(name, 320 * MIB);
        let mut arguments = make.to_vec();
        arguments.push(text(&path));
        run(&format!("mkfs.{kind}"), &arguments);
        let copy = self.path(&format!("{name}.copy"));
        let script = format!(
            "set -e; mkdir -p {mount}; mount -t {kind} -o loop,{options} {path} {mount}; cd {mount}; {fill}; {keep} \
             cd /; umount {mount}",
            mount = text(&self.path(&format!("{name}.mount"))),
            path = text(&path),
            keep = if crashed {
                // What a crash leaves after every file was synced: all of it in the log, and little of it in its place.
                format!(
                    "find . -type f -size +0 -exec sync {{}} +; cp --sparse=always {} {};",
                    text(&path),
                    text(&copy)
                )
            } else {
                String::new()
            },
        );
        // The mount ends with its namespace, whatever happens.
        run("unshare", &["--mount", "sh", "-c", &script]);
        if crashed { copy } else { path }
    }

    pub(super) fn xfs(&self, name: &str, tree: &Tree, uuid: &str, crashed: bool) -> PathBuf {
        let uuid = format!("uuid={uuid}");
        let fill = format!("cp -a {}/. .", tree.text());
        self.mounted(
            name,
            "xfs",
            &["-q", "-m", &uuid, "-L", "boot"],
            "nouuid",
            &fill,
            crashed,
        )
    }

    pub(super) fn ext4_crashed(&self, name: &str, tree: &Tree, uuid: &str) -> PathBuf {
        let fill = format!("cp -a {}/. .", tree.text());
        self.mounted(name, "ext4", &["-q", "-U", uuid], "rw", &fill, true)
    }

    /// btrfs whose subvolumes are the tree's top directories.
    pub(super) fn btrfs(
        &self,
        name: &str,
        tree: &Tree,
        uuid: &str,
        compression: &str,
        default: Option<&str>,
    ) -> PathBuf {
        let mut fill = format!(
            "for part in {tree}/*; do part=$(basename $part); btrfs -q subvolume create $part; cp -a {tree}/$part/. $part; done",
            tree = tree.text()
        );
        if let Some(default) = default {
            fill += "; btrfs subvolume set-default ";
            fill += default;
        }
        let options = format!("compress-force={compression}");
        self.mounted(
            name,
            "btrfs",
            &["-q", "-U", uuid, "-L", "fedora"],
            &options,
            &fill,
            false,
        )
    }

    /// A GPT disk with these partitions: number, type as sgdisk knows it, contents.
    pub(super) fn gpt(&self, name: &str, partitions: &[(u32, &str, &Path)]) -> PathBuf {
        let total: u64 = partitions.iter().map(|(_, _, path)| size(path) + MIB).sum();
        let disk = self.blank(name, total + 4 * MIB);
        let mut arguments = Vec::new();
        let mut start = MIB;
        for (number, kind, contents) in partitions {
            let sectors = (start / 512, (start + size(contents)) / 512 - 1);
            arguments.push(format!("--new={number}:{}:{}", sectors.0, sectors.1));
            arguments.push(format!("--typecode={number}:{kind}"));
            put(&disk, start, contents);
            start += size(contents).next_multiple_of(MIB);
        }
        arguments.push(text(&disk).to_owned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run("sgdisk", &arguments);
        disk
    }

    /// An MBR disk whose partitions have their contents at these offsets; `script` is for sfdisk.
    pub(super) fn mbr(&self, name: &str, script: &str, partitions: &[(u64, &Path)]) -> PathBuf {
        let end = partitions.iter().map(|(start, path)| start + size(path)).max().unwrap();
        let disk = self.blank(name, end + MIB);
        for (start, contents) in partitions {
            put(&disk, *start, contents);
        }
        let mut child = Command::new("sfdisk")
            .args(["-q", text(&disk)])
            .stdin(Stdio::piped())
            .spawn()
            .expect("fdisk is to be installed");
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        disk
    }
}

/// Files for a file system.
pub(super) struct Tree {
    path: PathBuf,
}

impl Tree {
    pub(super) fn file(self, path: &str, contents: impl AsRef<[u8]>) -> Self {
        let path = self.path.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.path.join(path)).unwrap();
        self
    }

    fn text(&self) -> &str {
        text(&self.path)
    }
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// Copies a file into a disk; what is zero is left out.
fn put(disk: &Path, start: u64, contents: &Path) {
    let mut disk = File::options().write(true).open(disk).unwrap();
    let mut contents = File::open(contents).unwrap();
    let mut piece = vec![0; 1 << 20];
    let mut at = start;
    loop {
        let bytes = contents.read(&mut piece).unwrap();
        if bytes == 0 {
            return;
        }
        if piece[..bytes].iter().any(|byte| *byte != 0) {
            disk.seek(SeekFrom::Start(at)).unwrap();
            disk.write_all(&piece[..bytes]).unwrap();
        }
        at += bytes as u64;
    }
}

pub(super) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "{program}: {error}; these tests need e2fsprogs, xfsprogs, btrfs-progs, dosfstools, mtools, gdisk and fdisk, and root"
            )
        });
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(super) fn open(disk: &Path) -> Result<BootImage, FindError> {
    open_within(disk, &Limits::default())
}

pub(super) fn open_within(disk: &Path, limits: &Limits) -> Result<BootImage, FindError> {
    find(Rc::new(RawDisk::new(File::open(disk).unwrap(), size(disk))), limits)
}

/// A file that no compression makes small, so that it is in many extents.
pub(super) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()[0]
    })
    .take(bytes)
    .collect()
}

/// A file that compresses.
pub(super) fn prose(seed: u64, bytes: usize) -> Vec<u8> {
    (seed..)
        .flat_map(|number| format!("line {number} of a file that compresses well\n").into_bytes())
        .take(bytes)
        .collect()
}

pub(super) fn read(mut reader: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Checks the kernel and the initrds, byte for byte.
pub(super) fn assert_contents(image: &BootImage, kernel: &[u8], initrds: &[&[u8]]) {
    let mut expected = Vec::new();
    for initrd in initrds {
        expected.extend_from_slice(initrd);
        expected.resize(expected.len().next_multiple_of(4), 0);
    }
    assert_eq!(image.entry().kernel_bytes, kernel.len() as u64);
    assert_eq!(image.entry().initrd_bytes, expected.len() as u64);
    assert!(read(image.kernel().unwrap()) == kernel, "the kernel differs");
    assert!(read(image.initrd().unwrap()) == expected, "the initrd differs");
}
