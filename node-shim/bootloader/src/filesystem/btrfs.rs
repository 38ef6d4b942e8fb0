//! btrfs on one device, by `lambutter`.
//!
//! GRUB's paths start at the top of all subvolumes (`/root/boot/vmlinuz`), and with a setting of SUSE's at the default subvolume. So a
//! path is looked for in the first and then in the second. What was synced but not yet committed when the power went
//! (btrfs' log tree) is not seen; neither does GRUB see it.

use std::cell::RefCell;
use std::io;

use lambutter::{BlockRead, Btrfs, Error, Inode, Path};

use super::{FileSystem, FileSystemError, Node, Result, uuid_text};
use crate::disk::Window;

/// Where the first superblock is (`BTRFS_SUPER_INFO_OFFSET`).
pub(super) const SUPERBLOCK: u64 = 0x1_0000;
/// The subvolume at the top (`BTRFS_FS_TREE_OBJECTID`).
const TOP: u64 = 5;
/// Longest target of a link.
const LINK_BYTES_MAX: u64 = 4096;
/// `fsid`, and whether `metadata_uuid` is another (`BTRFS_FEATURE_INCOMPAT_METADATA_UUID`); the label.
const FSID: u64 = SUPERBLOCK + 0x20;
const LABEL: u64 = SUPERBLOCK + 0x12b;

/// A mounted btrfs file system.
pub(super) struct BtrfsFileSystem {
    /// The top of all subvolumes, and the default one where that is another.
    trees: Vec<Tree>,
    label: Option<String>,
    uuid: String,
}

/// A tree of files: a subvolume and what is below it.
type Tree = RefCell<Btrfs<Reader>>;

struct Reader(Window);

impl BlockRead for Reader {
    type Error = io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

impl BtrfsFileSystem {
    /// Mounts the file system in a window.
    pub(super) fn mount(window: Window) -> Result<Self> {
        let length = window.length();
        let uuid = uuid_text(window.array(FSID).map_err(FileSystemError::new)?);
        let label: [u8; 256] = window.array(LABEL).map_err(FileSystemError::new)?;
        let end = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
        let label = String::from_utf8_lossy(&label[..end]).into_owned();
        let top = Btrfs::open_subvol_id(Reader(window.clone()), length, TOP).map_err(|source| error(&source))?;
        let mut trees = vec![RefCell::new(top)];
        let default = Btrfs::open(Reader(window), length).map_err(|source| error(&source))?;
        if default.subvolume() != TOP {
            trees.push(RefCell::new(default));
        }
        Ok(Self {
            trees,
            label: (!label.is_empty()).then_some(label),
            uuid,
        })
    }

    /// The first tree that has `path`, and what is there.
    fn find(&self, path: &str) -> Result<Option<(&Tree, Inode)>> {
        let Some(path) = Path::new(path.as_bytes()) else {
            return Ok(None);
        };
        for tree in &self.trees {
            match tree.borrow_mut().resolve(path) {
                Ok(inode) => return Ok(Some((tree, inode))),
                Err(Error::NotFound) => {}
                Err(source) => return Err(error(&source)),
            }
        }
        Ok(None)
    }

    fn existing(&self, path: &str) -> Result<(&Tree, Inode)> {
        self.find(path)?
            .ok_or_else(|| FileSystemError::new(format!("{path} does not exist")))
    }
}

fn error(error: &Error) -> FileSystemError {
    FileSystemError::new(error)
}

impl FileSystem for BtrfsFileSystem {
    fn node(&self, path: &str) -> Result<Option<Node>> {
        let Some((tree, inode)) = self.find(path)? else {
            return Ok(None);
        };
        let mut tree = tree.borrow_mut();
        let metadata = match tree.metadata(&inode) {
            Ok(metadata) => metadata,
            Err(Error::NotFound) => return Ok(None),
            Err(source) => return Err(error(&source)),
        };
        Ok(Some(if metadata.is_file() {
            Node::File(metadata.size)
        } else if metadata.is_dir() {
            Node::Directory
        } else if metadata.is_symlink() && metadata.size <= LINK_BYTES_MAX {
            let path = Path::new(path.as_bytes()).ok_or_else(|| FileSystemError::new("not an absolute path"))?;
            let target = tree.read_link(path).map_err(|source| error(&source))?;
            Node::Link(String::from_utf8(target).map_err(FileSystemError::new)?)
        } else {
            Node::Other
        }))
    }

    fn list(&self, path: &str, limit: usize) -> Result<Vec<String>> {
        let (tree, _) = self.existing(path)?;
        let path = Path::new(path.as_bytes()).ok_or_else(|| FileSystemError::new("not an absolute path"))?;
        let entries = tree.borrow_mut().read_dir(path).map_err(|source| error(&source))?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| String::from_utf8(entry.name).ok())
            .take(limit)
            .collect())
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let (tree, inode) = self.existing(path)?;
        tree.borrow_mut()
            .read_file_at(&inode, offset, buffer)
            .map_err(|source| error(&source))
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn uuid(&self) -> String {
        self.uuid.clone()
    }
}
