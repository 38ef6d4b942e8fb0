use std::fs;
use std::time::Duration;

use super::*;
use crate::testing::bz_image;

const MOST: u64 = 1 << 20;

/// A kernel that is not packed: what matters here is only what it is made of.
fn kernel(contents: &str) -> (Vec<u8>, Vec<u8>) {
    let elf = [b"\x7fELF", contents.as_bytes()].concat();
    (bz_image("6", &elf), elf)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn a_kernel_is_unpacked_once() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path(), MOST);
    let (image, elf) = kernel("one");
    assert_eq!(cache.unpack(&image, MOST).unwrap(), elf);
    let [file] = files(directory.path()).try_into().unwrap();
    // A file that says something else with a right digest shows that it is the one that is read.
    let other = b"\x7fELFother";
    fs::write(&file, [&other[..], &Sha256::digest(other)].concat()).unwrap();
    assert_eq!(cache.unpack(&image, MOST).unwrap(), other);
}

#[test]
fn a_damaged_file_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path(), MOST);
    let (image, elf) = kernel("one");
    for damage in [&b""[..], b"short", &[0; 100]] {
        cache.unpack(&image, MOST).unwrap();
        let [file] = files(directory.path()).try_into().unwrap();
        fs::write(&file, damage).unwrap();
        assert_eq!(cache.unpack(&image, MOST).unwrap(), elf);
    }
    let [file] = files(directory.path()).try_into().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[5] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(cache.unpack(&image, MOST).unwrap(), elf);
}

#[test]
fn the_oldest_kernels_make_room() {
    let directory = tempfile::tempdir().unwrap();
    let one_file = 1004 + DIGEST_BYTES;
    let cache = Cache::new(directory.path(), 2 * one_file);
    let long = |letter: &str| kernel(&letter.repeat(1000));
    for letter in ["a", "b"] {
        cache.unpack(&long(letter).0, MOST).unwrap();
    }
    for (seconds, file) in files(directory.path()).iter().enumerate() {
        let age = Duration::from_secs(1000 - seconds as u64);
        File::open(file).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }
    let [oldest, newer] = files(directory.path()).try_into().unwrap();
    // What is used is not old any more.
    let used = ["a", "b"]
        .into_iter()
        .find(|letter| oldest.ends_with(name(&Sha256::digest(payload(&long(letter).0).unwrap()))))
        .unwrap();
    cache.unpack(&long(used).0, MOST).unwrap();
    cache.unpack(&long("c").0, MOST).unwrap();
    let left = files(directory.path());
    assert_eq!(left.len(), 2);
    assert!(left.contains(&oldest) && !left.contains(&newer));
    // One that is larger than all is not kept at all.
    cache.unpack(&kernel(&"d".repeat(5000)).0, MOST).unwrap();
    assert_eq!(files(directory.path()), left);
}

#[test]
fn writers_do_not_disturb_each_other_and_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let abandoned = directory.path().join(".new-1-1");
    fs::write(&abandoned, "half a kernel").unwrap();
    File::open(&abandoned)
        .unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(ABANDONED_SECONDS + 60))
        .unwrap();
    let (image, elf) = kernel(&"e".repeat(300_000));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = Cache::new(directory.path(), MOST);
                for _ in 0..10 {
                    assert!(cache.unpack(&image, MOST).unwrap() == elf);
                    let _ = fs::remove_file(directory.path().join(name(&Sha256::digest(&elf))));
                }
            });
        }
    });
    assert_eq!(files(directory.path()).len().min(1), files(directory.path()).len());
    assert!(!abandoned.exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let error = Cache::new("/nonexistent/cache", MOST)
        .unpack(&kernel("f").0, MOST)
        .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/cache"), "{error}");
}
