//! A hostile client of the control socket, and packets of the node agent and its callers: whatever is accepted is written as what reads back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_protocol::agent;
use node_shim_protocol::control::{Request, Response};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<agent::Request>(bytes) {
        let text = serde_json::to_string(&request).expect("a request is JSON");
        assert_eq!(serde_json::from_str::<agent::Request>(&text).expect("its own text"), request);
    }
    if let Ok(response) = serde_json::from_slice::<agent::Response>(bytes) {
        let text = serde_json::to_string(&response).expect("a response is JSON");
        assert_eq!(serde_json::from_str::<agent::Response>(&text).expect("its own text"), response);
    }
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let text = serde_json::to_string(&request).expect("a request is JSON");
        assert_eq!(serde_json::from_str::<Request>(&text).expect("its own text"), request);
    }
    if let Ok(response) = serde_json::from_slice::<Response>(bytes) {
        let text = serde_json::to_string(&response).expect("a response is JSON");
        assert_eq!(serde_json::from_str::<Response>(&text).expect("its own text"), response);
    }
});
