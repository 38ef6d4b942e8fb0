//! Pure: turns a VirtualMachine into a [`ValidatedVm`], which can only say what a pod and a `VmConfig` can be made from.
//!
//! The API server has checked most of it by schema and CEL. It is checked again here because an object may be older than the CRD.

use crds::{
    Quantity, RunPolicy, VirtualMachine,
    boot::{self, Boot},
    cloud_init::{CloudInit, DEFAULT_NETWORK_DATA_KEY, DEFAULT_USER_DATA_KEY, MAX_INLINE_BYTES, SecretKeyReference},
    disk::{Disk, DiskFormat, EMPTY_DISK_STEP_BYTES, MAX_EMPTY_DISK_BYTES},
    image::PullPolicy,
    memory,
    network_interface::NetworkInterface,
    probe::{Probe, Scheme},
};
use jiff::Timestamp;
use thiserror::Error;

/// A VM whose spec makes sense.
#[derive(Clone, Debug)]
pub(crate) struct ValidatedVm {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) generation: Option<i64>,
    pub(crate) run_policy: RunPolicy,
    /// The text and its meaning.
    pub(crate) restarted_at: Option<(String, Timestamp)>,
    pub(crate) cores: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) boot: BootSource,
    pub(crate) disks: Vec<ValidDisk>,
    pub(crate) interfaces: Vec<String>,
    pub(crate) cloud_init: Option<ValidCloudInit>,
    pub(crate) readiness_probe: Option<ValidProbe>,
    pub(crate) liveness_probe: Option<ValidProbe>,
    pub(crate) grace_period_seconds: u64,
    /// The object itself, for what goes into the pod unchanged.
    pub(crate) source: VirtualMachine,
}

/// What the VM starts from.
#[derive(Clone, Debug)]
pub(crate) enum BootSource {
    Kernel(KernelBoot),
    /// What is on the disk with this name.
    Disk(String),
}

/// A kernel in an image.
#[derive(Clone, Debug)]
pub(crate) struct KernelBoot {
    pub(crate) image: String,
    pub(crate) pull_policy: PullPolicy,
    pub(crate) kernel_path: String,
    pub(crate) initrd_path: Option<String>,
    pub(crate) command_line: String,
}

/// A disk with exactly one source.
#[derive(Clone, Debug)]
pub(crate) struct ValidDisk {
    pub(crate) name: String,
    pub(crate) read_only: bool,
    pub(crate) source: DiskSource,
}

/// Source of a disk.
#[derive(Clone, Debug)]
pub(crate) enum DiskSource {
    Image {
        image: String,
        path: String,
        format: Option<DiskFormat>,
        pull_policy: PullPolicy,
    },
    Empty {
        size_bytes: u64,
    },
}

/// cloud-init data with at most one source each.
#[derive(Clone, Debug)]
pub(crate) struct ValidCloudInit {
    pub(crate) user_data: Option<Data>,
    pub(crate) network_data: Option<Data>,
}

/// Source of cloud-init data.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Inline(String),
    Secret { name: String, key: String },
}

/// A probe with exactly one action.
#[derive(Clone, Debug)]
pub(crate) struct ValidProbe {
    pub(crate) action: ProbeAction,
    pub(crate) timing: Probe,
}

/// What a probe does.
#[derive(Clone, Debug)]
pub(crate) enum ProbeAction {
    HttpGet {
        port: i32,
        path: Option<String>,
        scheme: Option<Scheme>,
    },
    TcpSocket {
        port: i32,
    },
}

/// What is wrong with a spec, and what to write instead.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Invalid {
    #[error("the API server did not give this object a {0}")]
    Metadata(&'static str),
    #[error("spec.cpu.cores is {0}: write a number from 1 to 32")]
    Cores(i32),
    #[error("{field} is {value:?}: write {expected}")]
    Size {
        field: String,
        value: String,
        expected: &'static str,
    },
    #[error("spec.restartedAt is {0:?}: write a time as in 2026-01-31T12:00:00Z")]
    RestartedAt(String),
    #[error("spec.boot must have exactly one source: write either kernel, or disk with the name of one of spec.disks")]
    Boot,
    #[error("there is nothing to boot: write at least one disk that has a boot loader, or spec.boot.kernel")]
    NothingToBoot,
    #[error("spec.boot.disk is {0:?}: write the name of one of spec.disks")]
    BootDisk(String),
    #[error("spec.boot.kernel.commandLine is longer than the 2047 bytes that Linux reads")]
    CommandLine,
    #[error("{field} is {path:?}: write an absolute path without . and ..")]
    Path { field: String, path: String },
    #[error("disk {0:?} must have exactly one source: write either image or emptyDisk")]
    DiskSource(String),
    #[error("{kind} name {name:?} cannot be used: write a DNS label that no other {kind} of this VM has")]
    Name { kind: &'static str, name: String },
    #[error("interface {0:?} has no binding: write masquerade: {{}}")]
    Binding(String),
    #[error("only one interface can be bound to the pod's network: remove the others")]
    ManyMasquerades,
    #[error("spec.cloudInit has both {0} and {0}SecretRef: write one of them")]
    CloudInitSources(&'static str),
    #[error("spec.cloudInit.{0} is longer than 32 KiB: put it into a Secret and write {0}SecretRef")]
    CloudInitSize(&'static str),
    #[error("spec.{0} must have exactly one action: write either httpGet or tcpSocket")]
    Probe(&'static str),
}

/// Checks a VirtualMachine.
pub(crate) fn validate(vm: &VirtualMachine) -> Result<ValidatedVm, Invalid> {
    let spec = &vm.spec;
    let cores = u32::try_from(spec.cpu.cores)
        .ok()
        .filter(|cores| (1..=32).contains(cores));
    let grace_period_seconds = spec.termination_grace_period_seconds().clamp(1, 3600).unsigned_abs();
    Ok(ValidatedVm {
        name: vm.metadata.name.clone().ok_or(Invalid::Metadata("name"))?,
        namespace: vm.metadata.namespace.clone().ok_or(Invalid::Metadata("namespace"))?,
        uid: vm.metadata.uid.clone().ok_or(Invalid::Metadata("uid"))?,
        generation: vm.metadata.generation,
        run_policy: spec.run_policy(),
        restarted_at: restarted_at(spec.restarted_at.as_deref())?,
        cores: cores.ok_or(Invalid::Cores(spec.cpu.cores))?,
        memory_bytes: size(
            "spec.memory.size",
            &spec.memory.size,
            memory::MIN_BYTES..=memory::MAX_BYTES,
            memory::STEP_BYTES,
            "a whole number of MiB from 32Mi to 1Ti, for example 512Mi",
        )?,
        boot: boot(spec.boot.as_ref(), &spec.disks)?,
        disks: disks(&spec.disks)?,
        interfaces: interfaces(&spec.interfaces)?,
        cloud_init: spec.cloud_init.as_ref().map(cloud_init).transpose()?,
        readiness_probe: spec
            .readiness_probe
            .as_ref()
            .map(|it| probe("readinessProbe", it))
            .transpose()?,
        liveness_probe: spec
            .liveness_probe
            .as_ref()
            .map(|it| probe("livenessProbe", it))
            .transpose()?,
        grace_period_seconds,
        source: vm.clone(),
    })
}

fn restarted_at(text: Option<&str>) -> Result<Option<(String, Timestamp)>, Invalid> {
    text.map(|text| match text.parse() {
        Ok(time) => Ok((text.to_owned(), time)),
        Err(_) => Err(Invalid::RestartedAt(text.to_owned())),
    })
    .transpose()
}

fn size(
    field: &str,
    quantity: &Quantity,
    range: std::ops::RangeInclusive<u64>,
    step: u64,
    expected: &'static str,
) -> Result<u64, Invalid> {
    let bytes = quantity
        .bytes()
        .ok()
        .filter(|bytes| range.contains(bytes) && bytes % step == 0);
    bytes.ok_or_else(|| Invalid::Size {
        field: field.to_owned(),
        value: quantity.0.clone(),
        expected,
    })
}

fn boot(boot: Option<&Boot>, disks: &[Disk]) -> Result<BootSource, Invalid> {
    let Some(boot) = boot else {
        let first = disks.first().ok_or(Invalid::NothingToBoot)?;
        return Ok(BootSource::Disk(first.name.clone()));
    };
    match (&boot.kernel, &boot.disk) {
        (Some(kernel), None) => kernel_boot(kernel).map(BootSource::Kernel),
        (None, Some(name)) if disks.iter().any(|disk| disk.name == *name) => Ok(BootSource::Disk(name.clone())),
        (None, Some(name)) => Err(Invalid::BootDisk(name.clone())),
        (Some(_), Some(_)) | (None, None) => Err(Invalid::Boot),
    }
}

fn kernel_boot(kernel: &boot::KernelBoot) -> Result<KernelBoot, Invalid> {
    let command_line = kernel.command_line.clone().unwrap_or_default();
    if command_line.len() > 2047 {
        return Err(Invalid::CommandLine);
    }
    Ok(KernelBoot {
        image: kernel.image.clone(),
        pull_policy: kernel.pull_policy.unwrap_or_default(),
        kernel_path: inside_image("spec.boot.kernel.kernelPath", &kernel.kernel_path)?,
        initrd_path: kernel
            .initrd_path
            .as_deref()
            .map(|path| inside_image("spec.boot.kernel.initrdPath", path))
            .transpose()?,
        command_line,
    })
}

/// A path that cannot lead out of the image by its own text.
fn inside_image(field: &str, path: &str) -> Result<String, Invalid> {
    let sound = path
        .strip_prefix('/')
        .is_some_and(|rest| !rest.split('/').any(|part| matches!(part, "" | "." | "..")));
    if sound {
        Ok(path.to_owned())
    } else {
        Err(Invalid::Path {
            field: field.to_owned(),
            path: path.to_owned(),
        })
    }
}

/// Names become volume names and directories: they must be DNS labels, and different ones.
fn check_names<'a>(kind: &'static str, names: impl Iterator<Item = &'a str>) -> Result<(), Invalid> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        let label = (1..=63).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !label || !seen.insert(name) {
            return Err(Invalid::Name {
                kind,
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

fn disks(disks: &[Disk]) -> Result<Vec<ValidDisk>, Invalid> {
    check_names("disk", disks.iter().map(|disk| disk.name.as_str()))?;
    disks.iter().map(disk).collect()
}

fn disk(disk: &Disk) -> Result<ValidDisk, Invalid> {
    let source = match (&disk.image, &disk.empty_disk) {
        (Some(image), None) => DiskSource::Image {
            image: image.image.clone(),
            path: inside_image(&format!("path of disk {:?}", disk.name), image.path())?,
            format: image.format,
            pull_policy: image.pull_policy.unwrap_or_default(),
        },
        (None, Some(empty)) => DiskSource::Empty {
            size_bytes: size(
                &format!("size of disk {:?}", disk.name),
                &empty.size,
                1 << 20..=MAX_EMPTY_DISK_BYTES,
                EMPTY_DISK_STEP_BYTES,
                "a whole number of MiB from 1Mi to 16Ti, for example 10Gi",
            )?,
        },
        (Some(_), Some(_)) | (None, None) => return Err(Invalid::DiskSource(disk.name.clone())),
    };
    Ok(ValidDisk {
        name: disk.name.clone(),
        read_only: disk.read_only.unwrap_or(false),
        source,
    })
}

fn interfaces(interfaces: &[NetworkInterface]) -> Result<Vec<String>, Invalid> {
    check_names("interface", interfaces.iter().map(|interface| interface.name.as_str()))?;
    if let Some(unbound) = interfaces.iter().find(|interface| interface.masquerade.is_none()) {
        return Err(Invalid::Binding(unbound.name.clone()));
    }
    if interfaces.len() > 1 {
        return Err(Invalid::ManyMasquerades);
    }
    Ok(interfaces.iter().map(|interface| interface.name.clone()).collect())
}

fn cloud_init(cloud_init: &CloudInit) -> Result<ValidCloudInit, Invalid> {
    let CloudInit {
        user_data,
        user_data_secret_ref,
        network_data,
        network_data_secret_ref,
    } = cloud_init;
    Ok(ValidCloudInit {
        user_data: data(
            "userData",
            user_data.as_ref(),
            user_data_secret_ref.as_ref(),
            DEFAULT_USER_DATA_KEY,
        )?,
        network_data: data(
            "networkData",
            network_data.as_ref(),
            network_data_secret_ref.as_ref(),
            DEFAULT_NETWORK_DATA_KEY,
        )?,
    })
}

fn data(
    field: &'static str,
    inline: Option<&String>,
    reference: Option<&SecretKeyReference>,
    default_key: &str,
) -> Result<Option<Data>, Invalid> {
    match (inline, reference) {
        (Some(_), Some(_)) => Err(Invalid::CloudInitSources(field)),
        (Some(text), None) if text.len() > MAX_INLINE_BYTES => Err(Invalid::CloudInitSize(field)),
        (Some(text), None) => Ok(Some(Data::Inline(text.clone()))),
        (None, Some(reference)) => Ok(Some(Data::Secret {
            name: reference.name.clone(),
            key: reference.key.clone().unwrap_or_else(|| default_key.to_owned()),
        })),
        (None, None) => Ok(None),
    }
}

fn probe(field: &'static str, probe: &Probe) -> Result<ValidProbe, Invalid> {
    let action = match (&probe.http_get, &probe.tcp_socket) {
        (Some(http), None) => ProbeAction::HttpGet {
            port: http.port,
            path: http.path.clone(),
            scheme: http.scheme,
        },
        (None, Some(tcp)) => ProbeAction::TcpSocket { port: tcp.port },
        (Some(_), Some(_)) | (None, None) => return Err(Invalid::Probe(field)),
    };
    Ok(ValidProbe {
        action,
        timing: probe.clone(),
    })
}
