//! ext2, ext3 and ext4, by `ext4-view`, which also applies the journal.

use std::error::Error;

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType};

use super::{FileSystem, FileSystemError, Node, Result, uuid_text};
use crate::bytes::{le_u16, le_u32};
use crate::disk::Window;

/// Where the superblock is, and its length.
const SUPERBLOCK: u64 = 1024;
/// Block groups of a file system that is read: 64 TiB with blocks of 4 KiB. The library allocates for each.
const BLOCK_GROUPS_MAX: u64 = 1 << 19;
/// Longest target of a link (`PATH_MAX`).
const LINK_BYTES_MAX: u64 = 4096;

/// A mounted ext4 file system.
pub(super) struct Ext4FileSystem {
    inner: Ext4,
}

struct Reader(Window);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> std::result::Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Ok(self.0.read_at(start, buffer)?)
    }
}

impl Ext4FileSystem {
    /// Mounts the file system in a window.
    pub(super) fn mount(window: Window) -> Result<Self> {
        let superblock: [u8; 1024] = window.array(SUPERBLOCK).map_err(FileSystemError::new)?;
        check(&superblock)?;
        let inner = Ext4::load(Box::new(Reader(window))).map_err(error)?;
        Ok(Self { inner })
    }
}

/// Refuses what would make the library allocate beyond all measure.
fn check(superblock: &[u8]) -> Result<()> {
    let high = if le_u32(superblock, 0x60) & 0x80 == 0 {
        0
    } else {
        le_u32(superblock, 0x150)
    };
    let blocks = u64::from(high) << 32 | u64::from(le_u32(superblock, 0x4));
    let per_group = u64::from(le_u32(superblock, 0x20)).max(1);
    if blocks.div_ceil(per_group) > BLOCK_GROUPS_MAX {
        return Err(FileSystemError::new(format!(
            "its superblock says {blocks} blocks in groups of {per_group}, more than any real file system has"
        )));
    }
    let inode_bytes = le_u16(superblock, 0x58);
    if inode_bytes > 4096 {
        return Err(FileSystemError::new(format!(
            "its superblock says inodes of {inode_bytes} bytes"
        )));
    }
    Ok(())
}

fn error(error: Ext4Error) -> FileSystemError {
    if let Ext4Error::Io(source) = error {
        return FileSystemError::new(source);
    }
    FileSystemError::new(error)
}

impl FileSystem for Ext4FileSystem {
    fn node(&self, path: &str) -> Result<Option<Node>> {
        let metadata = match self.inner.symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Ok(None),
            Err(other) => return Err(error(other)),
        };
        Ok(Some(match metadata.file_type() {
            FileType::Regular => Node::File(metadata.len()),
            FileType::Directory => Node::Directory,
            FileType::Symlink if metadata.len() <= LINK_BYTES_MAX => {
                let target = self.inner.read_link(path).map_err(error)?;
                Node::Link(target.to_str().map_err(FileSystemError::new)?.to_owned())
            }
            FileType::Symlink
            | FileType::BlockDevice
            | FileType::CharacterDevice
            | FileType::Fifo
            | FileType::Socket => Node::Other,
        }))
    }

    fn list(&self, path: &str, limit: usize) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.inner.read_dir(path).map_err(error)? {
            let entry = entry.map_err(error)?;
            if names.len() == limit {
                break;
            }
            if let Ok(name) = entry.file_name().as_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut file = self.inner.open(path).map_err(error)?;
        file.seek_to(offset).map_err(error)?;
        let mut filled = 0;
        // The library reads up to one block at a time.
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_bytes(rest).map_err(error)? {
                0 => break,
                bytes => filled += bytes,
            }
        }
        Ok(filled)
    }

    fn label(&self) -> Option<String> {
        let label = self.inner.label().to_str().ok()?;
        (!label.is_empty()).then(|| label.to_owned())
    }

    fn uuid(&self) -> String {
        uuid_text(*self.inner.uuid().as_bytes())
    }
}
