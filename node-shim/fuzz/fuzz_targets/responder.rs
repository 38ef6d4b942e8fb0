//! Frames of a hostile guest against the guard and everything that the responder answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{assert_honest_of, bridged_guest, guest};
use node_shim_virtio::net::responder::{HEAD_BYTES, MAX_INSPECTED_BYTES, Protocol, Responder, Verdict};

const PROTOCOLS: [Protocol; 5] = [
    Protocol::Arp,
    Protocol::Dhcp4,
    Protocol::Dhcp6,
    Protocol::Router,
    Protocol::Neighbour,
];

fuzz_target!(|frame: &[u8]| {
    let frame = &frame[..frame.len().min(MAX_INSPECTED_BYTES)];
    for guest in [guest(), bridged_guest()] {
        let responder = Responder::new(guest.clone());
        let verdict = responder.judge(&frame[..frame.len().min(HEAD_BYTES)]);
        if let Verdict::Forward(_) = verdict {
            assert_honest_of(&guest, frame);
        }
        for protocol in PROTOCOLS {
            if let Some(reply) = responder.answer(protocol, frame) {
                assert!(reply.len() <= 14 + usize::from(guest.mtu), "{} bytes", reply.len());
                assert_eq!(reply[6..12], guest.gateway_mac.0);
            }
        }
    }
});
