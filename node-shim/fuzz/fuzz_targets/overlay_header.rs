//! A hostile overlay map: its header, and runs and changes of its bits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_virtio::block::overlay::map::{BLOCK_BYTES, BlockMap, HEADER_BYTES, Header, PAGE_BYTES};

fuzz_target!(|input: (Vec<u8>, u32, Vec<u8>, Vec<(u32, u32)>)| {
    let (header, disk_bytes, bits, ranges) = input;
    let mut page = [0; HEADER_BYTES];
    let length = header.len().min(HEADER_BYTES);
    page[..length].copy_from_slice(&header[..length]);
    if let Ok(header) = Header::decode(&page) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
    let mut map = BlockMap::empty(u64::from(disk_bytes));
    for (page, chunk) in (0..).zip(bits.chunks(PAGE_BYTES)) {
        let mut bytes = [0; PAGE_BYTES];
        bytes[..chunk.len()].copy_from_slice(chunk);
        map.load(page, &bytes);
    }
    let blocks = u64::from(disk_bytes).div_ceil(BLOCK_BYTES);
    assert!(map.present() <= blocks);
    for (first, end) in ranges.into_iter().take(32) {
        let (first, end) = (u64::from(first), u64::from(end));
        let before = map.present();
        map.set(first, end);
        assert!(map.present() >= before);
        if first < end {
            let (_, run_end) = map.run(first, end);
            assert!(run_end > first && run_end <= end);
        }
        assert!(map.present() <= blocks);
        let pages = map.take_dirty();
        map.put_back_dirty(&pages);
        assert_eq!(map.take_dirty(), pages);
    }
});
