//! A hostile driver of a console, and somebody who types.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, drive};
use node_shim_virtio::console::{Console, Port, Sink, Size};
use node_shim_virtio::wake::Wake;

struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _bytes: &[u8]) {}
}

fuzz_target!(|input: (u64, Vec<Action>, Vec<u8>)| {
    let (features, actions, typed) = input;
    let drained = Arc::new(Wake::new().expect("an eventfd"));
    let port = Port::new(drained).expect("an eventfd");
    let mut size = Size::default();
    drive(
        &mut Console::new(port.clone(), Box::new(Nowhere)),
        features,
        &actions,
        || {
            port.input(&typed);
            size.columns = size.columns.wrapping_add(1);
            port.resize(size);
        },
    );
});
