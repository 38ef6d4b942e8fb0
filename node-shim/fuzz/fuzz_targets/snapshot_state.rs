//! A hostile `state` file of a snapshot: with whatever header it has, and behind a right one. What is accepted is written as what reads back
//! the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "the VMM's own module")]
#[path = "../../vmm/src/snapshot/state.rs"]
mod state;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut framed = state::MAGIC.to_vec();
    framed.extend_from_slice(&state::VERSION.to_le_bytes());
    framed.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    framed.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    framed.extend_from_slice(bytes);
    check(&framed);
});

fn check(bytes: &[u8]) {
    if let Ok(decoded) = state::decode(bytes) {
        let written = state::encode(&decoded).expect("a state can be written");
        let again = state::decode(&written).expect("and be read");
        assert_eq!(state::encode(&again).expect("and be written again"), written);
    }
}
