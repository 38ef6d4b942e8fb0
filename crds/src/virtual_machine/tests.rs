//! The CEL rules, evaluated as the API server would.

use serde_json::{Value, json};

use super::VirtualMachine;

fn vm(name: &str, spec: &Value) -> VirtualMachine {
    let mut object = json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": { "name": name },
        "spec": {
            "cpu": { "cores": 1 },
            "memory": { "size": "512Mi" },
            "boot": { "kernel": { "image": "a", "kernelPath": "/boot/vmlinuz" } },
        },
    });
    for (key, value) in spec.as_object().expect("an object") {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).expect("a VirtualMachine")
}

/// What the rules say about a spec, `ok` if nothing.
fn verdict(name: &str, spec: &Value) -> String {
    vm(name, spec)
        .validate_cel()
        .map_or_else(|errors| errors.to_string(), |()| "ok".to_owned())
}

#[test]
fn sound_specs_pass() {
    let all = json!({
        "memory": { "size": "1.5Gi" },
        "disks": [{ "name": "root", "image": { "image": "a", "path": "/disk/root.img" } }, { "name": "b", "emptyDisk": { "size": "1Gi" } }],
        "interfaces": [{ "name": "default", "masquerade": {} }],
        "cloudInit": { "userData": "a", "networkDataSecretRef": { "name": "b" } },
        "podMetadata": { "labels": { "app": "a", "tandem": "b" } },
        "readinessProbe": { "httpGet": { "port": 80 } },
        "livenessProbe": { "tcpSocket": { "port": 80 }, "successThreshold": 1 },
    });
    assert_eq!(verdict("web", &json!({})), "ok");
    assert_eq!(verdict("web", &all), "ok");
    assert_eq!(verdict(&"a".repeat(63), &json!({})), "ok");
}

#[test]
fn unsound_specs_are_refused_with_what_to_write() {
    let kernel = |path: &str| json!({ "boot": { "kernel": { "image": "a", "kernelPath": path } } });
    let label = |key: &str| json!({ "podMetadata": { "labels": { key: "a" } } });
    let disk = |disk: Value| json!({ "disks": [disk] });
    let table = [
        (json!({ "memory": { "size": "31Mi" } }), "write 32Mi or more"),
        (json!({ "memory": { "size": "1025Gi" } }), "write 1Ti or less"),
        (json!({ "memory": { "size": "33000001" } }), "not a whole number of MiB"),
        (json!({ "memory": { "size": "lots" } }), "not a quantity"),
        (json!({ "boot": {} }), "write either kernel, or disk"),
        (
            json!({ "boot": { "disk": "a", "kernel": { "image": "a", "kernelPath": "/k" } } }),
            "write either kernel, or disk",
        ),
        (
            json!({ "boot": { "disk": "none" } }),
            "write the name of one of spec.disks",
        ),
        (json!({ "boot": null }), "write at least one disk"),
        (kernel("boot/vmlinuz"), "an absolute path"),
        (kernel("/boot/../etc"), "an absolute path"),
        (kernel("/boot/.."), "an absolute path"),
        (kernel("/boot/"), "an absolute path"),
        (
            json!({ "boot": { "kernel": { "image": "a", "kernelPath": "/k", "commandLine": "ü".repeat(1024) } } }),
            "2047 bytes",
        ),
        (
            json!({ "boot": { "kernel": { "image": "a", "kernelPath": "/k", "commandLine": "a\nb" } } }),
            "line break",
        ),
        (disk(json!({ "name": "a" })), "write either image or emptyDisk"),
        (
            disk(json!({ "name": "a", "image": { "image": "b" }, "emptyDisk": { "size": "1Gi" } })),
            "write either image or emptyDisk",
        ),
        (
            disk(json!({ "name": "a", "readOnly": true, "emptyDisk": { "size": "1Gi" } })),
            "leave readOnly out",
        ),
        (
            disk(json!({ "name": "a", "emptyDisk": { "size": "17Ti" } })),
            "from 1Mi to 16Ti",
        ),
        (json!({ "interfaces": [{ "name": "a" }] }), "write masquerade: {}"),
        (
            json!({ "interfaces": [{ "name": "a", "masquerade": {} }, { "name": "b", "masquerade": {} }] }),
            "at most one interface",
        ),
        (
            json!({ "cloudInit": { "userData": "a", "userDataSecretRef": { "name": "b" } } }),
            "write either userData",
        ),
        (
            json!({ "cloudInit": { "userData": "a".repeat(32769) } }),
            "write userDataSecretRef",
        ),
        (label("tandem.dev/vm"), "belong to Tandem"),
        (label("app.kubernetes.io/managed-by"), "belong to Tandem"),
        (json!({ "readinessProbe": {} }), "write either httpGet or tcpSocket"),
        (
            json!({ "livenessProbe": { "tcpSocket": { "port": 1 }, "successThreshold": 2 } }),
            "leave it out",
        ),
    ];
    for (spec, expected) in table {
        let verdict = verdict("web", &spec);
        assert!(verdict.contains(expected), "{spec}: {verdict}");
    }
}

#[test]
fn names_are_host_names() {
    for name in ["a.b", "-a", "a-", "A"] {
        assert!(verdict(name, &json!({})).contains("host name"), "{name}");
    }
    assert!(verdict(&"a".repeat(64), &json!({})).contains("at most 63 characters"));
}
