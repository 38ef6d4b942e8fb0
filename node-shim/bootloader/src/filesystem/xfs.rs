//! XFS, by `lamxfs`, which also applies the log.

use std::cell::RefCell;
use std::io;

use lamxfs::{BlockRead, Error, Path, Xfs};

use super::{FileSystem, FileSystemError, Node, Result, uuid_text};
use crate::disk::Window;

/// Longest target of a link (`XFS_SYMLINK_MAXLEN`).
const LINK_BYTES_MAX: u64 = 1024;

/// A mounted XFS file system.
pub(super) struct XfsFileSystem {
    inner: RefCell<Xfs<Reader>>,
}

struct Reader(Window);

impl BlockRead for Reader {
    type Error = io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

impl XfsFileSystem {
    /// Mounts the file system in a window.
    pub(super) fn mount(window: Window) -> Result<Self> {
        let length = window.length();
        let inner = Xfs::open(Reader(window), length).map_err(|source| error(&source))?;
        Ok(Self {
            inner: RefCell::new(inner),
        })
    }
}

fn error(error: &Error) -> FileSystemError {
    if let Error::Io { token, offset } = error {
        return FileSystemError::new(format!("failed to read at byte {offset} ({token})"));
    }
    FileSystemError::new(error.token())
}

impl FileSystem for XfsFileSystem {
    fn node(&self, path: &str) -> Result<Option<Node>> {
        let mut inner = self.inner.borrow_mut();
        let path = Path::new(path.as_bytes());
        let inode = match inner.resolve(path) {
            Ok(inode) => inode,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(error(&source)),
        };
        let metadata = inner.metadata(&inode).map_err(|source| error(&source))?;
        Ok(Some(if metadata.is_file() {
            Node::File(metadata.size())
        } else if metadata.is_dir() {
            Node::Directory
        } else if metadata.is_symlink() && metadata.size() <= LINK_BYTES_MAX {
            let target = inner.read_link(path).map_err(|source| error(&source))?;
            Node::Link(String::from_utf8(target).map_err(FileSystemError::new)?)
        } else {
            Node::Other
        }))
    }

    fn list(&self, path: &str, limit: usize) -> Result<Vec<String>> {
        let entries = self
            .inner
            .borrow_mut()
            .read_dir(Path::new(path.as_bytes()))
            .map_err(|source| error(&source))?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| String::from_utf8(entry.name).ok())
            .filter(|name| !matches!(name.as_str(), "." | ".."))
            .take(limit)
            .collect())
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut inner = self.inner.borrow_mut();
        let inode = inner
            .resolve(Path::new(path.as_bytes()))
            .map_err(|source| error(&source))?;
        inner
            .read_file_at(&inode, offset, buffer)
            .map_err(|source| error(&source))
    }

    fn label(&self) -> Option<String> {
        self.inner.borrow().label().map(str::to_owned)
    }

    fn uuid(&self) -> String {
        uuid_text(self.inner.borrow().uuid())
    }
}
