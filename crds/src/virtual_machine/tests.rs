//! What the CEL rules let pass, evaluated as the API server would; `crds/tests/manifests/refused.yaml` has what they do not.

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
        "cpu": { "cores": 2, "maxCores": 8, "request": "1500m" },
        "memory": { "size": "1.5Gi", "maxSize": "4Gi", "hugePages": "2Mi" },
        "disks": [{ "name": "root", "image": { "image": "a", "path": "/disk/root.img" } }, {
            "name": "b", "serial": "B-1", "emptyDisk": { "size": "1Gi" },
            "limits": { "bytesPerSecond": "100M", "bytesBurst": "1G", "operationsPerSecond": 500 },
            "cache": "None", "discard": "Ignore", "io": "Threads",
        }, {
            "name": "c", "persistentVolumeClaim": { "claimName": "c", "path": "/vms/c.img", "size": "10Gi" }, "io": "IoUring",
        }, {
            "name": "d", "readOnly": true, "cache": "Writeback", "persistentVolumeClaim": { "claimName": "d", "volumeMode": "Block" },
        }, {
            "name": "e", "configMap": { "name": "e.v1" }
        }, {
            "name": "f", "readOnly": true, "secret": { "secretName": "f" }
        }],
        "interfaces": [{ "name": "default", "masquerade": {} }],
        "cloudInit": { "userData": "a", "networkDataSecretRef": { "name": "b" } },
        "podMetadata": { "labels": { "app": "a", "tandem": "b" } },
        "readinessProbe": { "httpGet": { "port": 80 } },
        "livenessProbe": { "tcpSocket": { "port": 80 }, "successThreshold": 1 },
        "startupProbe": { "exec": { "command": ["/bin/true"] }, "failureThreshold": 60 },
        "imagePullSecrets": [{ "name": "registry" }],
    });
    assert_eq!(verdict("web", &json!({})), "ok");
    assert_eq!(verdict("web", &all), "ok");
    assert_eq!(verdict(&"a".repeat(63), &json!({})), "ok");
}

#[test]
fn a_vm_may_have_an_instance_type_instead_of_a_size() {
    let sized = json!({ "instanceType": { "name": "small" }, "cpu": null, "memory": null });
    assert_eq!(verdict("web", &sized), "ok");
}

#[test]
fn names_are_host_names() {
    for name in ["a.b", "-a", "a-", "A"] {
        assert!(verdict(name, &json!({})).contains("host name"), "{name}");
    }
    assert!(verdict(&"a".repeat(64), &json!({})).contains("at most 63 characters"));
}
