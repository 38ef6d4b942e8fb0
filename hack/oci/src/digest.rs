//! SHA-256 and size of what passes through.

use std::fmt::Write as _;
use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

/// Names a blob by its content (OCI image specification, "Digests").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    /// 64 hexadecimal digits.
    pub(crate) hex: String,
    /// Length in bytes.
    pub(crate) size: u64,
}

impl Digest {
    /// The digest of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut hashing = Hashing::new(io::sink());
        hashing.update(bytes);
        hashing.finish().1
    }

    /// As manifests write it: `sha256:…`.
    pub(crate) fn name(&self) -> String {
        format!("sha256:{}", self.hex)
    }
}

/// Hashes and counts what is written, and passes it on.
pub(crate) struct Hashing<W> {
    inner: W,
    sha256: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self {
            inner,
            sha256: Sha256::new(),
            size: 0,
        }
    }

    /// The writer beneath, and the digest of everything that was written.
    pub(crate) fn finish(self) -> (W, Digest) {
        let hex = self
            .sha256
            .finalize()
            .iter()
            .fold(String::with_capacity(64), |mut hex, byte| {
                // Writing to a String cannot fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            });
        (self.inner, Digest { hex, size: self.size })
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.size += bytes.len() as u64;
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
