//! Unpacked kernels, kept in a directory by what they were unpacked from.
//!
//! A file's name is the SHA-256 of the payload that it was made of; its last 32 bytes are the SHA-256 of its contents before them. So a
//! file that was damaged is noticed, and a file that another process made is as good as an own one. Who can write to the directory can
//! choose the kernel: it must belong to one VM, or to one that all trust.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::unpack::{UnpackError, payload, unpack};

/// Bytes of the digest at a file's end.
const DIGEST_BYTES: u64 = 32;
/// What names start with while a file is written.
const NEW: &str = ".new-";
/// Age of such a file, in seconds, after which whoever wrote it is taken for dead.
const ABANDONED_SECONDS: u64 = 600;

/// Why the cache cannot be used. The kernel may still be unpacked without it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The kernel itself.
    #[error(transparent)]
    Unpack(UnpackError),
    /// The directory cannot be written.
    #[error(
        "failed to keep the unpacked kernel in {directory}: {source}; make the directory writable, or do without it"
    )]
    Write {
        /// The cache.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A directory with unpacked kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
    bytes_max: u64,
}

impl Cache {
    /// Uses an existing directory, for up to `bytes_max` bytes: the oldest files go first.
    pub fn new(directory: impl Into<PathBuf>, bytes_max: u64) -> Self {
        Self {
            directory: directory.into(),
            bytes_max,
        }
    }

    /// The ELF file of a bzImage, of at most `most` bytes: from the cache, or unpacked and put there.
    ///
    /// # Errors
    /// Where the kernel cannot be unpacked or kept.
    pub fn unpack(&self, image: &[u8], most: u64) -> Result<Vec<u8>, CacheError> {
        let digest = Sha256::digest(payload(image).map_err(CacheError::Unpack)?);
        let path = self.directory.join(name(&digest));
        if let Some(kernel) = read(&path, most) {
            // The date says when it was used last.
            let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(kernel);
        }
        let kernel = unpack(image, most).map_err(CacheError::Unpack)?;
        self.keep(&path, &kernel).map_err(|source| CacheError::Write {
            directory: self.directory.clone(),
            source,
        })?;
        Ok(kernel)
    }

    /// Writes a file under another name and renames it: there is never a part of one under its own.
    fn keep(&self, path: &Path, kernel: &[u8]) -> io::Result<()> {
        let bytes = kernel.len() as u64 + DIGEST_BYTES;
        if bytes > self.bytes_max {
            return Ok(());
        }
        self.make_room(bytes)?;
        let (temporary, file) = self.create()?;
        let written = write(file, kernel).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Makes a file that nobody else writes to: processes of other containers may have the same number.
    fn create(&self) -> io::Result<(PathBuf, File)> {
        let age = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let mut attempts = 0_u128..;
        loop {
            let number = age.as_nanos() + attempts.next().unwrap_or_default();
            let path = self.directory.join(format!("{NEW}{}-{number}", process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => return Ok((path, opened?)),
            }
        }
    }

    /// Removes the files that were not used for longest, until `bytes` more fit. Another process may remove the same ones.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let now = SystemTime::now();
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(NEW) {
                if now
                    .duration_since(used)
                    .is_ok_and(|age| age.as_secs() > ABANDONED_SECONDS)
                {
                    let _ = fs::remove_file(entry.path());
                }
            } else if is_name(&name) {
                files.push((used, metadata.len(), entry.path()));
            }
        }
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in files {
            if total.saturating_add(bytes) <= self.bytes_max {
                break;
            }
            let _ = fs::remove_file(path);
            total -= size;
        }
        Ok(())
    }
}

fn name(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

fn is_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn write(mut file: File, kernel: &[u8]) -> io::Result<()> {
    file.write_all(kernel)?;
    file.write_all(&Sha256::digest(kernel))
}

/// A file's contents, if it is whole. One that is not is removed.
fn read(path: &Path, most: u64) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    let mut contents = Vec::new();
    if bytes > most.saturating_add(DIGEST_BYTES) {
        return None;
    }
    file.take(bytes).read_to_end(&mut contents).ok()?;
    let kernel_bytes = contents.len().checked_sub(usize::try_from(DIGEST_BYTES).ok()?);
    let whole = kernel_bytes.is_some_and(|end| Sha256::digest(&contents[..end])[..] == contents[end..]);
    if !whole {
        let _ = fs::remove_file(path);
        return None;
    }
    contents.truncate(kernel_bytes?);
    Some(contents)
}

#[cfg(test)]
mod tests;
