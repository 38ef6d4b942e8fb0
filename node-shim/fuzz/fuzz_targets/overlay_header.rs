//! A hostile overlay map: its header, and runs and changes of its bits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_virtio::block::overlay::map::{BlockMap, HEADER_BYTES, Header};

fuzz_target!(|input: (Vec<u8>, u32, Vec<u8>, Vec<(u32, u32)>)| {
    let (header, disk_bytes, bits, ranges) = input;
    let mut page = [0; HEADER_BYTES];
    let length = header.len().min(HEADER_BYTES);
    page[..length].copy_from_slice(&header[..length]);
    if let Ok(header) = Header::decode(&page) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
    let mut map = BlockMap::decode(u64::from(disk_bytes), &bits);
    for (first, end) in ranges.into_iter().take(32) {
        let (first, end) = (u64::from(first), u64::from(end));
        let before = map.present();
        map.set(first, end);
        assert!(map.present() >= before);
        if first < end {
            let (_, run_end) = map.run(first, end);
            assert!(run_end > first && run_end <= end);
        }
        for page in map.dirty_pages() {
            map.page(page);
        }
    }
});
