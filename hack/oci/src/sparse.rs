//! A file in which blocks of zeros become holes: a disk image stays small in the cache.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// Block size of the usual file systems, in bytes.
const BLOCK: usize = 4096;
const BLOCK_STEP: i64 = 4096;

/// Writes a new, empty file from its beginning to its end.
pub(crate) struct SparseFile {
    file: File,
    block: Vec<u8>,
}

impl SparseFile {
    /// `file` must be empty, with its position at 0.
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            block: Vec::with_capacity(BLOCK),
        }
    }

    /// Writes what is left and sets the length, which a hole at the end does not do.
    pub(crate) fn finish(mut self) -> io::Result<File> {
        self.file.write_all(&self.block)?;
        let length = self.file.stream_position()?;
        self.file.set_len(length)?;
        Ok(self.file)
    }
}

impl Write for SparseFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.is_empty() && bytes.len() >= BLOCK {
            // The usual case, and the reason for whole blocks: nothing is copied.
            let whole = &bytes[..bytes.len() - bytes.len() % BLOCK];
            for block in whole.chunks(BLOCK) {
                write_block(&mut self.file, block)?;
            }
            return Ok(whole.len());
        }
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            write_block(&mut self.file, &self.block)?;
            self.block.clear();
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn write_block(file: &mut File, block: &[u8]) -> io::Result<()> {
    if block.iter().all(|byte| *byte == 0) {
        file.seek(SeekFrom::Current(BLOCK_STEP)).map(|_| ())
    } else {
        file.write_all(block)
    }
}
