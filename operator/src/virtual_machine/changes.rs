//! Pure: what of a spec that was edited reaches the VM that runs, and what waits for a restart.
//!
//! ```text
//! the pod's own annotations                      the spec as it is now
//!  VmConfig: what the VMM was started with        (instance type filled in)
//!  snapshot of the spec                              │
//!           └──────────────► decide ◄────────────────┘
//!                              │ what the guest should have, what waits for a restart
//! ```

use std::collections::BTreeSet;

use crds::{
    applies::{self, Applies},
    disk::IoMode,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use node_shim_protocol::{VmConfig, paths};

use super::{
    desired::{
        SPEC_ANNOTATION,
        resources::{Frame, GuestSize},
        snapshot::{self, Snapshot},
    },
    hotplug::VolumePod,
    validate::{DiskSource, ValidDisk, ValidatedVm},
};

/// What a pod that runs was made from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Running {
    pub(crate) config: VmConfig,
    pub(crate) spec: Snapshot,
}

impl Running {
    /// What a pod was made from; `None` for one of an operator that did not write it down.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let annotations = pod.annotations();
        Some(Self {
            config: serde_json::from_str(annotations.get(paths::CONFIG_ANNOTATION)?).ok()?,
            spec: Snapshot::parse(annotations.get(SPEC_ANNOTATION)?)?,
        })
    }
}

/// What follows from the differences between a spec and the pod that runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Changes {
    /// What follows from what for this pod's resources.
    pub(crate) frame: Frame,
    /// What the guest should have: as the spec says, as far as it can be given without a restart.
    pub(crate) size: GuestSize,
    /// Whether the pod's own labels and annotations are to be changed.
    pub(crate) pod_metadata: bool,
    /// Fields that are applied by a resize.
    pub(crate) by_resize: Vec<String>,
    /// Fields that wait for a restart.
    pub(crate) by_restart: Vec<String>,
    /// Names of the disks that the pod was not made with, and that can be plugged.
    pub(crate) plugged: Vec<String>,
}

/// How a changed field gets to the VM that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Resize,
    PodMetadata,
    HotPlug,
    Restart,
}

/// Decides about a VM that runs. `held` is what its guest was last asked to have: it keeps that where the spec asks for what only a restart can give. `volumes`
/// are its volume pods.
pub(crate) fn decide(running: &Running, vm: &ValidatedVm, held: GuestSize, volumes: &[VolumePod]) -> Changes {
    let spec = Snapshot::of(&vm.source.spec);
    let differences = running.spec.differences(&spec);
    let added = vm.disks.iter().filter(|disk| is_added(&differences, disk));
    let plugged: Vec<String> = added.map(|disk| disk.name.clone()).collect();
    let more_disks = plugged.iter().chain(volumes.iter().map(|volume| &volume.disk));
    let more_disks: BTreeSet<&String> = more_disks.collect();
    // The size of the running VM's frame is its own; only the CPU time that is asked for follows the spec, and what plugged disks cost.
    let frame = Frame::new(&running.config, running.spec.is_dedicated(), vm.size.cpu_request_millis);
    let frame = frame.with_more_devices(more_disks.len() as u64);
    let wanted = GuestSize {
        vcpus: vm.size.cores,
        memory_bytes: vm.size.memory_bytes,
    };
    let size = GuestSize {
        vcpus: if frame.can_have_vcpus(wanted.vcpus) {
            wanted.vcpus
        } else {
            held.vcpus
        },
        memory_bytes: if frame.can_have_memory(wanted.memory_bytes) {
            wanted.memory_bytes
        } else {
            held.memory_bytes
        },
    };
    let (mut by_resize, mut by_restart, mut pod_metadata) = (BTreeSet::new(), BTreeSet::new(), false);
    let names = Names::new(running, &spec);
    for path in differences {
        if path == "instanceType.name" {
            continue;
        }
        let is_plugged = plugged.iter().any(|disk| path == format!("disks[{disk}]"));
        match way(&path, size, wanted, running.spec.is_dedicated(), is_plugged) {
            Way::Resize => {
                by_resize.insert(names.shown(path));
            }
            Way::Restart => {
                by_restart.insert(names.shown(path));
            }
            Way::PodMetadata => pod_metadata = true,
            Way::HotPlug => {}
        }
    }
    by_restart.extend(changed_disks(vm, volumes));
    Changes {
        frame,
        size,
        pod_metadata,
        by_resize: by_resize.difference(&by_restart).cloned().collect(),
        by_restart: by_restart.into_iter().collect(),
        plugged,
    }
}

/// Whether a disk was added that can be plugged. An image cannot: what its guest writes is kept in its own pod. Nor can a ring be made once the VMM has its
/// filters.
fn is_added(differences: &[String], disk: &ValidDisk) -> bool {
    let can = match disk.source {
        DiskSource::Image { .. } => false,
        DiskSource::Empty { .. }
        | DiskSource::ClaimFile { .. }
        | DiskSource::ClaimDevice { .. }
        | DiskSource::ConfigMap { .. }
        | DiskSource::Secret { .. } => disk.io != Some(IoMode::IoUring),
    };
    can && differences.contains(&format!("disks[{}]", disk.name))
}

/// Fields of disks that have been plugged otherwise.
fn changed_disks<'a>(vm: &'a ValidatedVm, volumes: &'a [VolumePod]) -> impl Iterator<Item = String> + 'a {
    let disks = vm.source.spec.disks.iter();
    disks.flat_map(move |disk| {
        let volume = volumes.iter().find(|volume| volume.disk == disk.name);
        let made = volume.and_then(|volume| volume.disk_spec.as_ref());
        made.map(|made| snapshot::disk_differences(made, disk))
            .unwrap_or_default()
    })
}

/// How one field gets there.
fn way(path: &str, size: GuestSize, wanted: GuestSize, dedicated: bool, is_plugged: bool) -> Way {
    if is_plugged {
        return Way::HotPlug;
    }
    let unless = |restart: bool| if restart { Way::Restart } else { Way::Resize };
    match applies::find(path).map(|field| (field.path, field.applies)) {
        Some(("cpu.cores", Applies::Live)) => unless(size.vcpus != wanted.vcpus),
        Some(("cpu.request", Applies::Live)) => unless(dedicated),
        Some(("memory.size", Applies::Live)) => unless(size.memory_bytes != wanted.memory_bytes),
        Some(("podMetadata.labels" | "podMetadata.annotations", Applies::Live)) => Way::PodMetadata,
        Some((_, Applies::Live | Applies::Restart)) | None => Way::Restart,
    }
}

/// How fields are named to the VM's owner, who did not write what the instance type says.
struct Names {
    by_type: bool,
}

impl Names {
    fn new(running: &Running, wanted: &Snapshot) -> Self {
        Self {
            by_type: running.spec.instance_type().is_some() || wanted.instance_type().is_some(),
        }
    }

    fn shown(&self, path: String) -> String {
        let from_type = ["cpu.", "memory.", "nodeSelector", "tolerations"]
            .iter()
            .any(|start| path.starts_with(start));
        if self.by_type && from_type {
            "instanceType.name".to_owned()
        } else {
            path
        }
    }
}
