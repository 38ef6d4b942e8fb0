//! The volume pod of a disk that is plugged into a VM that runs: it opens the disk where the VM's pod cannot, whose volumes are fixed.
//!
//! The VM's pod owns it. So it goes after the VM's pod, whatever becomes of the operator, and never before its guest is off.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, Container, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
        PersistentVolumeClaimVolumeSource, Pod, PodSpec, ResourceRequirements, Volume, VolumeDevice, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
};
use kube::api::ObjectMeta;
use node_shim_protocol::{LendConfig, lend, paths};

use super::{
    DISK_LABEL, DISK_SPEC_ANNOTATION, MANAGED_BY_LABEL, VOLUME_CONTAINER, VOLUME_OF_LABEL, VOLUME_RESOURCE,
    pod::{
        ARGO_CD_ANNOTATION, CONFIG_VOLUME, GRACE_PERIOD_RESERVE_SECONDS, PodError, SCRATCH_VOLUME, config_map_volume,
        config_volume, container_security, pod_security, pod_uid, scratch_volume, secret_volume,
    },
    vm_config,
};
use crate::virtual_machine::validate::{DiskSource, ValidDisk, ValidatedVm};

/// `node-shim lend` has about 4 MiB resident; a disk of files is 1 MiB at most, and is there twice while it is made.
const MEMORY_LIMIT: &str = "32Mi";
const MEMORY_REQUEST: &str = "16Mi";
const CPU_REQUEST: &str = "5m";
const DISK_VOLUME: &str = "disk";
/// A VM that is shut down beside it may take as long as it may; so much longer the volume stays.
const GRACE_BEYOND_VM_SECONDS: i64 = 60;

/// Name of the volume pod of a disk. A VM's name has no dot, so no VM's pod has such a name; both are DNS labels, so it is short enough.
pub(crate) fn name(vm: &str, disk: &str) -> String {
    format!("{vm}.{disk}")
}

/// The pod of a VM that runs.
#[derive(Clone, Debug)]
pub(crate) struct VmPod<'a> {
    pub(crate) uid: &'a str,
    pub(crate) node: &'a str,
}

/// The volume pod of a disk.
pub(crate) fn volume_pod(
    vm: &ValidatedVm,
    disk: &ValidDisk,
    run: &VmPod<'_>,
    shim_image: &str,
) -> Result<Pod, PodError> {
    let config = LendConfig {
        version: lend::VERSION,
        disk: vm_config::disk(disk),
        scratch: paths::SCRATCH_DIR.into(),
    };
    let written = vm.source.spec.disks.iter().find(|written| written.name == disk.name);
    let annotations = BTreeMap::from([
        (ARGO_CD_ANNOTATION.to_owned(), "true".to_owned()),
        (
            paths::DISK_CONFIG_ANNOTATION.to_owned(),
            serde_json::to_string(&config).map_err(PodError::Json)?,
        ),
        (
            DISK_SPEC_ANNOTATION.to_owned(),
            serde_json::to_string(&written).map_err(PodError::Json)?,
        ),
    ]);
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(name(&vm.name, &disk.name)),
            namespace: Some(vm.namespace.clone()),
            labels: Some(BTreeMap::from([
                label(VOLUME_OF_LABEL, &vm.name),
                label(DISK_LABEL, &disk.name),
                label(MANAGED_BY_LABEL.0, MANAGED_BY_LABEL.1),
            ])),
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: vm.name.clone(),
                uid: run.uid.to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(pod_spec(vm, disk, run.node, shim_image)),
        status: None,
    })
}

fn pod_spec(vm: &ValidatedVm, disk: &ValidDisk, node: &str, shim_image: &str) -> PodSpec {
    let spec = &vm.source.spec;
    let grace = i64::try_from(vm.grace_period_seconds).unwrap_or(i64::from(i32::MAX));
    PodSpec {
        affinity: Some(on_node(node)),
        automount_service_account_token: Some(false),
        containers: vec![container(disk, shim_image)],
        enable_service_links: Some(false),
        image_pull_secrets: (!spec.image_pull_secrets.is_empty()).then(|| spec.image_pull_secrets.clone()),
        priority_class_name: spec.priority_class_name.clone(),
        // A disk that cannot be opened may be mended: the kubelet tries again, after ever longer pauses.
        restart_policy: Some("OnFailure".to_owned()),
        scheduler_name: spec.scheduler_name.clone(),
        security_context: Some(pod_security()),
        termination_grace_period_seconds: Some(grace + GRACE_PERIOD_RESERVE_SECONDS + GRACE_BEYOND_VM_SECONDS),
        tolerations: (!spec.tolerations.is_empty()).then(|| spec.tolerations.clone()),
        volumes: Some(volumes(disk)),
        ..PodSpec::default()
    }
}

/// The VM's own node, and by the scheduler, which binds claims and knows what volumes a node can have.
fn on_node(node: &str) -> Affinity {
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![NodeSelectorTerm {
                    match_fields: Some(vec![NodeSelectorRequirement {
                        key: "metadata.name".to_owned(),
                        operator: "In".to_owned(),
                        values: Some(vec![node.to_owned()]),
                    }]),
                    match_expressions: None,
                }],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn container(disk: &ValidDisk, shim_image: &str) -> Container {
    let agent_socket = format!("{}/{}", paths::AGENT_DIR, paths::AGENT_SOCKET);
    let args = [
        "lend",
        "--config",
        paths::DISK_CONFIG_FILE,
        "--agent",
        &agent_socket,
        "--pod-uid",
        // Filled in by the kubelet, from the variable.
        "$(POD_UID)",
    ];
    let quantity = |name: &str, text: &str| (name.to_owned(), Quantity(text.to_owned()));
    Container {
        name: VOLUME_CONTAINER.to_owned(),
        image: Some(shim_image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(args.into_iter().map(str::to_owned).collect()),
        env: Some(vec![pod_uid()]),
        resources: Some(ResourceRequirements {
            limits: Some(BTreeMap::from([
                quantity("memory", MEMORY_LIMIT),
                quantity(VOLUME_RESOURCE, "1"),
            ])),
            requests: Some(BTreeMap::from([
                quantity("cpu", CPU_REQUEST),
                quantity("memory", MEMORY_REQUEST),
                quantity(VOLUME_RESOURCE, "1"),
            ])),
            claims: None,
        }),
        security_context: Some(container_security()),
        volume_devices: matches!(disk.source, DiskSource::ClaimDevice { .. }).then(|| {
            vec![VolumeDevice {
                name: DISK_VOLUME.to_owned(),
                device_path: vm_config::disk_device(&disk.name).display().to_string(),
            }]
        }),
        volume_mounts: Some(volume_mounts(disk)),
        ..Container::default()
    }
}

fn volume_mounts(disk: &ValidDisk) -> Vec<VolumeMount> {
    let mount = |name: &str, path: String, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path,
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        mount(CONFIG_VOLUME, paths::CONFIG_DIR.to_owned(), true),
        mount(SCRATCH_VOLUME, paths::SCRATCH_DIR.to_owned(), false),
    ];
    match disk.source {
        DiskSource::ClaimFile { .. } | DiskSource::ConfigMap { .. } | DiskSource::Secret { .. } => {
            let path = vm_config::disk_mount(&disk.name).display().to_string();
            mounts.push(mount(DISK_VOLUME, path, disk.read_only));
        }
        DiskSource::Image { .. } | DiskSource::ClaimDevice { .. } | DiskSource::Empty { .. } => {}
    }
    mounts
}

fn volumes(disk: &ValidDisk) -> Vec<Volume> {
    let mut volumes = vec![
        config_volume(paths::DISK_CONFIG_ANNOTATION, paths::DISK_CONFIG_FILE),
        scratch_volume(),
    ];
    volumes.extend(match &disk.source {
        DiskSource::ClaimFile { claim, .. } | DiskSource::ClaimDevice { claim } => Some(Volume {
            name: DISK_VOLUME.to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: disk.read_only.then_some(true),
            }),
            ..Volume::default()
        }),
        DiskSource::ConfigMap { name } => Some(config_map_volume(DISK_VOLUME.to_owned(), name)),
        DiskSource::Secret { name } => Some(secret_volume(DISK_VOLUME.to_owned(), name)),
        DiskSource::Image { .. } | DiskSource::Empty { .. } => None,
    });
    volumes
}
