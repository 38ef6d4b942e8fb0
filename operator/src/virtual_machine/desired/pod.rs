//! The shim pod of a VM: an ordinary pod that a namespace with Pod Security `restricted` admits.

use std::collections::BTreeMap;

use crds::network_interface::MULTUS_ANNOTATION;
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerResizePolicy, DownwardAPIVolumeFile,
        DownwardAPIVolumeSource, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, HTTPGetAction,
        ImageVolumeSource, KeyToPath, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext,
        PodSpec, Probe, ProjectedVolumeSource, SeccompProfile, SecretProjection, SecretVolumeSource, SecurityContext,
        TCPSocketAction, Volume, VolumeDevice, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString},
};
use kube::{Resource, api::ObjectMeta};
use node_shim_protocol::{VmConfig, paths};
use thiserror::Error;

use super::{
    CONTAINER, GENERATION_ANNOTATION, MANAGED_BY_LABEL, RESTARTED_AT_ANNOTATION, SPEC_ANNOTATION, VM_LABEL,
    guest_command, networks,
    resources::Frame,
    snapshot::Snapshot,
    vm_config::{self, NETWORK_DATA_FILE, USER_DATA_FILE, vm_config},
};
use crate::virtual_machine::validate::{BootSource, Data, DiskSource, ProbeAction, ValidProbe, ValidatedVm};

/// User and group of the shim: the usual "nonroot" of distroless images, which no node's own user has.
const USER_ID: i64 = 65532;
/// Argo CD would otherwise show every shim pod as progressing for ever, because its restart policy is Never.
pub(super) const ARGO_CD_ANNOTATION: &str = "argocd.argoproj.io/ignore-restart-policy";
/// Seconds that the kubelet waits longer than the shim, so that the shim's own forced stop comes first and says why.
pub(super) const GRACE_PERIOD_RESERVE_SECONDS: i64 = 10;
/// Most bytes of all annotations of an object: `TotalAnnotationSizeLimitB` of `k8s.io/apimachinery/pkg/api/validation`.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

const BOOT_VOLUME: &str = "boot";
pub(super) const CONFIG_VOLUME: &str = "config";
pub(super) const SCRATCH_VOLUME: &str = "scratch";
const CLOUD_INIT_VOLUME: &str = "cloud-init";

/// Why no pod can be made from a VM.
#[derive(Debug, Error)]
pub(crate) enum PodError {
    #[error("failed to write the VM's configuration or its networks as JSON")]
    Json(#[source] serde_json::Error),
    #[error(
        "the VM's configuration and annotations need {0} bytes of the 262144 that a pod can carry: \
         put user data and network data into a Secret"
    )]
    TooLarge(usize),
}

/// The pod that should run a VM, with the shim from `shim_image`.
pub(crate) fn pod(vm: &ValidatedVm, shim_image: &str) -> Result<Pod, PodError> {
    let config = vm_config(vm);
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(vm.name.clone()),
            namespace: Some(vm.namespace.clone()),
            labels: Some(labels(vm)),
            annotations: Some(annotations(vm, &config)?),
            owner_references: Some(owner(vm).into_iter().collect()),
            ..ObjectMeta::default()
        },
        spec: Some(pod_spec(vm, &config, shim_image)),
        status: None,
    })
}

/// The VM owns its pod, so that the pod is deleted after it; a foreground deletion of the VM waits until the guest is off.
fn owner(vm: &ValidatedVm) -> Option<OwnerReference> {
    let owner = vm.source.controller_owner_ref(&())?;
    Some(OwnerReference {
        block_owner_deletion: Some(true),
        ..owner
    })
}

fn labels(vm: &ValidatedVm) -> BTreeMap<String, String> {
    let mut labels = vm.source.spec.pod_metadata.clone().unwrap_or_default().labels;
    labels.insert(VM_LABEL.to_owned(), vm.name.clone());
    labels.insert(MANAGED_BY_LABEL.0.to_owned(), MANAGED_BY_LABEL.1.to_owned());
    labels
}

fn annotations(vm: &ValidatedVm, config: &VmConfig) -> Result<BTreeMap<String, String>, PodError> {
    let mut annotations = vm.source.spec.pod_metadata.clone().unwrap_or_default().annotations;
    annotations.insert(ARGO_CD_ANNOTATION.to_owned(), "true".to_owned());
    annotations.insert(
        paths::CONFIG_ANNOTATION.to_owned(),
        serde_json::to_string(config).map_err(PodError::Json)?,
    );
    annotations.insert(SPEC_ANNOTATION.to_owned(), Snapshot::of(&vm.source.spec).text());
    if let Some(networks) = networks::annotation(vm).map_err(PodError::Json)? {
        annotations.insert(MULTUS_ANNOTATION.to_owned(), networks);
    }
    if let Some(generation) = vm.generation {
        annotations.insert(GENERATION_ANNOTATION.to_owned(), generation.to_string());
    }
    if let Some((text, _)) = &vm.restarted_at {
        annotations.insert(RESTARTED_AT_ANNOTATION.to_owned(), text.clone());
    }
    let bytes = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_ANNOTATION_BYTES {
        Err(PodError::TooLarge(bytes))
    } else {
        Ok(annotations)
    }
}

fn pod_spec(vm: &ValidatedVm, config: &VmConfig, shim_image: &str) -> PodSpec {
    let spec = &vm.source.spec;
    PodSpec {
        affinity: spec.affinity.clone(),
        automount_service_account_token: Some(false),
        containers: vec![container(vm, config, shim_image)],
        enable_service_links: Some(false),
        image_pull_secrets: (!spec.image_pull_secrets.is_empty()).then(|| spec.image_pull_secrets.clone()),
        node_selector: (!spec.node_selector.is_empty()).then(|| spec.node_selector.clone()),
        priority_class_name: spec.priority_class_name.clone(),
        restart_policy: Some("Never".to_owned()),
        scheduler_name: spec.scheduler_name.clone(),
        security_context: Some(pod_security()),
        termination_grace_period_seconds: Some(
            i64::try_from(vm.grace_period_seconds).unwrap_or(i64::from(i32::MAX)) + GRACE_PERIOD_RESERVE_SECONDS,
        ),
        tolerations: (!spec.tolerations.is_empty()).then(|| spec.tolerations.clone()),
        topology_spread_constraints: (!spec.topology_spread_constraints.is_empty())
            .then(|| spec.topology_spread_constraints.clone()),
        volumes: Some(volumes(vm)),
        ..PodSpec::default()
    }
}

fn container(vm: &ValidatedVm, config: &VmConfig, shim_image: &str) -> Container {
    let frame = Frame::new(config, vm.size.dedicated, vm.size.cpu_request_millis);
    let agent_socket = format!("{}/{}", paths::AGENT_DIR, paths::AGENT_SOCKET);
    let args = [
        "run",
        "--config",
        paths::CONFIG_FILE,
        "--agent",
        &agent_socket,
        "--pod-uid",
        // Filled in by the kubelet, from the variable.
        "$(POD_UID)",
        "--control",
        paths::CONTROL_SOCKET,
    ];
    Container {
        name: CONTAINER.to_owned(),
        image: Some(shim_image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        // The image's entry point is node-shim.
        args: Some(args.into_iter().map(str::to_owned).collect()),
        env: Some(vec![pod_uid()]),
        liveness_probe: vm.liveness_probe.as_ref().map(probe),
        readiness_probe: vm.readiness_probe.as_ref().map(probe),
        startup_probe: vm.startup_probe.as_ref().map(probe),
        resize_policy: Some(resize_policy()),
        resources: Some(frame.container(frame.start)),
        security_context: Some(container_security()),
        // The serial console: `kubectl attach -it` is its other end.
        stdin: Some(true),
        tty: Some(true),
        volume_devices: volume_devices(vm),
        volume_mounts: Some(volume_mounts(vm)),
        ..Container::default()
    }
}

/// What every pod of Tandem's is: a namespace with Pod Security `restricted` admits it.
pub(super) fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        fs_group: Some(USER_ID),
        run_as_group: Some(USER_ID),
        run_as_non_root: Some(true),
        run_as_user: Some(USER_ID),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..PodSecurityContext::default()
    }
}

/// The same of its container.
pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// The pod's UID, by which the node agent tells the runs of a VM from each other.
pub(super) fn pod_uid() -> EnvVar {
    EnvVar {
        name: "POD_UID".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.uid".to_owned(),
                api_version: Some("v1".to_owned()),
            }),
            ..EnvVarSource::default()
        }),
    }
}

/// A VM is resized while it runs: its container is never restarted for it.
fn resize_policy() -> Vec<ContainerResizePolicy> {
    let of = |resource: &str| ContainerResizePolicy {
        resource_name: resource.to_owned(),
        restart_policy: "NotRequired".to_owned(),
    };
    vec![of("cpu"), of("memory")]
}

fn probe(probe: &ValidProbe) -> Probe {
    let timing = &probe.timing;
    let mut result = Probe {
        initial_delay_seconds: timing.initial_delay_seconds,
        period_seconds: timing.period_seconds,
        timeout_seconds: timing.timeout_seconds,
        success_threshold: timing.success_threshold,
        failure_threshold: timing.failure_threshold,
        ..Probe::default()
    };
    match &probe.action {
        ProbeAction::HttpGet { port, path, scheme } => {
            result.http_get = Some(HTTPGetAction {
                path: path.clone(),
                port: IntOrString::Int(*port),
                scheme: scheme.map(|scheme| scheme.as_str().to_owned()),
                ..HTTPGetAction::default()
            });
        }
        ProbeAction::TcpSocket { port } => {
            result.tcp_socket = Some(TCPSocketAction {
                port: IntOrString::Int(*port),
                host: None,
            });
        }
        ProbeAction::Exec { command } => {
            result.exec = Some(ExecAction {
                command: Some(guest_command::exec(command, timing)),
            });
        }
        ProbeAction::GuestAgentPing => {
            result.exec = Some(ExecAction {
                command: Some(guest_command::ping(timing)),
            });
        }
    }
    result
}

/// Name of the volume that a disk is in. The kubelet mounts a claim once for a pod, so the disks of one share a volume.
fn volume_of(vm: &ValidatedVm, index: usize) -> String {
    let claim = vm.disks.get(index).and_then(|disk| disk.source.claim());
    let first = claim.and_then(|claim| vm.disks.iter().position(|disk| disk.source.claim() == Some(claim)));
    disk_volume(first.unwrap_or(index))
}

/// Name of a disk's volume: disks and Tandem's own volumes cannot collide, and a DNS label of 63 bytes stays one.
fn disk_volume(index: usize) -> String {
    format!("disk-{index}")
}

fn volumes(vm: &ValidatedVm) -> Vec<Volume> {
    let mut volumes = vec![
        config_volume(paths::CONFIG_ANNOTATION, paths::CONFIG_FILE),
        scratch_volume(),
    ];
    match &vm.boot {
        BootSource::Kernel(kernel) => volumes.push(image_volume(
            BOOT_VOLUME.to_owned(),
            &kernel.image,
            kernel.pull_policy.as_str(),
        )),
        BootSource::Disk(_) => {}
    }
    for (index, disk) in vm.disks.iter().enumerate() {
        match &disk.source {
            DiskSource::Image { image, pull_policy, .. } => {
                volumes.push(image_volume(disk_volume(index), image, pull_policy.as_str()));
            }
            DiskSource::ClaimFile { claim, .. } | DiskSource::ClaimDevice { claim } => {
                if volume_of(vm, index) == disk_volume(index) {
                    volumes.push(claim_volume(vm, disk_volume(index), claim));
                }
            }
            DiskSource::ConfigMap { name } => volumes.push(config_map_volume(disk_volume(index), name)),
            DiskSource::Secret { name } => volumes.push(secret_volume(disk_volume(index), name)),
            DiskSource::Empty { .. } => {}
        }
    }
    volumes.extend(cloud_init_volume(vm));
    volumes
}

/// An annotation of the pod as a file.
pub(super) fn config_volume(annotation: &str, file: &str) -> Volume {
    Volume {
        name: CONFIG_VOLUME.to_owned(),
        downward_api: Some(DownwardAPIVolumeSource {
            items: Some(vec![DownwardAPIVolumeFile {
                path: file
                    .trim_start_matches(paths::CONFIG_DIR)
                    .trim_start_matches('/')
                    .to_owned(),
                field_ref: Some(ObjectFieldSelector {
                    field_path: format!("metadata.annotations['{annotation}']"),
                    api_version: Some("v1".to_owned()),
                }),
                ..DownwardAPIVolumeFile::default()
            }]),
            default_mode: None,
        }),
        ..Volume::default()
    }
}

pub(super) fn scratch_volume() -> Volume {
    Volume {
        name: SCRATCH_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    }
}

pub(super) fn config_map_volume(volume: String, name: &str) -> Volume {
    Volume {
        name: volume,
        config_map: Some(ConfigMapVolumeSource {
            name: name.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

pub(super) fn secret_volume(volume: String, name: &str) -> Volume {
    Volume {
        name: volume,
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// A claim; it is read-only where every disk in it is.
fn claim_volume(vm: &ValidatedVm, name: String, claim: &str) -> Volume {
    let mut disks = vm.disks.iter().filter(|disk| disk.source.claim() == Some(claim));
    Volume {
        name,
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            read_only: disks.all(|disk| disk.read_only).then_some(true),
        }),
        ..Volume::default()
    }
}

fn image_volume(name: String, reference: &str, pull_policy: &str) -> Volume {
    Volume {
        name,
        image: Some(ImageVolumeSource {
            reference: Some(reference.to_owned()),
            pull_policy: Some(pull_policy.to_owned()),
        }),
        ..Volume::default()
    }
}

/// The Secrets that cloud-init's or Ignition's data comes from, one projection each: the kubelet reads them, the operator cannot.
fn cloud_init_volume(vm: &ValidatedVm) -> Option<Volume> {
    let seed = vm.seed.as_ref()?;
    let data = [
        (&seed.user_data, USER_DATA_FILE),
        (&seed.network_data, NETWORK_DATA_FILE),
    ];
    let sources: Vec<VolumeProjection> = data
        .into_iter()
        .filter_map(|(data, file)| match data {
            Some(Data::Secret { name, key }) => Some(VolumeProjection {
                secret: Some(SecretProjection {
                    name: name.clone(),
                    items: Some(vec![KeyToPath {
                        key: key.clone(),
                        path: file.to_owned(),
                        mode: None,
                    }]),
                    optional: None,
                }),
                ..VolumeProjection::default()
            }),
            Some(Data::Inline(_)) | None => None,
        })
        .collect();
    (!sources.is_empty()).then(|| Volume {
        name: CLOUD_INIT_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(sources),
            default_mode: None,
        }),
        ..Volume::default()
    })
}

/// The claims that are block devices.
fn volume_devices(vm: &ValidatedVm) -> Option<Vec<VolumeDevice>> {
    let devices: Vec<VolumeDevice> = vm
        .disks
        .iter()
        .enumerate()
        .filter(|(_, disk)| matches!(disk.source, DiskSource::ClaimDevice { .. }))
        .map(|(index, disk)| VolumeDevice {
            name: disk_volume(index),
            device_path: vm_config::disk_device(&disk.name).display().to_string(),
        })
        .collect();
    (!devices.is_empty()).then_some(devices)
}

fn volume_mounts(vm: &ValidatedVm) -> Vec<VolumeMount> {
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
    match vm.boot {
        BootSource::Kernel(_) => mounts.push(mount(BOOT_VOLUME, paths::BOOT_DIR.to_owned(), true)),
        BootSource::Disk(_) => {}
    }
    for (index, disk) in vm.disks.iter().enumerate() {
        // What the guest writes goes into the file of a claim, and beside an image.
        let read_only = match disk.source {
            DiskSource::ClaimFile { .. } => disk.read_only,
            DiskSource::Image { .. } | DiskSource::ConfigMap { .. } | DiskSource::Secret { .. } => true,
            DiskSource::ClaimDevice { .. } | DiskSource::Empty { .. } => continue,
        };
        let path = vm_config::disk_mount(&disk.name).display().to_string();
        mounts.push(mount(&volume_of(vm, index), path, read_only));
    }
    if cloud_init_volume(vm).is_some() {
        mounts.push(mount(CLOUD_INIT_VOLUME, paths::CLOUD_INIT_DIR.to_owned(), true));
    }
    mounts
}
