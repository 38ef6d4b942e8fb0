//! One layer: a tar of the entries (OCI image specification, "Image Layer Filesystem Changeset").

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::GzBuilder;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

use crate::digest::{Digest, Hashing};
use crate::entries::{Entries, Entry, Inode, Kind};

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
}

impl Compression {
    /// The layer's media type.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }
}

/// What a manifest and a config say of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    /// Of the blob, as it is stored.
    pub(crate) blob: Digest,
    /// Of the tar, uncompressed: the config's `diff_ids`.
    pub(crate) tar: Digest,
}

/// Writes the layer into `output`.
///
/// # Errors
///
/// Names the file that could not be read, or that changed its size since it was listed.
pub(crate) fn write(entries: &Entries, compression: Compression, output: impl Write) -> io::Result<Layer> {
    let blob = Hashing::new(output);
    match compression {
        Compression::None => {
            let (blob, tar) = write_tar(entries, blob)?;
            Ok(Layer {
                blob: blob.finish().1,
                tar,
            })
        }
        Compression::Gzip => {
            let gzip: GzEncoder<_> = GzBuilder::new().write(blob, flate2::Compression::default());
            let (gzip, tar) = write_tar(entries, gzip)?;
            Ok(Layer {
                blob: gzip.finish()?.finish().1,
                tar,
            })
        }
    }
}

fn write_tar<W: Write>(entries: &Entries, output: W) -> io::Result<(W, Digest)> {
    let mut tar = tar::Builder::new(Hashing::new(output));
    let mut names: HashMap<Inode, PathBuf> = HashMap::new();
    for (path, entry) in entries.iter() {
        write_entry(&mut tar, &mut names, path, entry)
            .map_err(|error| io::Error::new(error.kind(), format!("/{}: {error}", path.display())))?;
    }
    Ok(tar.into_inner()?.finish())
}

fn write_entry<W: Write>(
    tar: &mut tar::Builder<W>,
    names: &mut HashMap<Inode, PathBuf>,
    path: &Path,
    entry: &Entry,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(0);
    header.set_size(0);
    match &entry.kind {
        Kind::Directory => {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, path, io::empty())
        }
        Kind::Symlink { target } => {
            header.set_entry_type(EntryType::Symlink);
            tar.append_link(&mut header, path, target)
        }
        Kind::File { source, size, inode } => {
            if let Some(first) = inode.and_then(|inode| names.get(&inode)) {
                header.set_entry_type(EntryType::Link);
                return tar.append_link(&mut header, path, first);
            }
            header.set_entry_type(EntryType::Regular);
            header.set_size(*size);
            tar.append_data(
                &mut header,
                path,
                Exactly {
                    file: File::open(source)?,
                    left: *size,
                },
            )?;
            if let Some(inode) = inode {
                names.insert(*inode, path.to_path_buf());
            }
            Ok(())
        }
    }
}

/// Reads `left` bytes, no more; fewer is an error. A tar whose file is shorter than its header says is broken from there on.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was packed",
            ));
        }
        self.left -= read as u64;
        Ok(read)
    }
}
