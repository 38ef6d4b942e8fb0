use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::block::file::FileStorage;
use crate::block::format::{self, Format};
use crate::buffers::Room;
use crate::chain::Segment;
use crate::device::Memory;
use crate::testing::driver::{peek, put};
use crate::testing::guest_memory;

/// Sectors of the disk: not a whole number of blocks.
const SECTORS: u64 = 203;
const SECTOR: u64 = 512;

struct Disk {
    directory: tempfile::TempDir,
    memory: std::sync::Arc<Memory>,
    overlay: Option<OverlayStorage>,
}

/// Does what needs the overlay's lock, again while somebody has it: a child process that another test starts has all descriptors of this
/// process from its fork to its exec.
fn once_free<T>(mut attempt: impl FnMut() -> Result<T, StorageError>) -> Result<T, StorageError> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match attempt() {
            Err(StorageError::InUse { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            result => return result,
        }
    }
}

impl Disk {
    fn new(image: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("image"), image).unwrap();
        let mut disk = Self {
            directory,
            memory: guest_memory(),
            overlay: None,
        };
        disk.open().unwrap();
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&mut self) -> Result<(), StorageError> {
        self.overlay = None;
        self.overlay = Some(once_free(|| {
            OverlayStorage::open(self.image()?, &self.path("overlay"))
        })?);
        Ok(())
    }

    fn image(&self) -> Result<Image, StorageError> {
        let path = self.path("image");
        format::open(File::open(&path).unwrap(), &path, None, None)
    }

    fn storage(&self) -> &OverlayStorage {
        self.overlay.as_ref().unwrap()
    }

    /// Two buffers, so that scattering is tested along.
    fn transfer(&mut self, offset: u64, length: usize, write: bool) {
        let memory = self.memory.clone();
        let first = length / 3;
        let segment = |address, length| Segment {
            address: GuestAddress(address),
            length: u32::try_from(length).unwrap(),
        };
        let segments = [segment(0, first), segment(first as u64, length - first)];
        let mut buffers = Buffers::gather(Room::default(), &memory, &segments).unwrap();
        if write {
            self.storage().write_at(&mut buffers, offset).unwrap();
        } else {
            self.storage().read_at(&mut buffers, length, offset).unwrap();
        }
        assert!(buffers.is_empty());
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        put(&self.memory, 0, bytes);
        self.transfer(offset, bytes.len(), true);
    }

    fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        self.transfer(offset, length, false);
        peek(&self.memory, 0, length)
    }

    fn read_all(&mut self) -> Vec<u8> {
        let length = usize::try_from(self.storage().len()).unwrap();
        self.read(0, length)
    }
}

fn image() -> Vec<u8> {
    (0..SECTORS * SECTOR)
        .map(|at| (at % 251).to_le_bytes()[0] | 1)
        .collect()
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u64,
        sectors: u64,
        byte: u8,
    },
    Zero {
        sector: u64,
        sectors: u64,
        unmap: bool,
    },
    Discard {
        sector: u64,
        sectors: u64,
    },
    Read {
        sector: u64,
        sectors: u64,
    },
    Flush,
    Reopen,
    /// The process dies between two flushes.
    Crash,
    /// The machine does.
    PowerLoss {
        seed: u64,
        flushing: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..SECTORS, 1..40_u64).prop_map(|(sector, count)| (sector, count.min(SECTORS - sector)));
    let step = prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((sector, sectors), byte)| Step::Write { sector, sectors, byte }),
        2 => (range(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Step::Zero { sector, sectors, unmap }),
        2 => range().prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        3 => range().prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        1 => (any::<u64>(), any::<bool>()).prop_map(|(seed, flushing)| Step::PowerLoss { seed, flushing }),
    ];
    prop::collection::vec(step, 1..40)
}

fn bounds(sector: u64, sectors: u64) -> std::ops::Range<usize> {
    let at = |sector: u64| usize::try_from(sector * SECTOR).unwrap();
    at(sector)..at(sector + sectors)
}

/// What each byte may be: the last value, or one that a crash may bring back.
struct Model {
    bytes: Vec<u8>,
    /// Not flushed since it changed, or discarded: anything from its history may be read.
    unsettled: Vec<bool>,
}

impl Model {
    fn change(&mut self, sector: u64, sectors: u64, byte: u8) {
        for at in bounds(sector, sectors) {
            self.bytes[at] = byte;
            self.unsettled[at] = true;
        }
    }

    /// Takes over what was read where anything was possible, and compares the rest.
    fn settle(&mut self, read: &[u8], crashed: bool) {
        for (at, byte) in read.iter().enumerate() {
            if crashed && self.unsettled[at] {
                self.bytes[at] = *byte;
            }
        }
        assert!(self.bytes == read, "the disk is not what was written");
    }
}

/// kill -9: what was written is in the page cache, what the map knew in memory is lost.
fn crash(disk: &mut Disk) {
    let overlay = disk.overlay.take().unwrap();
    // `Drop` finds nothing to write.
    overlay.map_mut().take_dirty();
    drop(overlay);
    disk.open().unwrap();
}

/// The files as they are on stable storage for certain.
struct Stable {
    data: Vec<u8>,
    map: Vec<u8>,
}

impl Stable {
    fn of(disk: &Disk) -> Self {
        let read = |name| std::fs::read(disk.path(name)).unwrap();
        Self {
            data: read("overlay"),
            map: read("overlay.map"),
        }
    }

    /// The power fails: of what was written since, any sectors are there and others are not. `flushing`: in the middle of a flush, when the
    /// data is safe and the map is being written.
    fn power_loss(&self, disk: &mut Disk, mut seed: u64, flushing: bool) {
        if flushing {
            disk.storage().flush().unwrap();
        }
        disk.overlay.as_ref().unwrap().map_mut().take_dirty();
        disk.overlay = None;
        let now = Self::of(disk);
        let mut mixed = |then: &[u8], now: &[u8]| -> Vec<u8> {
            let sectors = then.chunks(512).zip(now.chunks(512));
            sectors
                .flat_map(|(then, now)| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if seed >> 63 == 0 { then } else { now }.to_vec()
                })
                .collect()
        };
        let data = if flushing {
            now.data
        } else {
            mixed(&self.data, &now.data)
        };
        std::fs::write(disk.path("overlay"), data).unwrap();
        std::fs::write(disk.path("overlay.map"), mixed(&self.map, &now.map)).unwrap();
        disk.open().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_is_a_disk(steps in steps()) {
        let mut disk = Disk::new(&image());
        let mut model = Model { bytes: image(), unsettled: vec![false; image().len()] };
        let mut stable = Stable::of(&disk);
        for step in steps {
            match step {
                Step::Write { sector, sectors, byte } => {
                    disk.write(sector * SECTOR, &vec![byte; bounds(sector, sectors).len()]);
                    model.change(sector, sectors, byte);
                }
                Step::Zero { sector, sectors, unmap } => {
                    disk.storage().write_zeroes(sector * SECTOR, sectors * SECTOR, unmap).unwrap();
                    model.change(sector, sectors, 0);
                }
                Step::Discard { sector, sectors } => {
                    disk.storage().discard(sector * SECTOR, sectors * SECTOR).unwrap();
                    // It may read as before or as zeros, and then stays that.
                    let range = bounds(sector, sectors);
                    let read = disk.read(sector * SECTOR, range.len());
                    for (at, byte) in range.zip(read) {
                        prop_assert!(byte == model.bytes[at] || byte == 0);
                        model.unsettled[at] |= byte != model.bytes[at];
                        model.bytes[at] = byte;
                    }
                }
                Step::Read { sector, sectors } => {
                    let range = bounds(sector, sectors);
                    prop_assert!(disk.read(sector * SECTOR, range.len()) == model.bytes[range]);
                }
                Step::Flush => {
                    disk.storage().flush().unwrap();
                    model.unsettled.fill(false);
                    stable = Stable::of(&disk);
                }
                Step::Reopen => {
                    disk.open().unwrap();
                    // An overlay is flushed when it is closed.
                    model.settle(&disk.read_all(), false);
                    model.unsettled.fill(false);
                    stable = Stable::of(&disk);
                }
                Step::Crash => {
                    crash(&mut disk);
                    model.settle(&disk.read_all(), true);
                }
                Step::PowerLoss { seed, flushing } => {
                    stable.power_loss(&mut disk, seed, flushing);
                    model.settle(&disk.read_all(), true);
                    model.unsettled.fill(false);
                    stable = Stable::of(&disk);
                }
            }
        }
        prop_assert!(disk.read_all() == model.bytes);
        prop_assert!(std::fs::read(disk.path("image")).unwrap() == image(), "the image was written");
    }
}

#[test]
fn a_crash_loses_what_was_not_flushed_and_nothing_else() {
    let mut disk = Disk::new(&image());
    disk.write(0, &[7; 4096]);
    disk.storage().flush().unwrap();
    disk.write(8192, &[9; 4096]);
    crash(&mut disk);
    assert_eq!(disk.read(0, 4096), [7; 4096]);
    assert_eq!(disk.read(8192, 4096), image()[8192..12288]);
}

#[test]
fn zeroed_blocks_hide_the_image_and_take_no_space() {
    use std::os::unix::fs::MetadataExt;
    let mut disk = Disk::new(&image());
    disk.storage().write_zeroes(4096, 8192, true).unwrap();
    disk.open().unwrap();
    assert_eq!(disk.read(4096, 8192), [0; 8192]);
    assert_eq!(disk.storage().allocated_bytes(), 8192);
    assert_eq!(std::fs::metadata(disk.path("overlay")).unwrap().blocks(), 0);
}

#[test]
fn one_overlay_has_one_user() {
    let disk = Disk::new(&image());
    let error = OverlayStorage::open(disk.image().unwrap(), &disk.path("overlay"))
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
}

#[test]
fn a_map_of_another_image_or_a_damaged_one_is_refused() {
    let mut disk = Disk::new(&image());
    disk.write(0, &[7; 512]);
    disk.overlay = None;
    let mut other = image();
    other[0] ^= 0xff;
    std::fs::write(disk.path("image"), &other).unwrap();
    let error = disk.open().unwrap_err().to_string();
    assert!(error.contains("belongs to another image"), "{error}");

    std::fs::write(disk.path("image"), image()).unwrap();
    disk.open().unwrap();
    disk.overlay = None;
    let good = std::fs::read(disk.path("overlay.map")).unwrap();
    for (problem, bytes) in [
        ("is not an overlay map", vec![0; good.len()]),
        ("which is not right for a disk of", good[..good.len() - 1].to_vec()),
        ("which is not right for a disk of", Vec::new()),
    ] {
        std::fs::write(disk.path("overlay.map"), bytes).unwrap();
        let error = disk.open().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_map_without_its_data_is_refused() {
    let mut disk = Disk::new(&image());
    disk.write(0, &[7; 512]);
    disk.overlay = None;
    std::fs::remove_file(disk.path("overlay")).unwrap();
    let error = disk.open().unwrap_err().to_string();
    assert!(error.contains("has 0 bytes instead of 103936"), "{error}");
}

#[test]
fn the_format_of_the_image_is_decided_once() {
    let mut disk = Disk::new(&image());
    disk.overlay = None;
    // The same contents, but now called a qcow2 image.
    let Image { storage, .. } = disk.image().unwrap();
    let image = Image {
        format: Format::Qcow2,
        storage,
    };
    let error = OverlayStorage::open(image, &disk.path("overlay"))
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("was made when its image was raw, which is qcow2 now"),
        "{error}"
    );
}

#[test]
fn what_a_guest_writes_makes_no_format() {
    let mut disk = Disk::new(&image());
    disk.write(0, b"QFI\xfb\0\0\0\x03");
    disk.storage().flush().unwrap();
    disk.open().unwrap();
    assert_eq!(disk.read(0, 8), b"QFI\xfb\0\0\0\x03");
    let path = disk.path("empty");
    let storage = FileStorage::open_or_create(&path, 8192).unwrap();
    storage
        .write_at(&mut Buffers::over(&mut [b'K', b'D', b'M', b'V'].repeat(128)), 0)
        .unwrap();
    drop(storage);
    let storage = FileStorage::open_or_create(&path, 8192).unwrap();
    let mut bytes = [0; 4];
    storage.read_bytes_at(&mut bytes, 0).unwrap();
    assert_eq!((&bytes, storage.len()), (b"KDMV", 8192));
}

#[test]
fn an_overlay_is_committed_flattened_and_thrown_away() {
    let mut disk = Disk::new(&image());
    disk.write(0, &[7; 512]);
    disk.write(60 * 512, &[8; 5000 / 512 * 512]);
    disk.storage().write_zeroes(8192, 4096, true).unwrap();
    let expected = disk.read_all();
    let flat = File::create_new(disk.path("flat")).unwrap();
    disk.storage().flatten_into(&flat).unwrap();
    assert_eq!(std::fs::read(disk.path("flat")).unwrap(), expected);
    std::fs::write(disk.path("copy"), image()).unwrap();
    let copy = File::options().read(true).write(true).open(disk.path("copy")).unwrap();
    // Twice, as after a crash.
    for _ in 0..2 {
        disk.storage().commit_into(&copy).unwrap();
        assert_eq!(std::fs::read(disk.path("copy")).unwrap(), expected);
    }
    copy.set_len(512).unwrap();
    assert!(disk.storage().commit_into(&copy).is_err(), "another size");
    let error = throw_away(&disk.path("overlay")).unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
    disk.overlay = None;
    once_free(|| throw_away(&disk.path("overlay"))).unwrap();
    assert!(!disk.path("overlay").exists() && !disk.path("overlay.map").exists());
    throw_away(&disk.path("overlay")).unwrap();
    disk.open().unwrap();
    assert_eq!(disk.read_all(), image());
}

#[test]
fn half_thrown_away_is_thrown_away() {
    let mut disk = Disk::new(&image());
    disk.write(0, &[7; 512]);
    disk.overlay = None;
    std::fs::remove_file(disk.path("overlay.map")).unwrap();
    disk.open().unwrap();
    assert_eq!(disk.read_all(), image());
    disk.write(512, &[9; 512]);
    assert_eq!(disk.read(0, 512), image()[..512], "nothing of the old data comes back");
}

#[test]
fn writers_of_the_same_blocks_do_not_hide_each_others_sectors() {
    for round in 0..12_u8 {
        let disk = Disk::new(&image());
        let overlay = disk.storage();
        // Every thread writes the sectors of its residue class, so that all of them make all blocks appear.
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for sector in (0..SECTORS).filter(|sector| sector % 4 == thread) {
                        let byte = round ^ sector.to_le_bytes()[0];
                        let mut bytes = [byte; 512];
                        overlay
                            .write_at(&mut Buffers::over(&mut bytes), sector * SECTOR)
                            .unwrap();
                        if sector % 16 == 0 {
                            overlay.flush().unwrap();
                        }
                    }
                });
            }
        });
        let mut bytes = vec![0; image().len()];
        overlay.read_bytes_at(&mut bytes, 0).unwrap();
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            assert_eq!(bytes, [round ^ sector.to_le_bytes()[0]; 512], "sector {sector}");
        }
    }
}

#[test]
fn an_unfinished_map_is_made_again() {
    let mut disk = Disk::new(&image());
    disk.overlay = None;
    std::fs::remove_file(disk.path("overlay.map")).unwrap();
    std::fs::write(disk.path("overlay.map.new"), b"half").unwrap();
    disk.open().unwrap();
    assert_eq!(disk.read_all(), image());
}

#[test]
fn an_image_that_is_no_disk_is_refused_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    for (bytes, expected) in [
        (0, "it is empty"),
        (513, "513 bytes are not a whole number of 512-byte sectors"),
    ] {
        std::fs::write(&path, vec![1; bytes]).unwrap();
        let error = FileStorage::open_read_only(&path).unwrap_err().to_string();
        assert!(
            error.starts_with("corrupt disk ") && error.contains(expected),
            "{error}"
        );
    }
    let error = FileStorage::open_read_only(directory.path()).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    let missing = FileStorage::open_read_only(&directory.path().join("none"))
        .unwrap_err()
        .to_string();
    assert!(missing.contains("failed to open"), "{missing}");
}
