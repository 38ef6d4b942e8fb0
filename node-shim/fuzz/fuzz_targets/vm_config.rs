//! A hostile VmConfig: whatever is accepted is written as what reads back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_protocol::VmConfig;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = serde_json::from_slice::<VmConfig>(bytes) {
        let text = serde_json::to_string(&config).expect("a configuration is JSON");
        assert_eq!(serde_json::from_str::<VmConfig>(&text).expect("its own text"), config);
    }
});
