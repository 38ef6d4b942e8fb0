//! Which heads of a queue are in flight. A driver that offers one twice would make two requests share their buffers, and the second
//! completion would free what the first still uses (CVE-2026-45782 is what came of it elsewhere).

/// A set of descriptor indices.
#[derive(Debug, Default)]
pub struct HeadSet {
    bits: Vec<u64>,
}

impl HeadSet {
    /// For a queue of `size` entries, empty.
    pub fn new(size: u16) -> Self {
        Self {
            bits: vec![0; usize::from(size).div_ceil(64)],
        }
    }

    /// Adds a head. `false` when it is there already, or no index of the queue.
    pub fn insert(&mut self, head: u16) -> bool {
        let bit = 1_u64 << (head % 64);
        match self.bits.get_mut(usize::from(head / 64)) {
            Some(bits) if *bits & bit == 0 => {
                *bits |= bit;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Removes a head.
    pub fn remove(&mut self, head: u16) {
        if let Some(bits) = self.bits.get_mut(usize::from(head / 64)) {
            *bits &= !(1 << (head % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_in_flight_once() {
        let mut heads = HeadSet::new(256);
        for head in [0, 63, 64, 255] {
            assert!(heads.insert(head), "{head}");
            assert!(!heads.insert(head), "{head} again");
            heads.remove(head);
            assert!(heads.insert(head), "{head} after it came back");
        }
        for head in [256, u16::MAX] {
            assert!(!heads.insert(head), "{head} is no index");
            heads.remove(head);
        }
    }
}
