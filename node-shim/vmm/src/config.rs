//! From a `VmConfig` file to types that cannot hold nonsense: every rule about the configuration alone is here, so that the rest of
//! the VMM has none to check.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use node_shim_protocol::agent::DiskOptions;
use node_shim_protocol::config::{self as protocol, CloudInit, HugePages};
use node_shim_protocol::{LendConfig, VmConfig, lend};
use node_shim_virtio::rate_limit::{self, Limits};
use serde::de::DeserializeOwned;

pub(crate) use self::disk::{Disk, check_one as check_disk, check_options as check_disk_options};
pub(crate) use self::interface::{Interface, check_bridged, check_mac, check_network};
use crate::layout;

mod disk;
mod interface;

/// Largest configuration file in bytes: two inline cloud-init texts of 512 KiB, escaped, and the rest.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// Most vCPUs: their APIC ids and the ACPI tables stay in 8 bits and one area, and no machine that we know gains from more.
pub(crate) const VCPUS_MAX: u32 = 128;
/// Least memory: less holds no Linux kernel of the last decade.
const MEMORY_MIN_BYTES: u64 = 32 << 20;
/// Most memory: well inside of what 40 physical address bits reach.
const MEMORY_MAX_BYTES: u64 = 512 << 30;
/// Least context id of a guest: those before it are reserved, and the host's (virtio 1.2, 5.10.4).
const GUEST_CID_MIN: u32 = 3;
/// Longest path of the vsock socket: that of a Unix socket (108 with its NUL) less `_` and ten digits.
const SOCKET_PATH_MAX_BYTES: usize = 96;
/// Longest grace period: a week.
const GRACE_MAX_SECONDS: u64 = 7 * 24 * 3600;
/// Longest name (a DNS label, RFC 1123), so that it can be a file name.
const NAME_MAX_BYTES: usize = 63;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read the configuration {path}: {source}; name a readable JSON file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is longer than any configuration.
    #[error("the configuration {path} is longer than {FILE_MAX_BYTES} bytes; keep cloud-init data in files")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Not JSON, or not the JSON of a `VmConfig`.
    #[error("{path} is not a configuration: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A field says something impossible.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the field, as in `disks[0].name`.
        field: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
}

/// A configuration that has been checked.
#[derive(Clone, Debug)]
pub(crate) struct CheckedConfig {
    /// For logs.
    pub(crate) name: String,
    /// 1 to [`VCPUS_MAX`].
    pub(crate) vcpus: u8,
    /// At least `vcpus`, and at most [`VCPUS_MAX`].
    pub(crate) vcpus_max: u8,
    /// Whole pages.
    pub(crate) memory_bytes: u64,
    /// What the guest starts from.
    pub(crate) boot: Boot,
    /// With what is plugged later; at least `memory_bytes`.
    pub(crate) memory_max_bytes: u64,
    /// Where memory comes from; its sizes are whole pages of it.
    pub(crate) huge_pages: Option<HugePages>,
    /// Stream sockets.
    pub(crate) vsock: Option<Vsock>,
    /// In the guest's order.
    pub(crate) disks: Vec<Disk>,
    /// In the guest's order.
    pub(crate) interfaces: Vec<Interface>,
    /// `NoCloud` data.
    pub(crate) cloud_init: Option<CloudInit>,
    /// Between the power button and the forced stop.
    pub(crate) grace: Duration,
    /// Writable directory for overlays and empty disks.
    pub(crate) scratch: PathBuf,
}

impl CheckedConfig {
    /// What the guest's DHCP client is told that the guest is called.
    pub(crate) fn guest_host_name(&self) -> &str {
        self.cloud_init
            .as_ref()
            .map_or(&self.name, |cloud_init| &cloud_init.hostname)
    }
}

/// What the guest starts from.
#[derive(Clone, Debug)]
pub(crate) enum Boot {
    /// Files.
    Kernel(KernelBoot),
    /// What is found on a disk.
    Disk {
        /// Of [`CheckedConfig::disks`].
        index: usize,
    },
}

/// A socket device.
#[derive(Clone, Debug)]
pub(crate) struct Vsock {
    /// Short enough for a socket's address, also with a port appended.
    pub(crate) socket: PathBuf,
    /// At least 3.
    pub(crate) guest_cid: u32,
}

/// A kernel to boot.
#[derive(Clone, Debug)]
pub(crate) struct KernelBoot {
    /// PVH ELF or bzImage.
    pub(crate) kernel: PathBuf,
    /// Initial RAM disk.
    pub(crate) initrd: Option<PathBuf>,
    /// Printable, and at most [`layout::COMMAND_LINE_MAX_BYTES`].
    pub(crate) command_line: String,
}

/// Reads and checks a configuration file.
pub(crate) fn load(path: &Path) -> Result<CheckedConfig, ConfigError> {
    check(read(path)?)
}

/// Checks the configuration in a snapshot, whose disks may be in another scratch directory now; `path` is for messages.
pub(crate) fn parse(path: &Path, text: &str, scratch: Option<&Path>) -> Result<(VmConfig, CheckedConfig), ConfigError> {
    let mut config: VmConfig = serde_json::from_str(text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })?;
    if let Some(scratch) = scratch {
        scratch.clone_into(&mut config.scratch);
    }
    Ok((config.clone(), check(config)?))
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<VmConfig, ConfigError> {
    read_json(path)
}

/// Reads and checks what a volume pod lends.
pub(crate) fn load_lent(path: &Path) -> Result<(Disk, PathBuf, DiskOptions), ConfigError> {
    let LendConfig { version, disk, scratch } = read_json(path)?;
    if version != lend::VERSION {
        return refuse("version", format!("this node-shim reads version {}", lend::VERSION));
    }
    let options = DiskOptions {
        serial: disk.serial.clone(),
        read_only: disk.read_only,
        rate_limit: disk.rate_limit,
        discard: disk.discard,
    };
    Ok((check_disk(disk)?, scratch, options))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read_error = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(read_error)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    serde_json::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// Checks a configuration.
pub(crate) fn check(config: VmConfig) -> Result<CheckedConfig, ConfigError> {
    let VmConfig {
        version,
        name,
        uuid,
        cpu,
        memory,
        boot,
        disks,
        interfaces,
        cloud_init,
        vsock,
        shutdown,
        scratch,
    } = config;
    if version != protocol::VERSION {
        return refuse("version", format!("this node-shim reads version {}", protocol::VERSION));
    }
    if name.is_empty() || name.len() > 253 || name.chars().any(char::is_control) {
        return refuse("name", "write 1 to 253 printable characters");
    }
    if !is_uuid(&uuid) {
        return refuse("uuid", "write a UUID such as 123e4567-e89b-12d3-a456-426614174000");
    }
    let disks = disk::check_all(disks)?;
    let interfaces = interface::check_all(interfaces)?;
    if let Some(cloud_init) = &cloud_init {
        check_cloud_init(cloud_init)?;
    }
    if scratch.as_os_str().is_empty() {
        return refuse("scratch", "write the path of a writable directory");
    }
    if shutdown.grace_period_seconds > GRACE_MAX_SECONDS {
        return refuse(
            "shutdown.gracePeriodSeconds",
            format!("write at most {GRACE_MAX_SECONDS}"),
        );
    }
    let (vcpus, vcpus_max) = check_vcpus(&cpu)?;
    let (memory_bytes, memory_max_bytes) = check_memory(&memory)?;
    Ok(CheckedConfig {
        name,
        vcpus,
        vcpus_max,
        memory_bytes,
        memory_max_bytes,
        huge_pages: memory.huge_pages,
        vsock: vsock.map(check_vsock).transpose()?,
        boot: check_boot(boot, &disks)?,
        disks,
        interfaces,
        cloud_init,
        grace: Duration::from_secs(shutdown.grace_period_seconds),
        scratch,
    })
}

fn refuse<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Field {
        field: field.into(),
        problem: problem.into(),
    })
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups
            .iter()
            .all(|group| group.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// At the start, and at most.
fn check_vcpus(cpu: &protocol::Cpu) -> Result<(u8, u8), ConfigError> {
    let protocol::Cpu { cores, max_cores } = *cpu;
    let vcpus = match u8::try_from(cores) {
        Ok(vcpus) if vcpus > 0 && cores <= VCPUS_MAX => vcpus,
        _ => return refuse("cpu.cores", format!("is {cores}; write 1 to {VCPUS_MAX}")),
    };
    match u8::try_from(max_cores.unwrap_or(cores)) {
        Ok(max) if (u32::from(vcpus)..=VCPUS_MAX).contains(&u32::from(max)) => Ok((vcpus, max)),
        _ => refuse(
            "cpu.maxCores",
            format!(
                "is {}; write {cores} (cpu.cores) to {VCPUS_MAX}",
                max_cores.unwrap_or(cores)
            ),
        ),
    }
}

fn check_vsock(vsock: protocol::Vsock) -> Result<Vsock, ConfigError> {
    let protocol::Vsock { socket, guest_cid } = vsock;
    let guest_cid = guest_cid.unwrap_or(GUEST_CID_MIN);
    let length = socket.as_os_str().len();
    if length == 0 || length > SOCKET_PATH_MAX_BYTES {
        return refuse(
            "vsock.socket",
            format!("is {length} bytes long; write a path of 1 to {SOCKET_PATH_MAX_BYTES} bytes"),
        );
    }
    if guest_cid < GUEST_CID_MIN || guest_cid == u32::MAX {
        return refuse(
            "vsock.guestCid",
            format!("is {guest_cid}; write {GUEST_CID_MIN} or more"),
        );
    }
    Ok(Vsock { socket, guest_cid })
}

/// At the start, and at most.
fn check_memory(memory: &protocol::Memory) -> Result<(u64, u64), ConfigError> {
    if !(MEMORY_MIN_BYTES..=MEMORY_MAX_BYTES).contains(&memory.size_bytes) {
        return refuse(
            "memory.sizeBytes",
            format!(
                "is {}; write {MEMORY_MIN_BYTES} (32 MiB) to {MEMORY_MAX_BYTES} (512 GiB)",
                memory.size_bytes
            ),
        );
    }
    let max_bytes = memory.max_size_bytes.unwrap_or(memory.size_bytes);
    if !(memory.size_bytes..=MEMORY_MAX_BYTES).contains(&max_bytes) {
        return refuse(
            "memory.maxSizeBytes",
            format!(
                "is {max_bytes}; write {} (memory.sizeBytes) to {MEMORY_MAX_BYTES} (512 GiB)",
                memory.size_bytes
            ),
        );
    }
    if let Some(pages) = memory.huge_pages {
        for (field, bytes) in [("sizeBytes", memory.size_bytes), ("maxSizeBytes", max_bytes)] {
            if !bytes.is_multiple_of(pages.bytes()) {
                return refuse(
                    format!("memory.{field}"),
                    format!(
                        "is {bytes}; write a multiple of {} (memory.hugePages is {pages})",
                        pages.bytes()
                    ),
                );
            }
        }
    }
    Ok((memory.size_bytes / layout::PAGE_SIZE * layout::PAGE_SIZE, max_bytes))
}

fn check_boot(boot: protocol::Boot, disks: &[Disk]) -> Result<Boot, ConfigError> {
    match boot {
        protocol::Boot::Kernel(kernel) => check_kernel(kernel).map(Boot::Kernel),
        protocol::Boot::Disk(protocol::DiskBoot { name }) => match disks.iter().position(|disk| disk.name == name) {
            Some(index) => Ok(Boot::Disk { index }),
            None => refuse(
                "boot.disk.name",
                format!("there is no disk `{name}`; write the name of one"),
            ),
        },
    }
}

fn check_kernel(boot: protocol::KernelBoot) -> Result<KernelBoot, ConfigError> {
    let protocol::KernelBoot {
        kernel,
        initrd,
        command_line,
    } = boot;
    if kernel.as_os_str().is_empty() {
        return refuse("boot.kernel.kernel", "write the path of a kernel");
    }
    if initrd.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
        return refuse("boot.kernel.initrd", "write the path of an initrd, or leave it out");
    }
    if command_line.len() > layout::COMMAND_LINE_MAX_BYTES {
        return refuse(
            "boot.kernel.commandLine",
            format!(
                "is {} bytes long; write at most {}",
                command_line.len(),
                layout::COMMAND_LINE_MAX_BYTES
            ),
        );
    }
    if command_line.chars().any(char::is_control) {
        return refuse("boot.kernel.commandLine", "has control characters; write one line");
    }
    Ok(KernelBoot {
        kernel,
        initrd,
        command_line,
    })
}

/// Checks how much a device may move.
pub(crate) fn check_rate_limit(field: &str, limit: protocol::RateLimit) -> Result<Limits, ConfigError> {
    let check = |name: &str, rate: Option<protocol::Rate>| -> Result<Option<rate_limit::Rate>, ConfigError> {
        let Some(protocol::Rate { per_second, burst }) = rate else {
            return Ok(None);
        };
        let burst = burst.unwrap_or(per_second);
        for (part, value) in [("perSecond", per_second), ("burst", burst)] {
            if !(1..=rate_limit::MAX_TOKENS).contains(&value) {
                return refuse(
                    format!("{field}.{name}.{part}"),
                    format!("is {value}; write 1 to {}", rate_limit::MAX_TOKENS),
                );
            }
        }
        Ok(Some(rate_limit::Rate { per_second, burst }))
    };
    Ok(Limits {
        bytes: check("bytes", limit.bytes)?,
        operations: check("operations", limit.operations)?,
    })
}

fn check_cloud_init(cloud_init: &CloudInit) -> Result<(), ConfigError> {
    if cloud_init.instance_id.is_empty()
        || cloud_init.instance_id.len() > 253
        || cloud_init.instance_id.chars().any(char::is_control)
    {
        return refuse("cloudInit.instanceId", "write 1 to 253 printable characters");
    }
    let hostname = &cloud_init.hostname;
    if hostname.len() > 253 || !hostname.split('.').all(is_label) {
        return refuse("cloudInit.hostname", "write a host name such as web-1");
    }
    Ok(())
}

fn check_name(field: &str, name: &str, seen: &mut BTreeSet<String>) -> Result<(), ConfigError> {
    check_label(field, name)?;
    if !seen.insert(name.to_owned()) {
        return refuse(field, format!("`{name}` is there twice; write one name for each"));
    }
    Ok(())
}

/// Checks that a name is a DNS label (RFC 1123).
pub(crate) fn check_label(field: &str, name: &str) -> Result<(), ConfigError> {
    if is_label(name) {
        return Ok(());
    }
    refuse(
        field,
        "write 1 to 63 lower-case letters, digits and dashes, with a letter or digit at both ends",
    )
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=NAME_MAX_BYTES).contains(&bytes.len())
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

#[cfg(test)]
mod tests;
