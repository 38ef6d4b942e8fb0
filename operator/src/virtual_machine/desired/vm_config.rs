//! The `VmConfig` of a VM: the only place that knows the spec's words and the VMM's.

use std::path::{Path, PathBuf};

use crds::disk::{CacheMode, DiscardMode, IoMode};
use node_shim_protocol::{
    config::{
        Binding, Boot, Cache, CloudInit, Cpu, Discard, Disk, DiskBoot, DiskFormat, DiskSource, HugePages, Interface,
        Io, KernelBoot, Memory, Rate, RateLimit, Shutdown, Text, VERSION, VmConfig, Vsock,
    },
    paths,
};

use super::identity;
use crate::virtual_machine::validate::{
    self, BootSource, Data, ValidBinding, ValidDisk, ValidInterface, ValidLimits, ValidatedVm,
};

/// File name of user data in the cloud-init volume.
pub(crate) const USER_DATA_FILE: &str = "user-data";
/// File name of network data in the cloud-init volume.
pub(crate) const NETWORK_DATA_FILE: &str = "network-config";

/// What `node-shim` is told about a VM.
pub(crate) fn vm_config(vm: &ValidatedVm) -> VmConfig {
    VmConfig {
        version: VERSION,
        name: vm.name.clone(),
        uuid: identity::uuid(&vm.uid).to_string(),
        cpu: Cpu {
            cores: vm.size.cores,
            max_cores: (vm.size.max_cores > vm.size.cores).then_some(vm.size.max_cores),
        },
        memory: Memory {
            size_bytes: vm.size.memory_bytes,
            max_size_bytes: (vm.size.max_memory_bytes > vm.size.memory_bytes).then_some(vm.size.max_memory_bytes),
            huge_pages: vm.size.huge_pages.map(huge_pages),
        },
        boot: match &vm.boot {
            BootSource::Kernel(boot) => Boot::Kernel(KernelBoot {
                kernel: inside(Path::new(paths::BOOT_DIR), &boot.kernel_path),
                initrd: boot
                    .initrd_path
                    .as_deref()
                    .map(|path| inside(Path::new(paths::BOOT_DIR), path)),
                command_line: boot.command_line.clone(),
            }),
            BootSource::Disk(name) => Boot::Disk(DiskBoot { name: name.clone() }),
        },
        disks: vm.disks.iter().map(disk).collect(),
        interfaces: vm.interfaces.iter().map(|it| interface(vm, it)).collect(),
        cloud_init: vm.seed.as_ref().map(|seed| CloudInit {
            instance_id: vm.uid.clone(),
            hostname: vm.name.clone(),
            user_data: seed.user_data.as_ref().map(|data| text(data, USER_DATA_FILE)),
            network_data: seed.network_data.as_ref().map(|data| text(data, NETWORK_DATA_FILE)),
        }),
        vsock: needs_guest_agent(vm).then(|| Vsock {
            socket: PathBuf::from(paths::VSOCK_SOCKET),
            guest_cid: None,
        }),
        shutdown: Shutdown {
            grace_period_seconds: vm.grace_period_seconds,
        },
        scratch: PathBuf::from(paths::SCRATCH_DIR),
    }
}

/// Whether something in the spec goes through the agent in the guest.
fn needs_guest_agent(vm: &ValidatedVm) -> bool {
    let mut probes = [&vm.readiness_probe, &vm.liveness_probe, &vm.startup_probe]
        .into_iter()
        .flatten();
    probes.any(|probe| probe.action.needs_guest_agent())
}

/// Where a disk's volume is mounted.
pub(crate) fn disk_mount(name: &str) -> PathBuf {
    Path::new(paths::DISKS_DIR).join(name)
}

/// Where a disk's block device is.
pub(crate) fn disk_device(name: &str) -> PathBuf {
    Path::new(paths::DEVICES_DIR).join(name)
}

/// An absolute path in a volume, below its mount point.
fn inside(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// A disk in the VMM's language.
pub(super) fn disk(disk: &ValidDisk) -> Disk {
    let source = match &disk.source {
        validate::DiskSource::Image { path, format, .. } => DiskSource::Image {
            path: inside(&disk_mount(&disk.name), path),
            format: format.map(disk_format),
            backing: Vec::new(),
        },
        validate::DiskSource::ClaimFile { path, size_bytes, .. } => DiskSource::File {
            path: inside(&disk_mount(&disk.name), path),
            size_bytes: *size_bytes,
        },
        validate::DiskSource::ClaimDevice { .. } => DiskSource::Device {
            path: disk_device(&disk.name),
        },
        validate::DiskSource::ConfigMap { .. } | validate::DiskSource::Secret { .. } => DiskSource::Files {
            path: disk_mount(&disk.name),
            label: disk.label(),
        },
        validate::DiskSource::Empty { size_bytes } => DiskSource::Empty {
            size_bytes: *size_bytes,
        },
    };
    Disk {
        name: disk.name.clone(),
        serial: disk.serial.clone(),
        read_only: disk.read_only,
        rate_limit: rate_limit(disk.limits),
        cache: match disk.cache {
            CacheMode::Writeback => Cache::Writeback,
            CacheMode::None => Cache::None,
        },
        io: disk.io.map(|io| match io {
            IoMode::Threads => Io::Threads,
            IoMode::IoUring => Io::IoUring,
        }),
        discard: match disk.discard {
            DiscardMode::Unmap => Discard::Unmap,
            DiscardMode::Ignore => Discard::Ignore,
        },
        source,
    }
}

const fn disk_format(format: crds::disk::DiskFormat) -> DiskFormat {
    match format {
        crds::disk::DiskFormat::Raw => DiskFormat::Raw,
        crds::disk::DiskFormat::Qcow2 => DiskFormat::Qcow2,
        crds::disk::DiskFormat::Vhd => DiskFormat::Vhd,
        crds::disk::DiskFormat::Vmdk => DiskFormat::Vmdk,
    }
}

const fn huge_pages(pages: crds::memory::HugePages) -> HugePages {
    match pages {
        crds::memory::HugePages::TwoMebibytes => HugePages::TwoMebibytes,
        crds::memory::HugePages::OneGibibyte => HugePages::OneGibibyte,
    }
}

fn rate_limit(limits: ValidLimits) -> RateLimit {
    let rate = |(per_second, burst)| Rate { per_second, burst };
    RateLimit {
        bytes: limits.bytes.map(rate),
        operations: limits.operations.map(rate),
    }
}

fn interface(vm: &ValidatedVm, interface: &ValidInterface) -> Interface {
    Interface {
        name: interface.name.clone(),
        mac: identity::mac(&vm.uid, &interface.name),
        receive_limit: rate_limit(interface.receive_limits),
        transmit_limit: rate_limit(interface.transmit_limits),
        binding: match interface.binding {
            ValidBinding::Masquerade => Binding::Masquerade,
            ValidBinding::Bridge => Binding::Bridge,
        },
        pod_interface: interface
            .network
            .as_ref()
            .map(|_| identity::pod_interface(&interface.name)),
    }
}

fn text(data: &Data, file: &str) -> Text {
    match data {
        Data::Inline(text) => Text::Inline(text.clone()),
        Data::Secret { .. } => Text::File(Path::new(paths::CLOUD_INIT_DIR).join(file)),
    }
}
