//! A hostile driver of a balloon. Beside not panicking, it must not grow beyond the guest's memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, drive};
use node_shim_virtio::balloon::Balloon;
use node_shim_virtio::device::VirtioDevice;
use node_shim_virtio::testing::{MEMORY_BYTES, guest_memory};

fuzz_target!(|input: (u64, Vec<(u8, u32)>, u64, Vec<Action>)| {
    let (features, config, target, actions) = input;
    let (mut balloon, handle) = Balloon::new(&guest_memory()).expect("an eventfd");
    for (offset, value) in config.iter().take(8) {
        balloon.write_config(u64::from(*offset), &value.to_le_bytes());
    }
    drive(&mut balloon, features, &actions, || {
        handle.set_target(target);
        handle.statistics();
    });
    let status = handle.status();
    assert!(status.target_bytes <= MEMORY_BYTES as u64 && status.actual_bytes <= MEMORY_BYTES as u64);
});
