//! The page numbers in a chain of the inflate or deflate queue (virtio 1.2, 5.5.6): 32-bit little-endian numbers of 4 KiB pages.

use std::io;

use super::handle::PAGE_SHIFT;
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{DeviceError, Memory};

/// Most numbers in one chain: each may cost a system call. Linux has 256.
pub(super) const MAX_PAGES: usize = 1024;

pub(super) fn unreadable(source: &io::Error) -> DeviceError {
    DeviceError::Driver {
        device: "balloon".into(),
        what: format!("a buffer cannot be read: {source}"),
    }
}

/// Calls with address and bytes of each run of consecutive pages.
///
/// # Errors
/// When the chain is not a list of at most [`MAX_PAGES`] numbers.
pub(super) fn for_each_run(
    memory: &Memory,
    chain: &Chain,
    room: &mut Room,
    mut each: impl FnMut(u64, u64),
) -> Result<(), DeviceError> {
    let bytes = usize::try_from(chain.readable_bytes()).unwrap_or(usize::MAX);
    if bytes > 4 * MAX_PAGES || bytes % 4 != 0 {
        return Err(DeviceError::Driver {
            device: "balloon".into(),
            what: format!("{bytes} bytes are no list of at most {MAX_PAGES} page numbers"),
        });
    }
    let mut buffers =
        Buffers::gather(std::mem::take(room), memory, chain.readable()).map_err(|source| unreadable(&source))?;
    let mut list = [0; 4 * MAX_PAGES];
    let count = buffers.copy_into(&mut list[..bytes]);
    *room = buffers.into_room();
    for_each_run_of(&list[..count], &mut each);
    Ok(())
}

/// Linux fills its list downwards as often as upwards, so runs grow at both ends.
fn for_each_run_of(list: &[u8], each: &mut impl FnMut(u64, u64)) {
    let mut run: Option<(u64, u64)> = None;
    for number in list.chunks_exact(4) {
        let page = u64::from(u32::from_le_bytes(number.try_into().unwrap_or_default()));
        run = match run {
            Some((first, count)) if page == first + count => Some((first, count + 1)),
            Some((first, count)) if page + 1 == first => Some((page, count + 1)),
            other => {
                if let Some((first, count)) = other {
                    each(first << PAGE_SHIFT, count << PAGE_SHIFT);
                }
                Some((page, 1))
            }
        };
    }
    if let Some((first, count)) = run {
        each(first << PAGE_SHIFT, count << PAGE_SHIFT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_numbers_are_one_run() {
        for (pages, expected) in [
            (vec![], vec![]),
            (vec![5], vec![(0x5000, 0x1000)]),
            (vec![5, 6, 7, 9], vec![(0x5000, 0x3000), (0x9000, 0x1000)]),
            (vec![7, 6, 5], vec![(0x5000, 0x3000)]),
            (vec![5, 5], vec![(0x5000, 0x1000), (0x5000, 0x1000)]),
            (vec![u32::MAX, 0], vec![(0x0fff_ffff_f000, 0x1000), (0, 0x1000)]),
        ] {
            let list: Vec<u8> = pages.iter().flat_map(|page: &u32| page.to_le_bytes()).collect();
            let mut runs = Vec::new();
            for_each_run_of(&list, &mut |start, bytes| runs.push((start, bytes)));
            assert_eq!(runs, expected, "{pages:x?}");
        }
    }
}
