//! Which fields of a spec a running pod does not have yet.

use std::collections::BTreeMap;

use crds::VirtualMachineSpec;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Fields that say when the VM runs rather than what it is: a change of them needs no restart.
const WITHOUT_EFFECT: [&str; 2] = ["runPolicy", "restartedAt"];

/// The first 8 hex digits of the SHA-256 of each field of a spec.
pub(crate) type SpecHashes = BTreeMap<String, String>;

/// Hashes of the fields of `spec` that are set.
pub(crate) fn spec_hashes(spec: &VirtualMachineSpec) -> SpecHashes {
    let Ok(Value::Object(fields)) = serde_json::to_value(spec) else {
        return SpecHashes::new();
    };
    let relevant = fields
        .into_iter()
        .filter(|(name, _)| !WITHOUT_EFFECT.contains(&name.as_str()));
    relevant
        .map(|(name, value)| (name, short_hash(&value.to_string())))
        .collect()
}

fn short_hash(text: &str) -> String {
    let [first, second, third, fourth, ..] = <[u8; 32]>::from(Sha256::digest(text.as_bytes()));
    format!("{first:02x}{second:02x}{third:02x}{fourth:02x}")
}

/// Names of the fields in which two specs differ, in order.
pub(crate) fn differences(running: &SpecHashes, wanted: &SpecHashes) -> Vec<String> {
    let mut names: Vec<String> = running.keys().chain(wanted.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names.retain(|name| running.get(name) != wanted.get(name));
    names
}
