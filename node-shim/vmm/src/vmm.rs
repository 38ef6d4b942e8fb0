//! Construction of a VM, in one linear order:
//!
//! 1. the configuration, checked: a file, or what a snapshot has;
//! 2. disks opened;
//! 3. kernel and initrd opened or looked for on a disk, and the cloud-init seed made;
//! 4. the console; KVM and taps: from the node agent, or opened here;
//! 5. guest memory and the VM;
//! 6. the control socket;
//! 7. virtio devices on the PCI bus;
//! 8. the jail: see [`jail`].
//!
//! Everything that can be wrong with what the user gave comes before anything that the host gives, so that the same mistake always
//! ends the same way.

use std::fs::File;
use std::io;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use node_shim_protocol::{ExitReason, VmConfig};
use node_shim_virtio::console::{Console, Port};
use node_shim_virtio::device::{Memory, VirtioDevice};
use node_shim_virtio::net::Net;
use node_shim_virtio::wake::Wake;
use vm_memory::{Bytes, GuestAddress};

use crate::agent::{self, AgentError, Link};
use crate::boot::{BootError, BootSource};
use crate::clock::Clock;
use crate::config::{self, CheckedConfig, ConfigError};
use crate::console::Output;
use crate::control::{ControlError, Server};
use crate::devices::disk::DiskError;
use crate::devices::network::NetworkError;
use crate::devices::seed::CloudInitError;
use crate::devices::vsock::{self, VsockError};
use crate::devices::{self, Connector, disk, network, seed};
use crate::event_loop::{self, Ending, Identity, RunError, Supervisor};
use crate::events::Events;
use crate::jail::paths::Paths;
use crate::jail::seccomp::{Kind, Mode};
use crate::jail::{self, JailError};
use crate::kvm::{Host, KvmError};
use crate::machine::Platform;
use crate::mailbox::Mailbox;
use crate::memory::{self, MemoryError};
use crate::pci::{PciBus, TooManyFunctions};
use crate::poll::Poll;
use crate::signals::{self, Signals};
use crate::slots::SlotController;
use crate::snapshot::SnapshotError;
use crate::snapshot::folder::{self, Opened};
use crate::watchdog::Watchdog;
use crate::{layout, log, terminal};

/// Why there is no VM, or no longer one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmmError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(ConfigError),
    /// Kernel or initrd are.
    #[error(transparent)]
    Boot(BootError),
    /// A disk is.
    #[error(transparent)]
    Disk(DiskError),
    /// cloud-init data are.
    #[error(transparent)]
    CloudInit(CloudInitError),
    /// The socket of vsock cannot be made.
    #[error(transparent)]
    Vsock(VsockError),
    /// More devices than slots.
    #[error(transparent)]
    Slots(TooManyFunctions),
    /// An interface without an agent.
    #[error(
        "interface `{0}` has a binding for which the node agent opens a tap; start node-shim with --agent, or use a tap"
    )]
    NoAgent(String),
    /// The node agent did not help.
    #[error(transparent)]
    Agent(AgentError),
    /// A tap cannot be used.
    #[error(transparent)]
    Network(NetworkError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(KvmError),
    /// The host's KVM has fewer vCPUs.
    #[error("the VM has {wanted} vCPUs and this host's KVM allows {max}; lower cpu.maxCores or use another node")]
    Vcpus {
        /// In the configuration.
        wanted: u8,
        /// On this host.
        max: usize,
    },
    /// Guest memory cannot be mapped.
    #[error(transparent)]
    Memory(MemoryError),
    /// The host refused a descriptor or a thread.
    #[error("failed to {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// There is no control socket.
    #[error(transparent)]
    Control(ControlError),
    /// The process cannot be confined.
    #[error(transparent)]
    Jail(JailError),
    /// The snapshot cannot be restored.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// The VM ended by an error.
    #[error(transparent)]
    Run(RunError),
}

impl VmmError {
    /// For the exit code.
    pub(crate) fn reason(&self) -> ExitReason {
        match self {
            Self::Config(_) | Self::Slots(_) | Self::NoAgent(_) => ExitReason::InvalidConfig,
            Self::Boot(_) => ExitReason::InvalidBootSource,
            Self::Disk(error) => error.reason(),
            Self::CloudInit(_) => ExitReason::InvalidCloudInit,
            Self::Agent(AgentError::Stopped) => ExitReason::PoweredOff,
            Self::Agent(
                AgentError::Refused(_)
                | AgentError::TimedOut { .. }
                | AgentError::Unusable(_)
                | AgentError::Namespace(_),
            )
            | Self::Network(_)
            | Self::Vsock(_)
            | Self::Kvm(_)
            | Self::Vcpus { .. }
            | Self::Memory(_)
            | Self::Control(_)
            | Self::Jail(_)
            | Self::Host { .. } => ExitReason::HostUnavailable,
            Self::Snapshot(error) => error.reason(),
            Self::Run(error) => error.reason(),
        }
    }
}

/// What the command line says.
pub(crate) struct Options {
    /// What the VM starts from.
    pub(crate) origin: Origin,
    /// The node agent.
    pub(crate) agent: Option<agent::Address>,
    /// Where to listen for requests.
    pub(crate) control: Option<PathBuf>,
    /// Where snapshots may go, beside the scratch directory.
    pub(crate) snapshots: Vec<PathBuf>,
    /// How strict the seccomp filters are.
    pub(crate) seccomp: Mode,
    /// When the process started.
    pub(crate) started: Instant,
}

/// What a VM starts from.
pub(crate) enum Origin {
    /// A configuration file.
    Config(PathBuf),
    /// A snapshot's folder.
    Snapshot {
        /// The folder.
        folder: PathBuf,
        /// Where the files of its disks go, if not where they were.
        scratch: Option<PathBuf>,
    },
}

/// A configuration, and what a snapshot has beside it.
struct Start {
    /// For snapshots.
    text: String,
    config: CheckedConfig,
    snapshot: Option<Opened>,
}

fn start(origin: &Origin) -> Result<Start, VmmError> {
    let json = |config: &VmConfig| serde_json::to_string(config).unwrap_or_default();
    match origin {
        Origin::Config(path) => {
            let config = config::read(path).map_err(VmmError::Config)?;
            Ok(Start {
                text: json(&config),
                config: config::check(config).map_err(VmmError::Config)?,
                snapshot: None,
            })
        }
        Origin::Snapshot { folder, scratch } => {
            let snapshot = folder::open(folder).map_err(VmmError::Snapshot)?;
            let parsed = config::parse(folder, &snapshot.state.config, scratch.as_deref());
            let (config, checked) = parsed.map_err(VmmError::Config)?;
            if memory::Plan::of(&checked).mapped_bytes() != snapshot.state.memory_bytes {
                return Err(VmmError::Snapshot(SnapshotError::Inconsistent {
                    what: "memory",
                    problem: "is not as large as its configuration says".to_owned(),
                }));
            }
            snapshot.copy_disks(&checked.scratch).map_err(VmmError::Snapshot)?;
            Ok(Start {
                text: json(&config),
                config: checked,
                snapshot: Some(snapshot),
            })
        }
    }
}

/// Runs a VM from its configuration to its end.
pub(crate) fn run(options: &Options) -> Result<Ending, VmmError> {
    let host_error = |what| move |source| VmmError::Host { what, source };
    let signals = Signals::block().map_err(host_error("block signals"))?;
    signals::install_kick_handler().map_err(host_error("install a signal handler"))?;

    let Start { text, config, snapshot } = start(&options.origin)?;
    let connects = options.agent.is_some() || config.vsock.is_some();
    jail::prepare(options.seccomp, connects).map_err(VmmError::Jail)?;
    let disks = disk::open_all(&config).map_err(VmmError::Disk)?;
    let running = snapshot.as_ref().map(|snapshot| snapshot.state.kernel.as_str());
    let boot = BootSource::open(&config, &disks.blocks, running).map_err(VmmError::Boot)?;
    let seed = config.cloud_init.as_ref().map(seed::disk).transpose();
    let seed = seed.map_err(VmmError::CloudInit)?;

    // Early: its thread has its filter by the time that the jail waits for it.
    let stdout = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3);
    let output = stdout.map_err(io::Error::from).and_then(Output::start);
    let output = output.map_err(host_error("start the console"))?;

    let HostResources { host, nets, agent } = host_resources(&config, options.agent.as_ref(), &signals)?;
    check_vcpus(&config, &host)?;
    let memory_plan = memory::Plan::of(&config);
    let saved = snapshot.as_ref().map(|snapshot| &snapshot.memory);
    let memory = memory::map(&memory_plan, saved).map_err(VmmError::Memory)?;
    prepare_start(&host, &memory, saved.is_none()).map_err(host_error("start a thread"))?;
    let vm = host.create_vm(&memory).map_err(VmmError::Kvm)?;

    let poll = Arc::new(Poll::new().map_err(host_error("create an epoll set"))?);
    let mailbox = Arc::new(Mailbox::new().map_err(host_error("create an eventfd"))?);
    let vsock = config.vsock.as_ref().map(vsock::open).transpose();
    let vsock = vsock.map_err(VmmError::Vsock)?;
    let control = options.control.as_deref().map(Server::bind).transpose();
    let control = control.map_err(VmmError::Control)?;
    let input_drained = Arc::new(Wake::new().map_err(host_error("create an eventfd"))?);
    let port = Port::new(Arc::clone(&input_drained)).map_err(host_error("create an eventfd"))?;
    let console = Console::new(port.clone(), Box::new(output.clone()));
    let mut devices = devices::configured(disks.blocks, seed, nets);
    let handles = devices::add_common(&mut devices, &memory, memory_plan.later, console, vsock)
        .map_err(host_error("create the eventfds of a device"))?;
    let connector = Connector {
        memory: Arc::clone(&memory),
        vm: Arc::clone(&vm),
        poll: Arc::clone(&poll),
        mailbox: Arc::clone(&mailbox),
    };
    let pci = Arc::new(bus(devices, &connector)?);
    let events = Arc::new(Events::new(Arc::clone(&vm)));
    let slots = Arc::new(SlotController::new(Arc::clone(&pci), connector, Arc::clone(&events)));
    let clock = Clock::new(Arc::clone(&vm)).map_err(host_error("create a timer"))?;
    let watchdog = Watchdog::new().map_err(host_error("create a timer"))?;

    let platform = Platform {
        host,
        vm,
        memory,
        memory_plan,
        vcpus: config.vcpus,
        vcpus_max: config.vcpus_max,
        boot,
        pci,
        events,
        slots,
        files: disks.files,
        handles,
        clock: Arc::new(clock),
        watchdog: Arc::new(watchdog),
        output,
        console: port,
        input_drained,
        mailbox,
    };
    log::line(format_args!(
        "{} `{}`: {} vCPUs, {} MiB",
        if snapshot.is_some() { "restoring" } else { "starting" },
        config.name,
        config.vcpus,
        config.memory_bytes >> 20
    ));
    terminal::make_raw();
    let paths = paths(&config, options);
    let pagemap = File::open("/proc/self/pagemap").ok();
    let isolation = jail::enter(&paths).map_err(VmmError::Jail)?;
    jail::report(isolation);
    let supervisor = Supervisor {
        isolation,
        paths,
        pagemap: pagemap.map(Arc::new),
        poll,
        signals,
        agent,
        control,
        grace: config.grace,
        identity: Identity {
            disk_files: disk::file_names(&config),
            without_copies: disk::without_copies(&config),
            devices: devices::named(&config),
            host_name: config.guest_host_name().to_owned(),
            name: config.name,
            config: text,
            scratch: config.scratch,
            started: options.started,
        },
        restored: snapshot.map(|snapshot| Box::new(snapshot.state)),
    };
    event_loop::run(platform, supervisor).map_err(VmmError::Run)
}

fn check_vcpus(config: &CheckedConfig, host: &Host) -> Result<(), VmmError> {
    let (wanted, max) = (config.vcpus_max, host.vcpus_max());
    if usize::from(wanted) > max {
        return Err(VmmError::Vcpus { wanted, max });
    }
    Ok(())
}

/// Does on another processor what a start takes longest over and nothing before it waits for: asks the host's processor what it can, has the
/// host empty the page, a huge one most often, in which a new guest's tables go, and makes filters. The jail waits for the thread's end.
fn prepare_start(host: &Arc<Host>, memory: &Arc<Memory>, is_new: bool) -> io::Result<()> {
    let (host, memory) = (Arc::clone(host), Arc::clone(memory));
    let announced = jail::thread(Kind::Main);
    let thread = thread::Builder::new().name("prepare".to_owned());
    thread.spawn(move || {
        if is_new {
            // Whoever needs the page finds out what is wrong with it.
            let _ = memory.write_obj(0_u8, GuestAddress(layout::ACPI_TABLES));
        }
        // As above: who needs it asks again.
        let _ = host.supported_cpuid();
        jail::make_filters();
        drop(announced);
    })?;
    Ok(())
}

/// What is used by its name from now on.
fn paths(config: &CheckedConfig, options: &Options) -> Paths {
    let agent = options.agent.as_ref().map(|agent| agent.socket.as_path());
    let vsock = config.vsock.as_ref().map(|vsock| vsock.socket.as_path());
    let directories = |paths: [Option<&Path>; 2]| paths.into_iter().flatten().map(jail::paths::directory_of).collect();
    let writable = iter::once(&config.scratch).chain(&options.snapshots);
    Paths {
        // As the folders of snapshots, which are absolute.
        writable: writable.filter_map(|path| std::path::absolute(path).ok()).collect(),
        readable: disk::directories(config),
        removable: directories([options.control.as_deref(), None]),
        sockets: directories([agent, vsock]),
    }
}

/// The devices on a bus, each with its vectors and its doorbells.
fn bus(devices: Vec<Box<dyn VirtioDevice>>, connector: &Connector) -> Result<PciBus, VmmError> {
    let functions = devices.into_iter().enumerate();
    let functions: io::Result<Vec<_>> = functions
        .map(|(index, device)| connector.connect(index, device))
        .collect();
    let functions = functions.map_err(|source| VmmError::Host {
        what: "create the eventfds of a device",
        source,
    })?;
    PciBus::new(functions).map_err(VmmError::Slots)
}

/// What only the host can give.
struct HostResources {
    host: Arc<Host>,
    nets: Vec<Net>,
    agent: Option<Link>,
}

fn host_resources(
    config: &CheckedConfig,
    agent: Option<&agent::Address>,
    signals: &Signals,
) -> Result<HostResources, VmmError> {
    let wanted = network::requests(config);
    let Some(address) = agent else {
        if let Some(interface) = wanted.first() {
            return Err(VmmError::NoAgent(interface.name.clone()));
        }
        let nets = network::open_all(config, Vec::new()).map_err(VmmError::Network)?;
        let host = Host::open().map_err(VmmError::Kvm)?;
        return Ok(HostResources {
            host: Arc::new(host),
            nets,
            agent: None,
        });
    };
    let grant = agent::negotiate(address, &wanted, signals).map_err(VmmError::Agent)?;
    Ok(HostResources {
        host: Arc::new(Host::from_descriptor(grant.kvm).map_err(VmmError::Kvm)?),
        nets: network::open_all(config, grant.interfaces).map_err(VmmError::Network)?,
        agent: Some(grant.link),
    })
}
