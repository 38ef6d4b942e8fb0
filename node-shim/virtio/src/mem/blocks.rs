//! Which blocks of a region are plugged.

/// A bitmap with a count.
pub(super) struct Blocks {
    words: Vec<u64>,
    len: u64,
    plugged: u64,
}

impl Blocks {
    /// `len` blocks, none of them plugged.
    pub(super) fn new(len: u64) -> Self {
        let words = usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            len,
            plugged: 0,
        }
    }

    /// Number of blocks.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Number of plugged blocks.
    pub(super) const fn plugged(&self) -> u64 {
        self.plugged
    }

    fn is_plugged(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|index| self.words.get(index));
        word.is_some_and(|word| word >> (block % 64) & 1 != 0)
    }

    /// How many of these blocks are plugged; all of them exist.
    pub(super) fn count(&self, first: u64, count: u64) -> u64 {
        (first..first + count).filter(|block| self.is_plugged(*block)).count() as u64
    }

    /// Plugs or unplugs blocks; all of them exist.
    pub(super) fn set(&mut self, first: u64, count: u64, plugged: bool) {
        for block in first..first + count {
            if self.is_plugged(block) == plugged {
                continue;
            }
            let Some(word) = usize::try_from(block / 64)
                .ok()
                .and_then(|index| self.words.get_mut(index))
            else {
                return;
            };
            *word ^= 1 << (block % 64);
            self.plugged = if plugged { self.plugged + 1 } else { self.plugged - 1 };
        }
    }

    /// One bit for each block.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Undoes [`Self::to_bytes`]; `None` when the bytes are not of so many blocks.
    pub(super) fn from_bytes(len: u64, bytes: &[u8]) -> Option<Self> {
        let mut blocks = Self::new(len);
        if bytes.len() != blocks.words.len() * 8 {
            return None;
        }
        for (word, bytes) in blocks.words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let spare = len % 64;
        if spare != 0 && blocks.words.last().is_some_and(|last| last >> spare != 0) {
            return None;
        }
        blocks.plugged = blocks.words.iter().map(|word| u64::from(word.count_ones())).sum();
        Some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_once() {
        let mut blocks = Blocks::new(130);
        blocks.set(60, 10, true);
        blocks.set(65, 10, true);
        assert_eq!(
            (blocks.plugged(), blocks.count(0, 130), blocks.count(60, 5)),
            (15, 15, 5)
        );
        blocks.set(0, 61, false);
        assert_eq!(blocks.plugged(), 14);
        let same = Blocks::from_bytes(130, &blocks.to_bytes()).unwrap();
        assert_eq!((same.plugged(), same.count(61, 14)), (14, 14));
        assert!(
            Blocks::from_bytes(129, &[0xff; 24]).is_none(),
            "a block that does not exist"
        );
        assert!(Blocks::from_bytes(130, &[0; 16]).is_none());
    }
}
