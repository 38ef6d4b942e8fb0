//! Manifests as a user would write them.

use serde_json::{Value, json};

/// The Debian guest's image, which holds its disk, kernel and initrd.
pub const GUEST_IMAGE: &str = "registry.tandem.local/guests/debian:12";
/// The image that a guest installs Tandem's guest agent from.
pub const GUEST_AGENT_IMAGE: &str = concat!("registry.tandem.local/guest-agent:", env!("CARGO_PKG_VERSION"));
/// An image with a disk that has the program Ignition.
pub const IGNITION_IMAGE: &str = "registry.tandem.local/guests/ignition:2";
/// An image with a shell and network tools.
pub const TOOLS_IMAGE: &str = "registry.tandem.local/tools:1";

/// A VM that runs only Debian's kernel and the shell of its initrd: quick to start, and it does nothing until it is told to stop.
pub fn small_vm(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "cpu": {"cores": 1},
            "memory": {"size": "256Mi"},
            "boot": {"kernel": {
                "image": GUEST_IMAGE,
                "kernelPath": "/boot/vmlinuz",
                "initrdPath": "/boot/initrd.img",
                "commandLine": "console=ttyS0 rdinit=/bin/sh",
            }},
            "interfaces": [{"name": "default", "masquerade": {}}],
            "terminationGracePeriodSeconds": 2,
        },
    })
}

/// The whole Debian guest, with this cloud-init user data and a readiness probe of its web server.
pub fn debian_vm(namespace: &str, name: &str, user_data: &str) -> Value {
    let mut vm = small_vm(namespace, name);
    let spec = &mut vm["spec"];
    spec["memory"]["size"] = json!("512Mi");
    // What the disk's own boot loader would start.
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("boot");
    }
    spec["disks"] = json!([{"name": "root", "image": {"image": GUEST_IMAGE, "path": "/disk/disk.img"}}]);
    spec["cloudInit"] = json!({"userData": user_data});
    spec["podMetadata"] = json!({"labels": {"app": name}});
    spec["readinessProbe"] = json!({"httpGet": {"path": "/", "port": 80}, "periodSeconds": 2, "timeoutSeconds": 5});
    spec["terminationGracePeriodSeconds"] = json!(120);
    vm
}

/// Debian's files without its services: a shell loads what the agent needs and starts that. It is up in a fraction of the whole guest's time.
/// Disks come after these two, the root file system and the agent's.
pub fn bare_debian_vm(namespace: &str, name: &str) -> Value {
    // `-r`, because the initrd's scripts would take the word `ro` for theirs. The shell stays, and is who waits for orphans.
    let start = "modprobe vmw_vsock_virtio_transport; mount -r LABEL=TANDEM-AGENT /mnt; while :; do /mnt/tandem-guest-agent; sleep 1; done";
    let mut vm = small_vm(namespace, name);
    let spec = &mut vm["spec"];
    spec["boot"]["kernel"]["commandLine"] =
        json!(format!("console=ttyS0 root=/dev/vda rw init=/bin/sh -- -c \"{start}\""));
    spec["disks"] = json!([
        {"name": "root", "image": {"image": GUEST_IMAGE, "path": "/disk/disk.img"}},
        {"name": "agent", "readOnly": true, "image": {"image": GUEST_AGENT_IMAGE}},
    ]);
    spec["readinessProbe"] = json!({"guestAgentPing": {}, "periodSeconds": 2, "timeoutSeconds": 10});
    vm
}

/// A container pod that a `restricted` namespace admits.
pub fn pod(namespace: &str, name: &str, node_selector: &Value, command: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeSelector": node_selector,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main",
                "image": TOOLS_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

/// A Service of the pods with the label `app: NAME`.
pub fn service(namespace: &str, name: &str, port: u16, target_port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": port, "targetPort": target_port}]},
    })
}

/// Selects the node that runs pods natively.
pub fn native_node() -> Value {
    json!({"tandem.dev/lab-node": "native"})
}

/// Selects the node that offers KVM.
pub fn kvm_node() -> Value {
    json!({"tandem.dev/lab-node": "kvm"})
}

/// A manifest with one value replaced, at a JSON pointer; the parents must be there.
///
/// # Panics
/// When a parent is not there: the test is wrong.
#[must_use]
pub fn with(mut manifest: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer starts with /");
    let parent = manifest
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("the manifest has no {parent}"));
    if let Value::Array(list) = parent {
        list[key.parse::<usize>().expect("an index")] = value;
    } else {
        parent[key] = value;
    }
    manifest
}
