//! The map of an overlay: its header on disk, and one bit for each block. No IO.

use std::collections::BTreeSet;

use crate::block::format::Format;

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 4096;
/// [`BLOCK_BYTES`], for arrays.
pub const BLOCK_LENGTH: usize = 4096;
/// Bytes of the header, which is one page of the file.
pub const HEADER_BYTES: usize = 4096;
/// Bytes that are written to the file at once.
pub const PAGE_BYTES: usize = 4096;
const WORD_BITS: u64 = 64;
const WORDS_PER_PAGE: usize = PAGE_BYTES / 8;
const MAGIC: [u8; 8] = *b"TANDEMOV";
const VERSION: u32 = 2;
/// Magic, version, block size, disk size, fingerprint, format.
const CHECKED_BYTES: usize = 40;

/// What a map says about the overlay that it belongs to.
///
/// | offset | bytes, little-endian | what |
/// |---|---|---|
/// | 0 | 8 | `TANDEMOV` |
/// | 8 | 4 | version: 2 |
/// | 12 | 4 | bytes of a block: 4096 |
/// | 16 | 8 | bytes of the disk |
/// | 24 | 8 | fingerprint of the image |
/// | 32 | 4 | format of the image, a [`Format`] |
/// | 40 | 8 | FNV-1a of the bytes before |
/// | 4096 | 8 for each 64 blocks | bits, the first block lowest |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Of the image's contents.
    pub fingerprint: u64,
    /// Of the image. It is decided once, when the overlay is made.
    pub format: Format,
}

/// Why a header is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another kind of file.
    #[error("is not an overlay map")]
    Magic,
    /// Made by another version.
    #[error("has version {0}, and this build knows {VERSION} only")]
    Version(u32),
    /// Another block size.
    #[error("has blocks of {0} bytes, and this build knows {BLOCK_BYTES} only")]
    BlockSize(u32),
    /// An image of an unknown format.
    #[error("is over an image of format {0}, which this build does not know")]
    Format(u32),
    /// Damaged.
    #[error("is damaged: its header's checksum is wrong")]
    Checksum,
}

impl Header {
    /// The first page of a map file.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.disk_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[32..36].copy_from_slice(&(self.format as u32).to_le_bytes());
        let checksum = Fnv::of(&bytes[..CHECKED_BYTES]);
        bytes[40..48].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the first page of a map file.
    ///
    /// # Errors
    /// When it is not one of this version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes[..8] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if word(8) != VERSION {
            return Err(HeaderError::Version(word(8)));
        }
        if u64::from(word(12)) != BLOCK_BYTES {
            return Err(HeaderError::BlockSize(word(12)));
        }
        if long(40) != Fnv::of(&bytes[..CHECKED_BYTES]) {
            return Err(HeaderError::Checksum);
        }
        Ok(Self {
            disk_bytes: long(16),
            fingerprint: long(24),
            format: Format::from_number(word(32)).ok_or(HeaderError::Format(word(32)))?,
        })
    }

    /// Bytes of the bits that follow, in whole pages.
    pub fn map_bytes(&self) -> u64 {
        blocks(self.disk_bytes).div_ceil(8).next_multiple_of(PAGE_BYTES as u64)
    }
}

fn blocks(disk_bytes: u64) -> u64 {
    disk_bytes.div_ceil(BLOCK_BYTES)
}

/// The first block after those in the same word.
fn word_end(block: u64) -> u64 {
    (block | (WORD_BITS - 1)).saturating_add(1)
}

/// A page of the file and its bytes.
pub type Page = (u64, [u8; PAGE_BYTES]);

/// Index of a page's first word.
fn page_start(page: u64) -> usize {
    usize::try_from(page)
        .unwrap_or(usize::MAX)
        .saturating_mul(WORDS_PER_PAGE)
}

/// Which blocks the overlay has.
#[derive(Debug)]
pub struct BlockMap {
    words: Vec<u64>,
    /// Bits beyond the last block do not count.
    blocks: u64,
    /// Pages that are not on stable storage as they are here.
    dirty: BTreeSet<u64>,
}

impl BlockMap {
    /// The map of a disk of `disk_bytes` without any block. Memory of a page of it is taken when a bit is set there.
    pub fn empty(disk_bytes: u64) -> Self {
        let blocks = blocks(disk_bytes);
        let words = usize::try_from(blocks.div_ceil(WORD_BITS)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            blocks,
            dirty: BTreeSet::new(),
        }
    }

    /// Takes over a page of the file; what is beyond the disk does not count.
    pub fn load(&mut self, page: u64, bytes: &[u8; PAGE_BYTES]) {
        // Nothing is written where there is nothing, so that a sparse map stays so in memory.
        if bytes.iter().all(|byte| *byte == 0) {
            return;
        }
        let words = self.words.iter_mut().skip(page_start(page));
        for (word, chunk) in words.zip(bytes.chunks_exact(8)) {
            let mut long = [0; 8];
            long.copy_from_slice(chunk);
            *word = u64::from_le_bytes(long);
        }
        let excess = self.blocks % WORD_BITS;
        if let Some(last) = self.words.last_mut()
            && excess != 0
        {
            *last &= u64::MAX >> (WORD_BITS - excess);
        }
    }

    /// Number of blocks that the overlay has.
    pub fn present(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether the overlay has `block`, and the end of the run of blocks, before `end`, for which that is the same.
    pub fn run(&self, block: u64, end: u64) -> (bool, u64) {
        let present = self.word(block) >> (block % WORD_BITS) & 1 == 1;
        let mut at = block;
        let held = (self.words.len() as u64).saturating_mul(WORD_BITS);
        // Beyond what is held there are no blocks: one word of that tells.
        let last = if present { end } else { end.min(held) };
        while at < last {
            // Ones where it is different, from `at` on.
            let word = self.word(at);
            let different = if present { !word } else { word } >> (at % WORD_BITS);
            if different != 0 {
                return (present, (at + u64::from(different.trailing_zeros())).min(end));
            }
            at = word_end(at);
        }
        (present, end.max(block + 1))
    }

    /// The overlay has the blocks from `first` up to `end`.
    pub fn set(&mut self, first: u64, end: u64) {
        let end = end.min(self.blocks);
        let mut at = first;
        while at < end {
            let next = word_end(at).min(end);
            let ones = u64::MAX >> (WORD_BITS - (next - at)) << (at % WORD_BITS);
            let index = usize::try_from(at / WORD_BITS).unwrap_or(usize::MAX);
            if let Some(word) = self.words.get_mut(index)
                && *word & ones != ones
            {
                *word |= ones;
                self.dirty.insert((index / WORDS_PER_PAGE) as u64);
            }
            at = next;
        }
    }

    /// Takes the pages that changed since they were last taken, in order, with their bytes as they are now.
    pub fn take_dirty(&mut self) -> Vec<Page> {
        let pages = std::mem::take(&mut self.dirty);
        pages.into_iter().map(|page| (page, self.page(page))).collect()
    }

    /// Pages that were taken are not on stable storage after all.
    pub fn put_back_dirty(&mut self, pages: &[Page]) {
        self.dirty.extend(pages.iter().map(|(page, _)| *page));
    }

    /// The bytes of a page.
    pub fn page(&self, page: u64) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        let first = page_start(page);
        for (chunk, word) in bytes.chunks_mut(8).zip(self.words.iter().skip(first)) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn word(&self, block: u64) -> u64 {
        usize::try_from(block / WORD_BITS)
            .ok()
            .and_then(|index| self.words.get(index))
            .copied()
            .unwrap_or(0)
    }
}

/// 64-bit FNV-1a (draft-eastlake-fnv).
pub struct Fnv(u64);

impl Fnv {
    /// The hash of nothing.
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// The hash of some bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::new();
        hash.add(bytes);
        hash.finish()
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The hash of what was added.
    pub const fn finish(&self) -> u64 {
        self.0
    }
}

impl Default for Fnv {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_and_damage_is_noticed() {
        let header = Header {
            disk_bytes: 10 << 30,
            fingerprint: 42,
            format: Format::Qcow2,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!(header.map_bytes(), 320 << 10);
        for (at, expected) in [
            (0, HeaderError::Magic),
            (8, HeaderError::Version(0xfd)),
            (12, HeaderError::BlockSize(0x10ff)),
            (17, HeaderError::Checksum),
            (30, HeaderError::Checksum),
            (33, HeaderError::Checksum),
            (41, HeaderError::Checksum),
        ] {
            let mut damaged = bytes;
            damaged[at] ^= 0xff;
            assert_eq!(Header::decode(&damaged), Err(expected), "byte {at}");
        }
    }

    #[test]
    fn runs_and_dirty_pages() {
        let mut map = BlockMap::empty(1 << 30);
        assert_eq!(map.run(0, 1000), (false, 1000));
        map.set(60, 200);
        map.set(40_000, 40_001);
        assert_eq!(map.run(0, 1000), (false, 60));
        assert_eq!(map.run(60, 1000), (true, 200));
        assert_eq!(map.run(199, 1000), (true, 200));
        assert_eq!(map.run(100, 150), (true, 150));
        assert_eq!(map.run(200, 1000), (false, 1000));
        let pages = map.take_dirty();
        assert_eq!(pages.iter().map(|(page, _)| *page).collect::<Vec<_>>(), [0, 1]);
        map.set(64, 128);
        assert!(map.take_dirty().is_empty(), "nothing changed");
        map.put_back_dirty(&pages[1..]);
        assert_eq!(map.take_dirty(), pages[1..]);
        assert_eq!(map.present(), 141);
        let mut reread = BlockMap::empty(1 << 30);
        for (page, bytes) in &pages {
            reread.load(*page, bytes);
        }
        assert_eq!((reread.run(40_000, 40_010), reread.present()), ((true, 40_001), 141));
    }

    #[test]
    fn bits_beyond_the_disk_are_never_set() {
        let mut map = BlockMap::empty(3 * BLOCK_BYTES);
        map.set(0, u64::MAX);
        assert_eq!(map.present(), 3);
        assert_eq!(map.run(u64::MAX - 1, u64::MAX), (false, u64::MAX));
        let mut map = BlockMap::empty(3 * BLOCK_BYTES);
        for page in [0, 1, u64::MAX] {
            map.load(page, &[0xff; PAGE_BYTES]);
        }
        assert_eq!(map.present(), 3);
    }
}
