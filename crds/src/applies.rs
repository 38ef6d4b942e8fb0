//! What applies when: for each field of a VM's spec, whether a change of it reaches a VM that runs.
//!
//! This table is a contract. The reference prints it, the operator decides by it, and a test holds it against the schema: a field that is not here, or that
//! is no more, fails the build.

use self::Applies::{Live, Restart};

/// When a change of a field reaches a VM that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Applies {
    /// At once, within what the note says; else with the next start.
    Live,
    /// With the next start: `status.pendingChanges` and the condition `RestartRequired` name the field until then.
    Restart,
}

impl Applies {
    /// The word for it in the reference.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Restart => "restart",
        }
    }
}

/// A field of a VM's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its path below `spec`; `[]` stands for each item of a list. Maps and what is Kubernetes' own are one field each.
    pub path: &'static str,
    /// When a change of it applies.
    pub applies: Applies,
    /// How, where there is something to say.
    pub note: &'static str,
}

const fn field(path: &'static str, applies: Applies, note: &'static str) -> Field {
    Field { path, applies, note }
}

/// Every field of `VirtualMachine.spec` that has a value of its own, in the order of their paths.
pub const FIELDS: &[Field] = &[
    field("affinity", Restart, ""),
    field("boot.disk", Restart, ""),
    field("boot.kernel.commandLine", Restart, ""),
    field("boot.kernel.image", Restart, ""),
    field("boot.kernel.initrdPath", Restart, ""),
    field("boot.kernel.kernelPath", Restart, ""),
    field("boot.kernel.pullPolicy", Restart, ""),
    field("cloudInit.networkData", Restart, ""),
    field("cloudInit.networkDataSecretRef.key", Restart, ""),
    field("cloudInit.networkDataSecretRef.name", Restart, ""),
    field("cloudInit.userData", Restart, ""),
    field("cloudInit.userDataSecretRef.key", Restart, ""),
    field("cloudInit.userDataSecretRef.name", Restart, ""),
    field(
        "cpu.cores",
        Live,
        "Up to the `maxCores` that the VM was started with, by in-place resize of its pod; not with `dedicated`.",
    ),
    field("cpu.dedicated", Restart, ""),
    field("cpu.maxCores", Restart, ""),
    field("cpu.request", Live, "By in-place resize of the pod."),
    field("disks[].cache", Restart, ""),
    field(
        "disks[].configMap.name",
        Restart,
        "The ConfigMap's own contents are read whenever the guest starts or reboots.",
    ),
    field("disks[].discard", Restart, ""),
    field("disks[].emptyDisk.size", Restart, ""),
    field("disks[].image.format", Restart, ""),
    field("disks[].image.image", Restart, ""),
    field("disks[].image.path", Restart, ""),
    field("disks[].image.pullPolicy", Restart, ""),
    field("disks[].io", Restart, ""),
    field("disks[].limits.bytesBurst", Restart, ""),
    field("disks[].limits.bytesPerSecond", Restart, ""),
    field("disks[].limits.operationsBurst", Restart, ""),
    field("disks[].limits.operationsPerSecond", Restart, ""),
    field(
        "disks[].name",
        Live,
        "A disk that is added is plugged, and one that was is unplugged when it is removed: of any source but `image`, and not with `io: IoUring`. A disk that the VM \
         was started with, and every other field of any disk, waits for a restart.",
    ),
    field("disks[].persistentVolumeClaim.claimName", Restart, ""),
    field("disks[].persistentVolumeClaim.path", Restart, ""),
    field("disks[].persistentVolumeClaim.size", Restart, ""),
    field("disks[].persistentVolumeClaim.volumeMode", Restart, ""),
    field("disks[].readOnly", Restart, ""),
    field(
        "disks[].secret.secretName",
        Restart,
        "The Secret's own contents are read whenever the guest starts or reboots.",
    ),
    field("disks[].serial", Restart, ""),
    field(
        "evictionPolicy",
        Live,
        "The VM's PodDisruptionBudget is made or removed.",
    ),
    field("ignition.config", Restart, ""),
    field("ignition.configSecretRef.key", Restart, ""),
    field("ignition.configSecretRef.name", Restart, ""),
    field("imagePullSecrets[].name", Restart, ""),
    field(
        "instanceType.name",
        Live,
        "As far as the fields of `cpu` and `memory` that differ between the two types are live, and the nodes that they are for are the same.",
    ),
    field("interfaces[].bridge", Restart, ""),
    field("interfaces[].masquerade", Restart, ""),
    field("interfaces[].multus.networkName", Restart, ""),
    field("interfaces[].name", Restart, ""),
    field("interfaces[].receiveLimits.bytesBurst", Restart, ""),
    field("interfaces[].receiveLimits.bytesPerSecond", Restart, ""),
    field("interfaces[].receiveLimits.operationsBurst", Restart, ""),
    field("interfaces[].receiveLimits.operationsPerSecond", Restart, ""),
    field("interfaces[].transmitLimits.bytesBurst", Restart, ""),
    field("interfaces[].transmitLimits.bytesPerSecond", Restart, ""),
    field("interfaces[].transmitLimits.operationsBurst", Restart, ""),
    field("interfaces[].transmitLimits.operationsPerSecond", Restart, ""),
    field("livenessProbe.exec.command", Restart, ""),
    field("livenessProbe.failureThreshold", Restart, ""),
    field("livenessProbe.guestAgentPing", Restart, ""),
    field("livenessProbe.httpGet.path", Restart, ""),
    field("livenessProbe.httpGet.port", Restart, ""),
    field("livenessProbe.httpGet.scheme", Restart, ""),
    field("livenessProbe.initialDelaySeconds", Restart, ""),
    field("livenessProbe.periodSeconds", Restart, ""),
    field("livenessProbe.successThreshold", Restart, ""),
    field("livenessProbe.tcpSocket.port", Restart, ""),
    field("livenessProbe.timeoutSeconds", Restart, ""),
    field("memory.hugePages", Restart, ""),
    field("memory.maxSize", Restart, ""),
    field(
        "memory.size",
        Live,
        "Between the `size` and the `maxSize` that the VM was started with, by in-place resize of its pod.",
    ),
    field("nodeSelector", Restart, ""),
    field("podMetadata.annotations", Live, "The pod is changed."),
    field("podMetadata.labels", Live, "The pod is changed."),
    field("priorityClassName", Restart, ""),
    field("readinessProbe.exec.command", Restart, ""),
    field("readinessProbe.failureThreshold", Restart, ""),
    field("readinessProbe.guestAgentPing", Restart, ""),
    field("readinessProbe.httpGet.path", Restart, ""),
    field("readinessProbe.httpGet.port", Restart, ""),
    field("readinessProbe.httpGet.scheme", Restart, ""),
    field("readinessProbe.initialDelaySeconds", Restart, ""),
    field("readinessProbe.periodSeconds", Restart, ""),
    field("readinessProbe.successThreshold", Restart, ""),
    field("readinessProbe.tcpSocket.port", Restart, ""),
    field("readinessProbe.timeoutSeconds", Restart, ""),
    field("restartedAt", Live, "This is what asks for a restart."),
    field("runPolicy", Live, "Halted shuts the VM down."),
    field("schedulerName", Restart, ""),
    field("startupProbe.exec.command", Restart, ""),
    field("startupProbe.failureThreshold", Restart, ""),
    field("startupProbe.guestAgentPing", Restart, ""),
    field("startupProbe.httpGet.path", Restart, ""),
    field("startupProbe.httpGet.port", Restart, ""),
    field("startupProbe.httpGet.scheme", Restart, ""),
    field("startupProbe.initialDelaySeconds", Restart, ""),
    field("startupProbe.periodSeconds", Restart, ""),
    field("startupProbe.successThreshold", Restart, ""),
    field("startupProbe.tcpSocket.port", Restart, ""),
    field("startupProbe.timeoutSeconds", Restart, ""),
    field("terminationGracePeriodSeconds", Restart, ""),
    field("tolerations", Restart, ""),
    field("topologySpreadConstraints", Restart, ""),
];

/// The entry of a field whose path has the names of list items in brackets, as in `disks[data].readOnly`.
pub fn find(path: &str) -> Option<&'static Field> {
    let plain = without_names(path);
    FIELDS.iter().find(|field| field.path == plain)
}

/// A path with `[]` for each `[name]`.
fn without_names(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut inside = false;
    for letter in path.chars() {
        match letter {
            '[' => inside = true,
            ']' => {
                inside = false;
                plain.push_str("[]");
            }
            other if !inside => plain.push(other),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::manifest::{self, EMBEDDED};

    /// Paths of every field of an object schema that has a value of its own.
    fn leaves(prefix: &str, schema: &Value, found: &mut BTreeSet<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{prefix}{name}");
            if EMBEDDED.contains(&name.as_str()) {
                found.insert(path);
            } else if field["properties"].is_object() {
                leaves(&format!("{path}."), field, found);
            } else if field["items"]["properties"].is_object() {
                leaves(&format!("{path}[]."), &field["items"], found);
            } else {
                found.insert(path);
            }
        }
    }

    #[test]
    fn every_field_is_marked_and_no_mark_is_stale() {
        let crd = manifest::virtual_machines();
        let mut of_schema = BTreeSet::new();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        leaves("", spec, &mut of_schema);
        let marked: BTreeSet<String> = FIELDS.iter().map(|field| field.path.to_owned()).collect();
        let unmarked: Vec<_> = of_schema.difference(&marked).collect();
        let stale: Vec<_> = marked.difference(&of_schema).collect();
        assert!(
            unmarked.is_empty() && stale.is_empty(),
            "unmarked {unmarked:#?}, stale {stale:#?}"
        );
    }

    #[test]
    fn each_field_is_marked_once_and_in_order() {
        assert!(FIELDS.is_sorted_by(|one, next| one.path < next.path));
    }

    #[test]
    fn items_are_found_by_any_name() {
        assert_eq!(
            find("disks[data].readOnly").map(|field| field.path),
            Some("disks[].readOnly")
        );
        assert_eq!(find("cpu.cores").map(|field| field.applies), Some(Live));
        assert_eq!(find("cpu.none"), None);
    }
}
