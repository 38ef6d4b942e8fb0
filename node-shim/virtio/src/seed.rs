//! The `NoCloud` seed: a FAT file system labelled `cidata` with the files that cloud-init's `NoCloud` data source reads.
//!
//! Ignition reads its configuration from the same disk where it takes the machine for one of Proxmox VE.

use std::io;

use serde_json::json;

use crate::block::memory::MemoryStorage;
use crate::fat;

/// Label by which the disk is found: by cloud-init in either case, by Ignition in this one alone (`/dev/disk/by-label/cidata`).
const LABEL: &str = "cidata";
/// What a file takes at most beyond its own bytes: the rest of its last cluster, and its directory entries.
const FILE_OVERHEAD_BYTES: usize = 8 * 1024;
/// Boot sector, tables, root directory, of a disk of the sizes that are possible here.
const FIXED_BYTES: usize = 128 * 1024;

/// What the files say.
#[derive(Clone, Copy, Debug)]
pub struct Seed<'a> {
    /// cloud-init runs its per-instance modules again when this changes.
    pub instance_id: &'a str,
    /// The guest's host name.
    pub host_name: &'a str,
    /// The `user-data` file.
    pub user_data: Option<&'a [u8]>,
    /// The `network-config` file.
    pub network_config: Option<&'a [u8]>,
}

/// The seed's contents did not become a file system.
#[derive(Debug, thiserror::Error)]
#[error("failed to make the cloud-init disk: {0}; make user data or network data smaller")]
pub struct SeedError(io::Error);

impl Seed<'_> {
    /// A read-only disk with the files, no larger than they need.
    ///
    /// # Errors
    /// When they do not fit into a FAT file system.
    pub fn disk(&self) -> Result<MemoryStorage, SeedError> {
        self.write().map(MemoryStorage::new).map_err(SeedError)
    }

    fn write(&self) -> io::Result<Vec<u8>> {
        // JSON is YAML, and needs no thought about quoting.
        let meta_data = json!({ "instance-id": self.instance_id, "local-hostname": self.host_name }).to_string();
        // The data source is not taken for complete without user data.
        let user_data = self.user_data.unwrap_or(b"#cloud-config\n");
        let files = [
            ("meta-data", Some(meta_data.as_bytes())),
            ("user-data", Some(user_data)),
            ("network-config", self.network_config),
        ];
        let files: Vec<(&str, &[u8])> = files
            .into_iter()
            .filter_map(|(name, data)| data.map(|data| (name, data)))
            .collect();
        let bytes: usize = files.iter().map(|(_, data)| data.len() + FILE_OVERHEAD_BYTES).sum();
        fat::disk(fat::label(LABEL), &files, (FIXED_BYTES + bytes).next_multiple_of(4096))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::block::Storage;

    fn seed(user_data: &[u8]) -> Seed<'_> {
        Seed {
            instance_id: "i-1",
            host_name: "web",
            user_data: Some(user_data),
            network_config: Some(b"version: 2\n"),
        }
    }

    fn read(disk: &MemoryStorage, name: &str) -> Vec<u8> {
        fat::tests::read(disk.as_bytes(), name)
    }

    #[test]
    fn the_files_are_on_the_disk_whatever_their_size() {
        for size in [0, 1, 511, 4096, 100_000, 512 * 1024] {
            let user_data: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[0]).collect();
            let disk = seed(&user_data).disk().unwrap();
            assert_eq!(read(&disk, "user-data"), user_data, "{size} bytes");
            assert_eq!(
                read(&disk, "meta-data"),
                br#"{"instance-id":"i-1","local-hostname":"web"}"#
            );
            assert_eq!(read(&disk, "network-config"), b"version: 2\n");
            assert!(
                disk.len() <= u64::from(size) + 200 * 1024,
                "{} bytes for {size}",
                disk.len()
            );
        }
    }

    #[test]
    fn the_largest_user_and_network_data_fit() {
        let large = vec![b'x'; usize::try_from(node_shim_protocol::config::CLOUD_INIT_MAX_BYTES).unwrap()];
        let disk = Seed {
            network_config: Some(&large),
            ..seed(&large)
        }
        .disk()
        .unwrap();
        assert_eq!(read(&disk, "network-config"), large);
    }

    #[test]
    fn without_user_data_there_is_an_empty_cloud_config() {
        let disk = Seed {
            user_data: None,
            network_config: None,
            ..seed(b"")
        }
        .disk()
        .unwrap();
        assert_eq!(read(&disk, "user-data"), b"#cloud-config\n");
    }

    #[test]
    fn quotes_in_a_name_do_not_leave_it() {
        let disk = Seed {
            host_name: "a\"\nb: c",
            ..seed(b"")
        }
        .disk()
        .unwrap();
        assert_eq!(
            read(&disk, "meta-data"),
            br#"{"instance-id":"i-1","local-hostname":"a\"\nb: c"}"#
        );
    }

    #[test]
    fn blkid_finds_the_label() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed");
        std::fs::write(&path, seed(b"#cloud-config\n").disk().unwrap().as_bytes()).unwrap();
        let blkid = ["/usr/sbin/blkid", "/sbin/blkid"]
            .into_iter()
            .find(|tool| std::path::Path::new(tool).exists());
        let Some(blkid) = blkid else {
            eprintln!("skipped: blkid is not installed (package util-linux)");
            return;
        };
        let output = Command::new(blkid)
            .args(["-p", "-o", "export"])
            .arg(&path)
            .output()
            .unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.contains("\nLABEL=cidata\n") && output.contains("\nTYPE=vfat\n"),
            "{output}"
        );
    }
}
