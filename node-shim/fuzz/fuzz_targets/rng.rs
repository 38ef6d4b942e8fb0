//! A hostile driver of an entropy device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, drive};
use node_shim_virtio::rng::Rng;

fuzz_target!(|input: (u64, Vec<Action>)| {
    let (features, actions) = input;
    drive(&mut Rng::new(), features, &actions, || {});
});
