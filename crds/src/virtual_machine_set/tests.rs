//! What the CEL rules let pass, evaluated as the API server would; `crds/tests/manifests/refused.yaml` has what they do not.

use serde_json::{Value, json};

use super::VirtualMachineSet;

fn set(name: &str, spec: &Value) -> VirtualMachineSet {
    let mut object = json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachineSet",
        "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "instanceType": { "name": "small" }, "disks": [{ "name": "a", "emptyDisk": { "size": "1Gi" } }] },
            },
        },
    });
    for (key, value) in spec.as_object().expect("an object") {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).expect("a VirtualMachineSet")
}

/// What the rules say about a set, `ok` if nothing.
fn verdict(name: &str, spec: &Value) -> String {
    set(name, spec)
        .validate_cel()
        .map_or_else(|errors| errors.to_string(), |()| "ok".to_owned())
}

#[test]
fn sound_sets_pass() {
    assert_eq!(verdict("web", &json!({})), "ok");
    assert_eq!(verdict(&"a".repeat(57), &json!({ "stableNames": true })), "ok");
    for strategy in [
        json!({}),
        json!({ "type": "OnDelete" }),
        json!({ "maxSurge": "25%", "maxUnavailable": 0 }),
        json!({ "maxUnavailable": "50%" }),
    ] {
        assert_eq!(
            verdict("web", &json!({ "updateStrategy": strategy })),
            "ok",
            "{strategy}"
        );
    }
}
