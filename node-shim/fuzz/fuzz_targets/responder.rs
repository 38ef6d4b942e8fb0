//! Frames of a hostile guest against the ARP and DHCP responder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::guest;
use node_shim_virtio::net::responder::{HEAD_BYTES, MAX_INSPECTED_BYTES, Protocol, Responder, Verdict};

fuzz_target!(|frame: &[u8]| {
    let frame = &frame[..frame.len().min(MAX_INSPECTED_BYTES)];
    let responder = Responder::new(guest());
    let verdict = responder.judge(&frame[..frame.len().min(HEAD_BYTES)]);
    if verdict == Verdict::Forward {
        assert_eq!(frame[6..12], guest().mac.0);
    }
    for protocol in [Protocol::Arp, Protocol::Dhcp4] {
        if let Some(reply) = responder.answer(protocol, frame) {
            assert!(reply.len() <= 14 + usize::from(guest().mtu), "{} bytes", reply.len());
            assert_eq!(reply[6..12], guest().gateway_mac.0);
        }
    }
});
