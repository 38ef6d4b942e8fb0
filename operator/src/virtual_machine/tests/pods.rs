//! Golden pods and `VmConfig`s.

use insta::{assert_snapshot, assert_yaml_snapshot};
use node_shim_protocol::config::{Boot, DiskBoot};
use node_shim_protocol::{VmConfig, paths};
use serde_json::json;

use super::fixtures::{SHIM_IMAGE, minimal, parse, valid, with_spec};
use crate::virtual_machine::{
    desired::{pod::pod, vm_config::vm_config},
    validate::{Invalid, validate},
};

/// The pod without its configuration, and the configuration by itself.
fn golden(name: &str, vm: &crds::VirtualMachine) {
    let mut pod = pod(&valid(vm), SHIM_IMAGE).expect("a pod");
    let annotations = pod.metadata.annotations.as_mut().expect("annotations");
    let config = annotations.remove(paths::CONFIG_ANNOTATION).expect("the configuration");
    let config: VmConfig = serde_json::from_str(&config).expect("a VmConfig");
    assert_yaml_snapshot!(format!("{name}_pod"), pod);
    assert_yaml_snapshot!(format!("{name}_vm_config"), config);
}

#[test]
fn minimal_vm() {
    golden("minimal", &parse(minimal()));
}

#[test]
fn vm_with_everything() {
    golden(
        "everything",
        &with_spec(&json!({
            "runPolicy": "RerunOnFailure",
            "restartedAt": "2026-01-01T00:00:00Z",
            "cpu": { "cores": 4 },
            "memory": { "size": "2Gi" },
            "boot": { "kernel": {
                "image": "guests/debian:12", "pullPolicy": "Always", "kernelPath": "/boot/vmlinuz",
                "initrdPath": "/boot/initrd.img", "commandLine": "root=/dev/vda console=ttyS0",
            } },
            "disks": [
                { "name": "root", "image": { "image": "guests/debian:12" } },
                { "name": "tools", "readOnly": true, "image": { "image": "tools:1", "path": "/images/tools.img", "pullPolicy": "Never" } },
                { "name": "data", "emptyDisk": { "size": "10Gi" } },
            ],
            "interfaces": [{ "name": "default", "masquerade": {} }],
            "cloudInit": { "userData": "#cloud-config\n", "networkData": "version: 2\n" },
            "podMetadata": { "labels": { "app": "web" }, "annotations": { "example.com/team": "a" } },
            "nodeSelector": { "disk": "ssd" },
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] },
            ] } } },
            "tolerations": [{ "key": "kvm", "operator": "Exists", "effect": "NoSchedule" }],
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": { "matchLabels": { "app": "web" } },
            }],
            "priorityClassName": "high",
            "schedulerName": "other",
            "readinessProbe": { "httpGet": { "port": 80, "path": "/ready" }, "periodSeconds": 2 },
            "livenessProbe": { "tcpSocket": { "port": 22 }, "initialDelaySeconds": 60, "failureThreshold": 10 },
            "terminationGracePeriodSeconds": 120,
        })),
    );
}

#[test]
fn cloud_init_from_secrets() {
    golden(
        "secrets",
        &with_spec(&json!({ "cloudInit": {
            "userDataSecretRef": { "name": "web-user" },
            "networkDataSecretRef": { "name": "web-network", "key": "v2" },
        } })),
    );
}

#[test]
fn longest_names_make_a_pod() {
    let name = "n".repeat(63);
    let mut vm = minimal();
    vm["metadata"]["name"] = json!(name);
    vm["spec"]["disks"] = json!([{ "name": name, "image": { "image": "a" } }]);
    let pod = pod(&valid(&parse(vm)), SHIM_IMAGE).expect("a pod");
    let volumes = pod.spec.and_then(|spec| spec.volumes).expect("volumes");
    assert!(volumes.iter().all(|volume| volume.name.len() <= 63));
}

#[test]
fn a_configuration_that_no_pod_can_carry_is_refused() {
    // Each control character takes six bytes of JSON: within the limits of each field, and above that of a pod.
    let data = "\u{1}".repeat(32 * 1024);
    let vm = with_spec(&json!({ "cloudInit": { "userData": data, "networkData": data } }));
    let error = pod(&valid(&vm), SHIM_IMAGE).expect_err("too large");
    assert!(
        error
            .to_string()
            .contains("put user data and network data into a Secret"),
        "{error}"
    );
}

#[test]
fn a_vm_boots_from_its_first_disk_or_the_one_that_it_names() {
    let disks = json!([{ "name": "a", "image": { "image": "a", "format": "qcow2" } }, { "name": "b", "image": { "image": "b" } }]);
    for (boot, expected) in [(json!(null), "a"), (json!({ "disk": "b" }), "b")] {
        let vm = valid(&with_spec(&json!({ "boot": boot, "disks": disks })));
        let config = vm_config(&vm);
        let disk = DiskBoot {
            name: expected.to_owned(),
        };
        assert_eq!(config.boot, Boot::Disk(disk));
        let pod = pod(&vm, SHIM_IMAGE).unwrap();
        let volumes = pod.spec.and_then(|spec| spec.volumes).unwrap_or_default();
        assert!(volumes.iter().all(|volume| volume.name != "boot"));
    }
}

#[test]
fn invalid_specs_say_what_to_write() {
    let messages: Vec<String> = [
        json!({ "cpu": { "cores": 0 } }),
        json!({ "memory": { "size": "16Mi" } }),
        json!({ "memory": { "size": "lots" } }),
        json!({ "boot": {} }),
        json!({ "boot": { "disk": "b", "kernel": { "image": "a", "kernelPath": "/k" } } }),
        json!({ "boot": { "disk": "none" }, "disks": [{ "name": "a", "emptyDisk": { "size": "1Mi" } }] }),
        json!({ "boot": null }),
        json!({ "boot": { "kernel": { "image": "a", "kernelPath": "/../etc/passwd" } } }),
        json!({ "boot": { "kernel": { "image": "a", "kernelPath": "/k", "commandLine": "a".repeat(2048) } } }),
        json!({ "disks": [{ "name": "a" }] }),
        json!({ "disks": [{ "name": "../a", "emptyDisk": { "size": "1Gi" } }] }),
        json!({ "disks": [{ "name": "a", "emptyDisk": { "size": "513" } }] }),
        json!({ "interfaces": [{ "name": "a" }] }),
        json!({ "interfaces": [{ "name": "a", "masquerade": {} }, { "name": "b", "masquerade": {} }] }),
        json!({ "cloudInit": { "userData": "a", "userDataSecretRef": { "name": "b" } } }),
        json!({ "cloudInit": { "networkData": "a".repeat(40_000) } }),
        json!({ "readinessProbe": {} }),
        json!({ "restartedAt": "yesterday" }),
    ]
    .iter()
    .map(|spec| validate(&with_spec(spec)).expect_err("invalid").to_string())
    .collect();
    assert_snapshot!(messages.join("\n"));
}

#[test]
fn the_same_name_twice_is_refused() {
    let vm = with_spec(&json!({ "disks": [
        { "name": "a", "emptyDisk": { "size": "1Gi" } }, { "name": "a", "emptyDisk": { "size": "1Gi" } },
    ] }));
    assert_eq!(
        validate(&vm).err(),
        Some(Invalid::Name {
            kind: "disk",
            name: "a".to_owned()
        })
    );
}
