//! What goes into the layer: sources named on the command line, and the sorted entries that they amount to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// Why the entries of a layer could not be made.
#[derive(Debug, Error)]
pub(crate) enum EntriesError {
    #[error("{0:?} is not SOURCE=DEST[:MODE]; DEST is an absolute path without `..`, MODE is octal, at most 7777")]
    Source(String),
    #[error("{0:?} is not DEST=TARGET; DEST is an absolute path without `..`")]
    Symlink(String),
    #[error("{0:?} is not UID:GID and not `keep`")]
    Owner(String),
    #[error("failed to read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is a device, socket or pipe: an image holds files, directories and links", .0.display())]
    SpecialFile(PathBuf),
    #[error("two sources give /{}", .0.display())]
    Duplicate(PathBuf),
}

/// Who owns the files of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Whoever owns them on disk.
    Keep,
    /// One user and one group for all.
    Fixed { uid: u32, gid: u32 },
}

impl FromStr for Owner {
    type Err = EntriesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "keep" {
            return Ok(Self::Keep);
        }
        text.split_once(':')
            .and_then(|(uid, gid)| {
                Some(Self::Fixed {
                    uid: uid.parse().ok()?,
                    gid: gid.parse().ok()?,
                })
            })
            .ok_or_else(|| EntriesError::Owner(text.to_owned()))
    }
}

/// `SOURCE=DEST[:MODE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    path: PathBuf,
    /// Relative to the image's root.
    dest: PathBuf,
    mode: Option<u32>,
}

impl FromStr for Source {
    type Err = EntriesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (path, rest) = text.split_once('=')?;
            let (dest, mode) = match rest.rsplit_once(':') {
                Some((dest, mode)) => (
                    dest,
                    Some(u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777)?),
                ),
                None => (rest, None),
            };
            (!path.is_empty()).then_some(())?;
            Some(Self {
                path: path.into(),
                dest: relative(dest)?,
                mode,
            })
        };
        parse().ok_or_else(|| EntriesError::Source(text.to_owned()))
    }
}

/// `DEST=TARGET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Symlink {
    dest: PathBuf,
    target: PathBuf,
}

impl FromStr for Symlink {
    type Err = EntriesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('=')
            .filter(|(_, target)| !target.is_empty())
            .and_then(|(dest, target)| {
                Some(Self {
                    dest: relative(dest)?,
                    target: target.into(),
                })
            })
            .ok_or_else(|| EntriesError::Symlink(text.to_owned()))
    }
}

/// An absolute path without `..`, as a path relative to the root; empty for the root itself.
fn relative(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    path.is_absolute().then_some(())?;
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => relative.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(relative)
}

/// One entry of the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// `inode` is there where the file has other names too.
    File {
        source: PathBuf,
        size: u64,
        inode: Option<Inode>,
    },
    Symlink {
        target: PathBuf,
    },
}

/// Device and inode number: the same file.
pub(crate) type Inode = (u64, u64);

/// The entries of a layer by their path, relative to the image's root.
#[derive(Debug)]
pub(crate) struct Entries {
    owner: Owner,
    by_path: BTreeMap<PathBuf, Entry>,
    /// Directories that exist only because something is in them; a source may still give them.
    implied: BTreeSet<PathBuf>,
}

impl Entries {
    pub(crate) fn new(owner: Owner) -> Self {
        Self {
            owner,
            by_path: BTreeMap::new(),
            implied: BTreeSet::new(),
        }
    }

    /// Sorted, so that a directory comes before what it holds.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.by_path.iter().map(|(path, entry)| (path.as_path(), entry))
    }

    /// Adds a file, or a directory with all that it holds. A symbolic link that is named itself is followed; one in a
    /// directory is kept.
    pub(crate) fn add_source(&mut self, source: &Source) -> Result<(), EntriesError> {
        let read = |source_error| EntriesError::Read {
            path: source.path.clone(),
            source: source_error,
        };
        let path = fs::canonicalize(&source.path).map_err(read)?;
        let metadata = fs::metadata(&path).map_err(read)?;
        self.add(&path, &source.dest, &metadata, source.mode)?;
        if metadata.is_dir() {
            self.add_tree(&path, &source.dest)?;
        }
        Ok(())
    }

    /// Adds a symbolic link.
    pub(crate) fn add_symlink(&mut self, link: Symlink) -> Result<(), EntriesError> {
        let (uid, gid) = match self.owner {
            Owner::Keep => (0, 0),
            Owner::Fixed { uid, gid } => (uid, gid),
        };
        self.insert(
            &link.dest,
            Entry {
                kind: Kind::Symlink { target: link.target },
                mode: 0o777,
                uid,
                gid,
            },
        )
    }

    fn add_tree(&mut self, directory: &Path, dest: &Path) -> Result<(), EntriesError> {
        // Directories still to be read: no recursion, whatever the tree's depth.
        let mut pending = vec![(directory.to_path_buf(), dest.to_path_buf())];
        while let Some((directory, dest)) = pending.pop() {
            let read = |source| EntriesError::Read {
                path: directory.clone(),
                source,
            };
            for child in fs::read_dir(&directory).map_err(read)? {
                let name: OsString = child.map_err(read)?.file_name();
                let (path, dest) = (directory.join(&name), dest.join(&name));
                let metadata = fs::symlink_metadata(&path).map_err(|source| EntriesError::Read {
                    path: path.clone(),
                    source,
                })?;
                self.add(&path, &dest, &metadata, None)?;
                if metadata.is_dir() {
                    pending.push((path, dest));
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, dest: &Path, metadata: &Metadata, mode: Option<u32>) -> Result<(), EntriesError> {
        let file_type = metadata.file_type();
        let kind = if file_type.is_dir() {
            Kind::Directory
        } else if file_type.is_file() {
            let inode = (metadata.nlink() > 1).then(|| (metadata.dev(), metadata.ino()));
            Kind::File {
                source: path.to_path_buf(),
                size: metadata.len(),
                inode,
            }
        } else if file_type.is_symlink() {
            let target = fs::read_link(path).map_err(|source| EntriesError::Read {
                path: path.to_path_buf(),
                source,
            })?;
            Kind::Symlink { target }
        } else {
            return Err(EntriesError::SpecialFile(path.to_path_buf()));
        };
        let (uid, gid) = match self.owner {
            Owner::Keep => (metadata.uid(), metadata.gid()),
            Owner::Fixed { uid, gid } => (uid, gid),
        };
        self.insert(
            dest,
            Entry {
                kind,
                mode: mode.unwrap_or(metadata.mode() & 0o7777),
                uid,
                gid,
            },
        )
    }

    fn insert(&mut self, dest: &Path, entry: Entry) -> Result<(), EntriesError> {
        if dest.as_os_str().is_empty() {
            // The root itself: runtimes make it.
            return match entry.kind {
                Kind::Directory => Ok(()),
                Kind::File { .. } | Kind::Symlink { .. } => Err(EntriesError::Duplicate(dest.to_path_buf())),
            };
        }
        for parent in dest.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            match self.by_path.get(parent).map(|entry| &entry.kind) {
                Some(Kind::Directory) => break,
                Some(Kind::File { .. } | Kind::Symlink { .. }) => {
                    return Err(EntriesError::Duplicate(parent.to_path_buf()));
                }
                None => {
                    let (uid, gid) = (0, 0);
                    self.by_path.insert(
                        parent.to_path_buf(),
                        Entry {
                            kind: Kind::Directory,
                            mode: 0o755,
                            uid,
                            gid,
                        },
                    );
                    self.implied.insert(parent.to_path_buf());
                }
            }
        }
        let was_implied = entry.kind == Kind::Directory && self.implied.remove(dest);
        if self.by_path.insert(dest.to_path_buf(), entry).is_some() && !was_implied {
            return Err(EntriesError::Duplicate(dest.to_path_buf()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_path_destination_and_mode() {
        let source = |path: &str, dest: &str, mode| Source {
            path: path.into(),
            dest: dest.into(),
            mode,
        };
        let cases = [
            ("a=/b", Some(source("a", "b", None))),
            ("dir/a=/b/c:755", Some(source("dir/a", "b/c", Some(0o755)))),
            ("tree=/", Some(source("tree", "", None))),
            ("a=/b/./c//d", Some(source("a", "b/c/d", None))),
            ("a", None),
            ("=/b", None),
            ("a=b", None),
            ("a=/../b", None),
            ("a=/b:99", None),
            ("a=/b:17777", None),
            ("a=/b:", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Source>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn an_owner_is_two_numbers_or_keep() {
        let cases = [
            ("keep", Some(Owner::Keep)),
            ("65532:0", Some(Owner::Fixed { uid: 65532, gid: 0 })),
            ("65532", None),
            ("-1:0", None),
            ("root:root", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Owner>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn two_entries_under_one_path_are_refused_unless_one_was_only_implied() {
        let entry = |kind| Entry {
            kind,
            mode: 0o700,
            uid: 1,
            gid: 1,
        };
        let link = || entry(Kind::Symlink { target: "t".into() });
        let mut entries = Entries::new(Owner::Fixed { uid: 1, gid: 1 });
        entries.insert(Path::new("a/b/c"), link()).unwrap();
        entries.insert(Path::new("a"), entry(Kind::Directory)).unwrap();
        assert!(matches!(
            entries.insert(Path::new("a"), entry(Kind::Directory)),
            Err(EntriesError::Duplicate(_))
        ));
        assert!(matches!(
            entries.insert(Path::new("a/b/c"), link()),
            Err(EntriesError::Duplicate(_))
        ));
        assert!(matches!(
            entries.insert(Path::new("a/b/c/d"), link()),
            Err(EntriesError::Duplicate(_))
        ));
        let modes: Vec<_> = entries
            .iter()
            .map(|(path, entry)| (path.to_str().unwrap(), entry.mode))
            .collect();
        assert_eq!(modes, [("a", 0o700), ("a/b", 0o755), ("a/b/c", 0o700)]);
    }
}
