//! Golden pods and `VmConfig`s.

use crds::VirtualMachineInstanceType;
use insta::{assert_snapshot, assert_yaml_snapshot};
use node_shim_protocol::config::{Boot, DiskBoot};
use node_shim_protocol::{VmConfig, paths};
use serde_json::json;

use super::fixtures::{SHIM_IMAGE, minimal, parse, valid, with_spec};
use crate::virtual_machine::{
    desired::{
        pod::pod,
        resources::{Frame, GuestSize},
        vm_config::vm_config,
    },
    instance_type,
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
fn disks_of_every_source() {
    golden(
        "disks",
        &with_spec(&json!({ "boot": null, "disks": [
            { "name": "root", "persistentVolumeClaim": { "claimName": "web-root" } },
            {
                "name": "data", "cache": "None", "discard": "Ignore", "io": "IoUring",
                "persistentVolumeClaim": { "claimName": "data", "path": "/vms/web.img", "size": "10Gi" },
            },
            { "name": "fast", "persistentVolumeClaim": { "claimName": "fast", "volumeMode": "Block" } },
            { "name": "archive", "readOnly": true, "persistentVolumeClaim": { "claimName": "archive" } },
            { "name": "old-fast", "readOnly": true, "persistentVolumeClaim": { "claimName": "old", "volumeMode": "Block" } },
            { "name": "same-archive", "persistentVolumeClaim": { "claimName": "archive", "path": "/other.img" } },
            { "name": "configuration", "configMap": { "name": "web" } },
            { "name": "certificates", "secret": { "secretName": "web-tls" } },
        ] })),
    );
}

#[test]
fn a_vm_that_can_be_resized() {
    golden(
        "resizable",
        &with_spec(&json!({
            "cpu": { "cores": 1, "maxCores": 4, "request": "250m" }, "memory": { "size": "1Gi", "maxSize": "4Gi" },
        })),
    );
}

#[test]
fn dedicated_cpus_and_huge_pages() {
    golden(
        "dedicated",
        &with_spec(&json!({
            "cpu": { "cores": 4, "dedicated": true }, "memory": { "size": "2Gi", "maxSize": "4Gi", "hugePages": "1Gi" },
        })),
    );
}

#[test]
fn probes_through_the_guest_agent() {
    golden(
        "guest_agent",
        &with_spec(&json!({
            "startupProbe": { "guestAgentPing": {}, "failureThreshold": 60 },
            "readinessProbe": { "exec": { "command": ["/usr/bin/systemctl", "is-system-running"] }, "timeoutSeconds": 5 },
        })),
    );
}

#[test]
fn ignition_limits_and_pull_secrets() {
    golden(
        "ignition",
        &with_spec(&json!({
            "ignition": { "configSecretRef": { "name": "web-ignition" } },
            "imagePullSecrets": [{ "name": "registry" }],
            "disks": [{
                "name": "root", "serial": "R-1", "image": { "image": "a" },
                "limits": { "bytesPerSecond": "100M", "bytesBurst": "1G", "operationsPerSecond": 500 },
            }],
            "interfaces": [{
                "name": "default", "masquerade": {},
                "receiveLimits": { "bytesPerSecond": "10M" }, "transmitLimits": { "operationsPerSecond": 1000 },
            }],
        })),
    );
}

#[test]
fn networks_of_multus() {
    golden(
        "networks",
        &with_spec(&json!({
            "interfaces": [
                { "name": "default", "bridge": {} },
                { "name": "lan", "bridge": {}, "multus": { "networkName": "lan" } },
                { "name": "storage", "masquerade": {}, "multus": { "networkName": "infra/storage" } },
            ],
        })),
    );
}

#[test]
fn a_pod_keeps_its_class_of_service() {
    for (cpu, class) in [
        (json!({ "cores": 2 }), "Burstable"),
        (json!({ "cores": 2, "request": "2" }), "Burstable"),
        (json!({ "cores": 2, "dedicated": true }), "Guaranteed"),
    ] {
        let vm = valid(&with_spec(
            &json!({ "cpu": cpu, "memory": { "size": "1Gi", "maxSize": "4Gi" } }),
        ));
        let frame = Frame::new(&vm_config(&vm), vm.size.dedicated, vm.size.cpu_request_millis);
        for memory_bytes in [1 << 30, 4 << 30] {
            let guest = GuestSize { vcpus: 2, memory_bytes };
            let resources = frame.container(guest);
            let (limits, requests) = (resources.limits.unwrap(), resources.requests.unwrap());
            let same = ["cpu", "memory"]
                .iter()
                .all(|name| limits.get(*name) == requests.get(*name));
            assert_eq!(if same { "Guaranteed" } else { "Burstable" }, class, "{cpu}");
            let patch = frame.resize_patch(frame.pod_size(guest), "vm");
            let limited = patch.pointer("/spec/containers/0/resources/limits/cpu").is_some();
            assert_eq!(limited, class == "Guaranteed", "{cpu}");
        }
    }
}

#[test]
fn an_instance_type_fills_in_size_and_nodes() {
    let vm = with_spec(&json!({
        "instanceType": { "name": "small" }, "cpu": null, "memory": null, "nodeSelector": { "disk": "ssd" },
    }));
    let small: VirtualMachineInstanceType = serde_json::from_value(json!({
        "metadata": { "name": "small" },
        "spec": {
            "cpu": { "cores": 3 }, "memory": { "size": "1Gi" }, "nodeSelector": { "pool": "small" },
            "tolerations": [{ "key": "small", "operator": "Exists" }],
        },
    }))
    .expect("an instance type");
    let resolved = instance_type::resolved(&vm, Some(&small)).expect("resolved");
    let checked = valid(&resolved);
    assert_eq!((checked.size.cores, checked.size.memory_bytes), (3, 1 << 30));
    let spec = pod(&checked, SHIM_IMAGE).expect("a pod").spec.expect("a spec");
    assert_eq!(spec.node_selector.map(|labels| labels.len()), Some(2));
    assert_eq!(spec.tolerations.map(|tolerations| tolerations.len()), Some(1));
    let missing = instance_type::resolved(&vm, None).expect_err("missing").to_string();
    assert!(missing.contains("kubectl get vmtype"), "{missing}");
    let elsewhere = with_spec(&json!({
        "instanceType": { "name": "small" }, "cpu": null, "memory": null, "nodeSelector": { "pool": "other" },
    }));
    let contradiction = instance_type::resolved(&elsewhere, Some(&small))
        .expect_err("refused")
        .to_string();
    assert!(contradiction.contains("leave pool out"), "{contradiction}");
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
        json!({ "disks": [{ "name": "a", "emptyDisk": { "size": "1Gi" }, "configMap": { "name": "b" } }] }),
        json!({ "disks": [{ "name": "a", "persistentVolumeClaim": { "claimName": "b", "volumeMode": "Block", "path": "/c" } }] }),
        json!({ "disks": [{ "name": "a", "persistentVolumeClaim": { "claimName": "b", "path": "/../c" } }] }),
        json!({ "disks": [{ "name": "a", "persistentVolumeClaim": { "claimName": "b", "size": "1" } }] }),
        json!({ "disks": [{ "name": "a", "readOnly": true, "persistentVolumeClaim": { "claimName": "b", "size": "1Gi" } }] }),
        json!({ "disks": [
            { "name": "a", "persistentVolumeClaim": { "claimName": "c" } }, { "name": "b", "persistentVolumeClaim": { "claimName": "c" } },
        ] }),
        json!({ "disks": [
            { "name": "a", "persistentVolumeClaim": { "claimName": "c" } },
            { "name": "b", "persistentVolumeClaim": { "claimName": "c", "volumeMode": "Block" } },
        ] }),
        json!({ "disks": [{ "name": "a", "readOnly": false, "secret": { "secretName": "b" } }] }),
        json!({ "disks": [
            { "name": "settings-of-a", "configMap": { "name": "c" } }, { "name": "settings-of-b", "secret": { "secretName": "b" } },
        ] }),
        json!({ "cloudInit": {}, "disks": [{ "name": "cidata", "configMap": { "name": "c" } }] }),
        json!({ "disks": [{ "name": "a", "io": "Threads", "secret": { "secretName": "b" } }] }),
        json!({ "disks": [{ "name": "a", "cache": "None", "image": { "image": "b" } }] }),
        json!({ "interfaces": [{ "name": "a" }] }),
        json!({ "interfaces": [{ "name": "a", "masquerade": {}, "bridge": {} }] }),
        json!({ "interfaces": [{ "name": "a", "bridge": {} }, { "name": "b", "bridge": {} }] }),
        json!({ "interfaces": [{ "name": "a", "masquerade": {} }, { "name": "b", "bridge": {} }] }),
        json!({ "podMetadata": { "annotations": { "k8s.v1.cni.cncf.io/networks": "other" } } }),
        json!({ "cloudInit": { "userData": "a", "userDataSecretRef": { "name": "b" } } }),
        json!({ "cloudInit": { "networkData": "a".repeat(40_000) } }),
        json!({ "readinessProbe": {} }),
        json!({ "livenessProbe": { "exec": { "command": ["true"] } } }),
        json!({ "cpu": { "cores": 129 } }),
        json!({ "cpu": { "cores": 4, "maxCores": 2 } }),
        json!({ "cpu": { "cores": 4, "dedicated": true, "request": "1" } }),
        json!({ "cpu": { "cores": 4, "request": "0.0001" } }),
        json!({ "cpu": null }),
        json!({ "memory": { "size": "2Gi", "maxSize": "1Gi" } }),
        json!({ "memory": { "size": "33Mi", "maxSize": "1Gi" } }),
        json!({ "memory": { "size": "1536Mi", "hugePages": "1Gi" } }),
        json!({ "ignition": {} }),
        json!({ "ignition": { "config": "{}" }, "cloudInit": {} }),
        json!({ "disks": [{ "name": "a", "emptyDisk": { "size": "1Gi" }, "limits": { "bytesBurst": "1" } }] }),
        json!({ "disks": [{ "name": "a", "emptyDisk": { "size": "1Gi" }, "limits": { "bytesPerSecond": "0" } }] }),
        json!({ "restartedAt": "yesterday" }),
    ]
    .iter()
    .map(|spec| validate(&with_spec(spec)).expect_err("invalid").to_string())
    .collect();
    assert_snapshot!(messages.join("\n"));
}

#[test]
fn labels_of_file_systems_collide_only_with_each_other() {
    for spec in [
        json!({ "disks": [{ "name": "cidata", "configMap": { "name": "c" } }] }),
        json!({ "cloudInit": {}, "disks": [{ "name": "cidata", "emptyDisk": { "size": "1Gi" } }] }),
        json!({ "cloudInit": {}, "disks": [{ "name": "cidata-2", "configMap": { "name": "c" } }] }),
        json!({ "disks": [
            { "name": "settings-of-a", "configMap": { "name": "c" } }, { "name": "settings-of-b", "emptyDisk": { "size": "1Gi" } },
        ] }),
    ] {
        assert!(validate(&with_spec(&spec)).is_ok(), "{spec}");
    }
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
