//! What a VM's pod asks for, and how that follows from what its guest has.
//!
//! A VM's pod keeps its quality-of-service class for life, because Kubernetes refuses a resize that would change it. An ordinary VM is *Burstable*: a
//! CPU request and no CPU limit, so that the request can follow the guest's CPUs in either direction; memory is requested as it is limited,
//! because a guest's memory cannot be taken back in need. A VM with dedicated CPUs is *Guaranteed*, which is what the static CPU manager asks for.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use node_shim_protocol::{
    VmConfig,
    config::{Disk, DiskSource, HugePages, Memory},
    overhead::overhead_bytes,
};

use super::KVM_RESOURCE;

/// Devices that every VM has besides its disks and interfaces: the entropy source.
const OTHER_DEVICES: u64 = 1;
/// What is plugged while a VM runs is a multiple of this: a block of virtio-mem.
const PLUG_STEP_BYTES: u64 = crds::memory::PLUG_STEP_BYTES;

/// What a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestSize {
    pub(crate) vcpus: u32,
    pub(crate) memory_bytes: u64,
}

/// What a pod may use, of what can be resized in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodSize {
    /// CPU request in thousandths of a CPU.
    pub(crate) cpu_millis: u64,
    /// Memory request and limit.
    pub(crate) memory_bytes: u64,
}

/// What of a VM does not change while its pod lives, as far as the pod's resources follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What the guest starts with.
    pub(crate) start: GuestSize,
    /// The most that the guest can have.
    pub(crate) max: GuestSize,
    dedicated: bool,
    huge_pages: Option<HugePages>,
    devices: u64,
    /// CPU time that the spec asks for; this alone can change.
    request_millis: Option<u64>,
}

/// What a disk costs beyond a device, in devices: one of files is kept in memory, 1 MiB at most, and is there twice for a moment when its guest is reset.
const fn beyond_a_device(disk: &Disk) -> u64 {
    match disk.source {
        DiskSource::Files { .. } => 2,
        DiskSource::Image { .. } | DiskSource::File { .. } | DiskSource::Device { .. } | DiskSource::Empty { .. } => 0,
    }
}

impl Frame {
    /// The frame of a VM with this configuration.
    pub(crate) fn new(config: &VmConfig, dedicated: bool, request_millis: Option<u64>) -> Self {
        let Memory {
            size_bytes,
            max_size_bytes,
            huge_pages,
        } = config.memory;
        let later = max_size_bytes.unwrap_or(size_bytes).saturating_sub(size_bytes) / PLUG_STEP_BYTES * PLUG_STEP_BYTES;
        let some = |there: bool| u64::from(there);
        Self {
            start: GuestSize {
                vcpus: config.cpu.cores,
                memory_bytes: size_bytes,
            },
            max: GuestSize {
                vcpus: config.cpu.max_cores.unwrap_or(config.cpu.cores),
                memory_bytes: size_bytes + later,
            },
            dedicated,
            huge_pages,
            devices: (config.disks.len() + config.interfaces.len()) as u64
                + config.disks.iter().map(beyond_a_device).sum::<u64>()
                + some(config.cloud_init.is_some())
                + some(config.vsock.is_some())
                + some(later > 0)
                + OTHER_DEVICES,
            request_millis: request_millis.filter(|_| !dedicated),
        }
    }

    /// The frame with so many devices beyond those of the configuration.
    pub(crate) const fn with_more_devices(mut self, devices: u64) -> Self {
        self.devices += devices;
        self
    }

    /// Whether a running guest can be given `vcpus`.
    pub(crate) fn can_have_vcpus(&self, vcpus: u32) -> bool {
        if self.dedicated {
            vcpus == self.start.vcpus
        } else {
            (1..=self.max.vcpus).contains(&vcpus)
        }
    }

    /// Whether a running guest can be given this much memory: nothing below what it started with can be unplugged.
    pub(crate) fn can_have_memory(&self, bytes: u64) -> bool {
        (self.start.memory_bytes..=self.max.memory_bytes).contains(&bytes)
            && (bytes - self.start.memory_bytes).is_multiple_of(PLUG_STEP_BYTES)
    }

    /// What the pod of a guest of this size may use. Each part follows from the same part of the guest alone, and grows with it.
    pub(crate) fn pod_size(&self, guest: GuestSize) -> PodSize {
        let per_core = if self.dedicated {
            1000
        } else {
            crds::cpu::DEFAULT_REQUEST_MILLIS_PER_CORE
        };
        // A vCPU that was unplugged stays in KVM, with what it costs: so they all count from the beginning.
        let overhead = overhead_bytes(guest.memory_bytes, u64::from(self.max.vcpus), self.devices);
        PodSize {
            cpu_millis: self.request_millis.unwrap_or(per_core * u64::from(guest.vcpus)),
            memory_bytes: match self.huge_pages {
                // The guest's memory is of the pool, and all of it from the beginning.
                Some(_) => overhead_bytes(self.max.memory_bytes, u64::from(self.max.vcpus), self.devices),
                None => guest.memory_bytes + overhead,
            },
        }
    }

    /// The resources of the container of a guest of this size.
    pub(crate) fn container(&self, guest: GuestSize) -> ResourceRequirements {
        let size = self.pod_size(guest);
        let mut requests = BTreeMap::from([(KVM_RESOURCE.to_owned(), Quantity("1".to_owned()))]);
        requests.insert("memory".to_owned(), mebibytes(size.memory_bytes));
        if let Some(pages) = self.huge_pages {
            requests.insert(format!("hugepages-{pages}"), mebibytes(self.max.memory_bytes));
        }
        let mut limits = requests.clone();
        requests.insert("cpu".to_owned(), cpu_quantity(size.cpu_millis));
        if self.dedicated {
            limits.insert("cpu".to_owned(), cpu_quantity(size.cpu_millis));
        }
        ResourceRequirements {
            limits: Some(limits),
            requests: Some(requests),
            claims: None,
        }
    }

    /// What the `resize` subresource is patched with. With dedicated CPUs limit and request are one.
    pub(crate) fn resize_patch(&self, size: PodSize, container: &str) -> serde_json::Value {
        let mut limits = BTreeMap::from([("memory", mebibytes(size.memory_bytes))]);
        let requests = BTreeMap::from([
            ("memory", mebibytes(size.memory_bytes)),
            ("cpu", cpu_quantity(size.cpu_millis)),
        ]);
        if self.dedicated {
            limits.insert("cpu", cpu_quantity(size.cpu_millis));
        }
        serde_json::json!({ "spec": { "containers": [
            { "name": container, "resources": { "limits": limits, "requests": requests } },
        ] } })
    }
}

fn mebibytes(bytes: u64) -> Quantity {
    Quantity(format!("{}Mi", bytes >> 20))
}

fn cpu_quantity(millis: u64) -> Quantity {
    Quantity(format!("{millis}m"))
}
