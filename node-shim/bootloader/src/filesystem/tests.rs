use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::disk::Meter;

fn window(bytes: Vec<u8>) -> Window {
    Window::whole(Rc::new(bytes), Meter::new(1 << 30, 1 << 30, Duration::from_mins(10)))
}

#[test]
fn a_panic_of_a_reader_is_an_error() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result: Result<()> = guarded(|| panic!("index out of bounds"));
    std::panic::set_hook(hook);
    assert!(result.unwrap_err().0.contains("damaged"));
}

#[test]
fn uuids_are_written_as_blkid_does() {
    let bytes: [u8; 16] = std::array::from_fn(|index| u8::try_from(index).unwrap());
    assert_eq!(uuid_text(bytes), "00010203-0405-0607-0809-0a0b0c0d0e0f");
}

#[test]
fn a_superblock_of_ext4_that_asks_for_too_much_is_refused() {
    let mut image = vec![0; 4096];
    image[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
    image[1024 + 4..1024 + 8].fill(0xff);
    image[1024 + 0x20] = 1;
    let window = window(image);
    assert_eq!(identify(&window).unwrap(), Some(Kind::Ext4));
    let error = Mounted::mount(Kind::Ext4, window, &Limits::default()).err().unwrap();
    assert!(error.0.contains("more than any real file system"), "{error}");
}

#[test]
fn short_and_empty_windows_are_no_file_system() {
    for length in [0, 1, 511, 512, 1024, 1082, 4096, 0x1_0048] {
        assert_eq!(identify(&window(vec![0; length])).unwrap(), None);
        for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Fat] {
            assert!(Mounted::mount(kind, window(vec![0; length]), &Limits::default()).is_err());
        }
    }
}
