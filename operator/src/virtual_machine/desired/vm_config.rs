//! The `VmConfig` of a VM: the only place that knows the spec's words and the VMM's.

use std::path::{Path, PathBuf};

use node_shim_protocol::{
    config::{
        Binding, Boot, CloudInit, Cpu, Disk, DiskBoot, DiskFormat, DiskSource, Interface, KernelBoot, Memory,
        RateLimit, Shutdown, Text, VERSION, VmConfig,
    },
    paths,
};

use super::identity;
use crate::virtual_machine::validate::{self, BootSource, Data, ValidDisk, ValidatedVm};

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
            cores: vm.cores,
            max_cores: None,
        },
        memory: Memory {
            size_bytes: vm.memory_bytes,
            max_size_bytes: None,
            huge_pages: None,
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
        interfaces: vm.interfaces.iter().map(|name| interface(vm, name)).collect(),
        cloud_init: vm.cloud_init.as_ref().map(|cloud_init| CloudInit {
            instance_id: vm.uid.clone(),
            hostname: vm.name.clone(),
            user_data: cloud_init.user_data.as_ref().map(|data| text(data, USER_DATA_FILE)),
            network_data: cloud_init
                .network_data
                .as_ref()
                .map(|data| text(data, NETWORK_DATA_FILE)),
        }),
        vsock: None,
        shutdown: Shutdown {
            grace_period_seconds: vm.grace_period_seconds,
        },
        scratch: PathBuf::from(paths::SCRATCH_DIR),
    }
}

/// Where a disk's image volume is mounted.
pub(crate) fn disk_mount(name: &str) -> PathBuf {
    Path::new(paths::DISKS_DIR).join(name)
}

/// An absolute path of an image, below the mount point of that image.
fn inside(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn disk(disk: &ValidDisk) -> Disk {
    let source = match &disk.source {
        validate::DiskSource::Image { path, format, .. } => DiskSource::Image {
            path: inside(&disk_mount(&disk.name), path),
            format: format.map(disk_format),
            backing: Vec::new(),
        },
        validate::DiskSource::Empty { size_bytes } => DiskSource::Empty {
            size_bytes: *size_bytes,
        },
    };
    Disk {
        name: disk.name.clone(),
        serial: None,
        read_only: disk.read_only,
        rate_limit: RateLimit::default(),
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

fn interface(vm: &ValidatedVm, name: &str) -> Interface {
    Interface {
        name: name.to_owned(),
        mac: identity::mac(&vm.uid, name),
        receive_limit: RateLimit::default(),
        transmit_limit: RateLimit::default(),
        binding: Binding::Masquerade,
    }
}

fn text(data: &Data, file: &str) -> Text {
    match data {
        Data::Inline(text) => Text::Inline(text.clone()),
        Data::Secret { .. } => Text::File(Path::new(paths::CLOUD_INIT_DIR).join(file)),
    }
}
