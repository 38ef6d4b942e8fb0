//! Pure: turns a VirtualMachine into a [`ValidatedVm`], which can only say what a pod and a `VmConfig` can be made from.
//!
//! The API server has checked most of it by schema and CEL. It is checked again here because an object may be older than the CRD.

mod disk;
mod interface;
mod probe;
mod size;

use crds::{
    Quantity, VirtualMachine,
    boot::{self, Boot},
    cloud_init::{CloudInit, DEFAULT_NETWORK_DATA_KEY, DEFAULT_USER_DATA_KEY, MAX_INLINE_BYTES, SecretKeyReference},
    conditions::Reason,
    disk::{CacheMode, DiscardMode, Disk, DiskFormat, IoMode},
    ignition::{DEFAULT_CONFIG_KEY, Ignition},
    image::PullPolicy,
    rate_limit::RateLimit,
};
use jiff::Timestamp;
use thiserror::Error;

pub(crate) use self::{
    interface::{ValidBinding, ValidInterface},
    probe::{ProbeAction, ValidProbe},
    size::ValidSize,
};

/// A VM whose spec makes sense.
#[derive(Clone, Debug)]
pub(crate) struct ValidatedVm {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) generation: Option<i64>,
    /// The text and its meaning.
    pub(crate) restarted_at: Option<(String, Timestamp)>,
    pub(crate) size: ValidSize,
    pub(crate) boot: BootSource,
    pub(crate) disks: Vec<ValidDisk>,
    pub(crate) interfaces: Vec<ValidInterface>,
    /// What cloud-init or Ignition reads.
    pub(crate) seed: Option<ValidSeed>,
    pub(crate) readiness_probe: Option<ValidProbe>,
    pub(crate) liveness_probe: Option<ValidProbe>,
    pub(crate) startup_probe: Option<ValidProbe>,
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
    pub(crate) serial: Option<String>,
    pub(crate) limits: ValidLimits,
    pub(crate) cache: CacheMode,
    pub(crate) io: Option<IoMode>,
    pub(crate) discard: DiscardMode,
    pub(crate) source: DiskSource,
}

/// How much a device may move: in a second, and at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ValidLimits {
    pub(crate) bytes: Option<(u64, Option<u64>)>,
    pub(crate) operations: Option<(u64, Option<u64>)>,
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
    /// A file in a claim with a file system.
    ClaimFile {
        claim: String,
        path: String,
        size_bytes: Option<u64>,
    },
    /// A claim that is a block device.
    ClaimDevice {
        claim: String,
    },
    ConfigMap {
        name: String,
    },
    Secret {
        name: String,
    },
}

impl DiskSource {
    /// The claim that it is in.
    pub(crate) fn claim(&self) -> Option<&str> {
        match self {
            Self::ClaimFile { claim, .. } | Self::ClaimDevice { claim } => Some(claim),
            Self::Image { .. } | Self::Empty { .. } | Self::ConfigMap { .. } | Self::Secret { .. } => None,
        }
    }
}

/// Data for a guest's first boot with at most one source each.
#[derive(Clone, Debug)]
pub(crate) struct ValidSeed {
    pub(crate) user_data: Option<Data>,
    pub(crate) network_data: Option<Data>,
}

/// Source of cloud-init data.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Inline(String),
    Secret { name: String, key: String },
}

/// What is wrong with a spec, and what to write instead.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Invalid {
    #[error("the API server did not give this object a {0}")]
    Metadata(&'static str),
    #[error("the VM has no size: write spec.cpu.cores and spec.memory.size, or spec.instanceType.name")]
    NoSize,
    #[error(
        "the instance type says cpu and memory: leave spec.cpu and spec.memory out, or leave spec.instanceType out"
    )]
    TwoSizes,
    #[error("there is no instance type {0:?}: write one of those that `kubectl get vmtype` shows, or make it")]
    InstanceTypeMissing(String),
    #[error(
        "instance type {name:?} is for nodes with {label}={value}: leave {label} out of spec.nodeSelector, or choose another type"
    )]
    InstanceTypeNodes { name: String, label: String, value: String },
    #[error("{field} is {cores}: write a number from {least} to {max}")]
    Cores {
        field: &'static str,
        cores: i32,
        least: u32,
        max: u32,
    },
    #[error(
        "dedicated CPUs are asked for whole and do not change while the VM runs: leave spec.cpu.request and spec.cpu.maxCores out"
    )]
    Dedicated,
    #[error(
        "spec.memory.size and spec.memory.maxSize are not whole multiples of {0} MiB: write such (maxSize and hugePages ask for it)"
    )]
    MemoryStep(u64),
    #[error("spec.{0}.exec.command must begin with an absolute path in the guest")]
    ProbeCommand(&'static str),
    #[error(
        "the limits of {0} say what may pass at once, but not in a second: write bytesPerSecond and operationsPerSecond"
    )]
    Burst(String),
    #[error("{0} must be numbers above zero: write for example bytesPerSecond: 100M")]
    Limit(String),
    #[error("a guest is configured by cloud-init or by Ignition: write either spec.cloudInit or spec.ignition")]
    TwoSeeds,
    #[error("spec.ignition must have exactly one source: write either config or configSecretRef")]
    Ignition,
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
    #[error(
        "disk {0:?} must have exactly one source: write one of image, persistentVolumeClaim, emptyDisk, configMap and secret"
    )]
    DiskSource(String),
    #[error("the claim of disk {0:?} is the disk itself (volumeMode Block): leave path and size out")]
    BlockClaim(String),
    #[error(
        "disks {one:?} and {other:?} are the same part of claim {claim:?}: write another path for one of them, or leave it out"
    )]
    SameClaim { one: String, other: String, claim: String },
    #[error(
        "disks {one:?} and {other:?} both get the file system label {label:?}, the first 11 characters of their names: write another name for one of \
         them"
    )]
    SameLabel { one: String, other: String, label: String },
    #[error(
        "disk {0:?} gets the label of the disk that spec.cloudInit or spec.ignition makes: write another name, or leave that out"
    )]
    SeedLabel(String),
    #[error("the file of disk {0:?} cannot be made or grown where it is only read: leave size or readOnly out")]
    ReadOnlySize(String),
    #[error("{field} of disk {disk:?} is not for its source: leave it out")]
    DiskOption { field: &'static str, disk: String },
    #[error("{kind} name {name:?} cannot be used: write a DNS label that no other {kind} of this VM has")]
    Name { kind: &'static str, name: String },
    #[error("interface {0:?} must have exactly one binding: write either masquerade: {{}} or bridge: {{}}")]
    Binding(String),
    #[error(
        "only one interface can be on the pod's own network: write multus.networkName for the others, or remove them"
    )]
    PodNetworkTwice,
    #[error(
        "the annotation k8s.v1.cni.cncf.io/networks follows from spec.interfaces: write multus.networkName there, and leave it out of spec.podMetadata"
    )]
    NetworksAnnotation,
    #[error("spec has both {0} and {0}SecretRef: write one of them")]
    CloudInitSources(&'static str),
    #[error("spec.{0} is longer than 32 KiB: put it into a Secret and write {0}SecretRef")]
    CloudInitSize(&'static str),
    #[error("spec.{0} must have exactly one action: write one of httpGet, tcpSocket, exec and guestAgentPing")]
    Probe(&'static str),
}

impl Invalid {
    /// The reason of the VM's conditions.
    pub(crate) fn reason(&self) -> Reason {
        if matches!(self, Self::InstanceTypeMissing(_)) {
            Reason::InstanceTypeMissing
        } else {
            Reason::InvalidSpec
        }
    }
}

/// Checks a VirtualMachine whose instance type is filled in.
pub(crate) fn validate(vm: &VirtualMachine) -> Result<ValidatedVm, Invalid> {
    let spec = &vm.spec;
    let seed = seed(spec.cloud_init.as_ref(), spec.ignition.as_ref())?;
    let checked_probe =
        |field, it: &Option<crds::probe::Probe>| it.as_ref().map(|it| probe::probe(field, it)).transpose();
    let grace_period_seconds = spec.termination_grace_period_seconds().clamp(1, 3600).unsigned_abs();
    Ok(ValidatedVm {
        name: vm.metadata.name.clone().ok_or(Invalid::Metadata("name"))?,
        namespace: vm.metadata.namespace.clone().ok_or(Invalid::Metadata("namespace"))?,
        uid: vm.metadata.uid.clone().ok_or(Invalid::Metadata("uid"))?,
        generation: vm.metadata.generation,
        restarted_at: restarted_at(spec.restarted_at.as_deref())?,
        size: size::size(spec.cpu.as_ref(), spec.memory.as_ref())?,
        boot: boot(spec.boot.as_ref(), &spec.disks)?,
        disks: disks(&spec.disks, seed.is_some())?,
        interfaces: interface::interfaces(&spec.interfaces, spec.pod_metadata.as_ref())?,
        seed,
        readiness_probe: checked_probe("readinessProbe", &spec.readiness_probe)?,
        liveness_probe: checked_probe("livenessProbe", &spec.liveness_probe)?,
        startup_probe: checked_probe("startupProbe", &spec.startup_probe)?,
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

fn disks(disks: &[Disk], has_seed: bool) -> Result<Vec<ValidDisk>, Invalid> {
    check_names("disk", disks.iter().map(|disk| disk.name.as_str()))?;
    let valid: Vec<ValidDisk> = disks.iter().map(disk::disk).collect::<Result<_, _>>()?;
    disk::check_claims(&valid)?;
    disk::check_labels(&valid, has_seed)?;
    Ok(valid)
}

fn limits(owner: &str, limits: Option<&RateLimit>) -> Result<ValidLimits, Invalid> {
    let Some(limits) = limits else {
        return Ok(ValidLimits::default());
    };
    let wrong = || Invalid::Limit(format!("the limits of {owner}"));
    let bytes = |quantity: &Quantity| quantity.bytes().ok().filter(|bytes| *bytes > 0).ok_or_else(wrong);
    let count = |number: i64| {
        u64::try_from(number)
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(wrong)
    };
    let rate = |rate: Option<u64>, burst: Option<u64>| match (rate, burst) {
        (Some(rate), burst) => Ok(Some((rate, burst))),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(Invalid::Burst(owner.to_owned())),
    };
    Ok(ValidLimits {
        bytes: rate(
            limits.bytes_per_second.as_ref().map(bytes).transpose()?,
            limits.bytes_burst.as_ref().map(bytes).transpose()?,
        )?,
        operations: rate(
            limits.operations_per_second.map(count).transpose()?,
            limits.operations_burst.map(count).transpose()?,
        )?,
    })
}

/// What the guest reads at its first boot. Ignition reads its configuration as the user data of a `NoCloud` disk.
fn seed(cloud_init: Option<&CloudInit>, ignition: Option<&Ignition>) -> Result<Option<ValidSeed>, Invalid> {
    match (cloud_init, ignition) {
        (Some(_), Some(_)) => Err(Invalid::TwoSeeds),
        (Some(cloud_init), None) => self::cloud_init(cloud_init).map(Some),
        (
            None,
            Some(Ignition {
                config,
                config_secret_ref,
            }),
        ) => {
            let config = data(
                "ignition.config",
                config.as_ref(),
                config_secret_ref.as_ref(),
                DEFAULT_CONFIG_KEY,
            )?;
            Ok(Some(ValidSeed {
                user_data: Some(config.ok_or(Invalid::Ignition)?),
                network_data: None,
            }))
        }
        (None, None) => Ok(None),
    }
}

fn cloud_init(cloud_init: &CloudInit) -> Result<ValidSeed, Invalid> {
    let CloudInit {
        user_data,
        user_data_secret_ref,
        network_data,
        network_data_secret_ref,
    } = cloud_init;
    Ok(ValidSeed {
        user_data: data(
            "cloudInit.userData",
            user_data.as_ref(),
            user_data_secret_ref.as_ref(),
            DEFAULT_USER_DATA_KEY,
        )?,
        network_data: data(
            "cloudInit.networkData",
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
