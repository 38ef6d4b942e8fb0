//! A disk that is damaged: a file system of `images/` with some of its bytes changed, and the files that GRUB would see.

use std::io::{self, Read};
use std::rc::Rc;

use arbitrary::Arbitrary;
use node_shim_bootloader::{Disk, Limits, find};

const BLOCK_BYTES: usize = 4096;

/// Changes bytes where the image is not all zero.
#[derive(Arbitrary, Debug)]
pub struct Change {
    block: u16,
    offset: u16,
    bytes: Vec<u8>,
}

/// An image of which only the blocks that are not all zero are kept.
#[derive(Clone)]
pub struct Image {
    size: u64,
    blocks: Vec<(u32, [u8; BLOCK_BYTES])>,
}

impl Image {
    /// Reads what `images/make` has made.
    ///
    /// # Panics
    /// When it is not of that form: a defect of the target.
    #[must_use]
    pub fn load(packed: &[u8]) -> Self {
        let mut all = Vec::new();
        flate2::read::GzDecoder::new(packed)
            .read_to_end(&mut all)
            .expect("an image is a gzip file");
        let (numbered, size) = all.as_chunks::<{ BLOCK_BYTES + 4 }>();
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        let blocks = numbered
            .iter()
            .map(|block| (number(block), block[4..].try_into().expect("a block")))
            .collect();
        Self {
            size: u64::from(number(size)) * BLOCK_BYTES as u64,
            blocks,
        }
    }

    /// The image with these changes.
    #[must_use]
    pub fn changed(&self, changes: &[Change]) -> Self {
        let mut image = self.clone();
        for change in changes.iter().take(64) {
            let index = usize::from(change.block) % image.blocks.len();
            let start = usize::from(change.offset) % BLOCK_BYTES;
            let bytes = change.bytes.len().min(BLOCK_BYTES - start);
            image.blocks[index].1[start..start + bytes].copy_from_slice(&change.bytes[..bytes]);
            image.seal(index);
        }
        image
    }

    /// Gives a block of btrfs, whose nodes have the size of a block here, the checksum that it needs to be looked at. The others have
    /// none, or a reader that passes over them in fuzzing.
    fn seal(&mut self, index: usize) {
        const IDENTITY: std::ops::Range<usize> = 32..48;
        let is_superblock = |block: &[u8; BLOCK_BYTES]| &block[64..72] == b"_BHRfS_M";
        let superblock = self.blocks.iter().find(|(_, block)| is_superblock(block));
        let Some(identity) = superblock.map(|(_, block)| block[IDENTITY].to_vec()) else {
            return;
        };
        let block = &mut self.blocks[index].1;
        if block[IDENTITY] == identity {
            let sum = crc32c(&block[32..]);
            block[..4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (if sum & 1 == 1 { REVERSED_POLYNOMIAL } else { 0 })
        })
    })
}

impl Disk for Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = usize::try_from(offset).expect("an image is small");
        let mut rest = buffer;
        while !rest.is_empty() {
            let within = at % BLOCK_BYTES;
            let (now, later) = rest.split_at_mut(rest.len().min(BLOCK_BYTES - within));
            let number = u32::try_from(at / BLOCK_BYTES).expect("an image is small");
            match self.blocks.binary_search_by_key(&number, |(number, _)| *number) {
                Ok(index) => now.copy_from_slice(&self.blocks[index].1[within..within + now.len()]),
                Err(_) => now.fill(0),
            }
            at += now.len();
            rest = later;
        }
        Ok(())
    }
}

/// Bounds that keep one run short.
#[must_use]
pub fn limits() -> Limits {
    Limits {
        search_bytes: 64 << 20,
        call_bytes: 8 << 20,
        kernel_bytes: 1 << 20,
        initrd_bytes: 1 << 20,
        unpacked_kernel_bytes: 16 << 20,
        script_steps: 10_000,
        ..Limits::default()
    }
}

/// Boots as far as this goes without a machine. A library's panic would be an error here, so the hook that libFuzzer has set ends the run.
pub fn boot(disk: impl Disk + 'static) {
    match find(Rc::new(disk), &limits()) {
        Ok(image) => {
            let entry = image.entry();
            assert!(entry.kernel_bytes <= limits().kernel_bytes && entry.initrd_bytes <= limits().initrd_bytes);
            for reader in [&mut image.kernel().map(boxed), &mut image.initrd().map(boxed)]
                .into_iter()
                .flatten()
            {
                let _ = io::copy(reader, &mut io::sink());
            }
        }
        Err(error) => assert!(error.to_string().len() < 1 << 16),
    }
}

fn boxed<'image>(reader: impl Read + 'image) -> Box<dyn Read + 'image> {
    Box::new(reader)
}
