//! A hostile driver of a memory device. Beside not panicking, it must not plug more than was ever asked for.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, drive};
use node_shim_virtio::device::Memory;
use node_shim_virtio::mem::{BLOCK_BYTES, Mem, Region};
use node_shim_virtio::state::DeviceState;
use vm_memory::GuestAddress;

const START: u64 = 64 << 20;
const BLOCKS: u64 = 8;

fuzz_target!(|input: (u64, u8, Vec<u8>, Vec<Action>)| {
    let (features, requested, state, actions) = input;
    let region = Region {
        start: START,
        bytes: BLOCKS * BLOCK_BYTES,
    };
    let ranges = [(GuestAddress(START), region.bytes as usize)];
    let memory = Arc::new(Memory::from_ranges(&ranges).expect("address space"));
    let (mut mem, handle) = Mem::new(region, memory).expect("a region of memory");
    if let Ok(state) = serde_json::from_slice::<DeviceState>(&state) {
        use node_shim_virtio::device::VirtioDevice;
        let _ = mem.restore(&state);
        mem.power_on();
    }
    let requested = handle.set_requested(u64::from(requested) * BLOCK_BYTES / 4);
    drive(&mut mem, features, &actions, || {});
    assert!(handle.status().plugged_bytes <= requested);
});
