//! Construction of a VM, in one linear order:
//!
//! 1. the configuration, checked;
//! 2. kernel and initrd opened and looked at;
//! 3. disks and the cloud-init seed opened;
//! 4. KVM and taps: from the node agent, or opened here;
//! 5. guest memory and the VM;
//! 6. virtio devices on the PCI bus;
//! 7. the console.
//!
//! Everything that can be wrong with what the user gave comes before anything that the host gives, so that the same mistake always
//! ends the same way.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use node_shim_protocol::ExitReason;
use node_shim_protocol::agent::InterfaceRequest;
use node_shim_protocol::config::Binding;
use node_shim_virtio::net::Net;
use vmm_sys_util::eventfd::EventFd;

use crate::agent::{self, AgentError, Link};
use crate::boot::{BootError, BootSource};
use crate::config::{self, CheckedConfig, ConfigError};
use crate::console::Output;
use crate::devices::disk::DiskError;
use crate::devices::network::NetworkError;
use crate::devices::seed::CloudInitError;
use crate::devices::{self, disk, network, seed};
use crate::event_loop::{self, Ending, RunError};
use crate::kvm::{Host, KvmError};
use crate::machine::Platform;
use crate::mailbox::Mailbox;
use crate::memory::{self, MemoryError};
use crate::pci::{PciBus, TooManyFunctions};
use crate::poll::Poll;
use crate::signals::{self, StopSignals};
use crate::{log, terminal};

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
    /// More devices than slots.
    #[error(transparent)]
    Slots(TooManyFunctions),
    /// An interface without an agent.
    #[error(
        "interface `{0}` has the masquerade binding, for which the node agent opens a tap; start node-shim with --agent, or use a tap"
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
    #[error("the VM has {wanted} vCPUs and this host's KVM allows {max}; lower cpu.cores or use another node")]
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
            | Self::Kvm(_)
            | Self::Vcpus { .. }
            | Self::Memory(_)
            | Self::Host { .. } => ExitReason::HostUnavailable,
            Self::Run(error) => error.reason(),
        }
    }
}

/// What the command line says.
pub(crate) struct Options {
    /// The configuration file.
    pub(crate) config: PathBuf,
    /// The node agent's socket.
    pub(crate) agent: Option<PathBuf>,
}

/// Runs a VM from its configuration to its end.
pub(crate) fn run(options: &Options) -> Result<Ending, VmmError> {
    let host_error = |what| move |source| VmmError::Host { what, source };
    let signals = StopSignals::block().map_err(host_error("block signals"))?;
    signals::install_kick_handler().map_err(host_error("install a signal handler"))?;

    let config = config::load(&options.config).map_err(VmmError::Config)?;
    let boot = BootSource::open(&config.boot).map_err(VmmError::Boot)?;
    let disks = disk::open_all(&config).map_err(VmmError::Disk)?;
    let seed = config.cloud_init.as_ref().map(seed::disk).transpose();
    let seed = seed.map_err(VmmError::CloudInit)?;

    let HostResources { host, nets, agent } = host_resources(&config, options.agent.as_deref(), &signals)?;
    if usize::from(config.vcpus) > host.vcpus_max() {
        return Err(VmmError::Vcpus {
            wanted: config.vcpus,
            max: host.vcpus_max(),
        });
    }

    let memory = memory::map(config.memory_bytes).map_err(VmmError::Memory)?;
    let vm = host.create_vm(&memory).map_err(VmmError::Kvm)?;

    let poll = Arc::new(Poll::new().map_err(host_error("create an epoll set"))?);
    let mailbox = Arc::new(Mailbox::new().map_err(host_error("create an eventfd"))?);
    let devices = devices::all(disks, seed, nets);
    let functions = devices::connect(devices, &memory, &vm, &poll, &mailbox)
        .map_err(host_error("create the eventfds of a device"))?;
    let pci = Arc::new(PciBus::new(functions).map_err(VmmError::Slots)?);

    let stdout = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3);
    let output = stdout.map_err(io::Error::from).and_then(Output::start);
    let output = output.map_err(host_error("start the console"))?;
    let input_drained =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host_error("create an eventfd"))?;
    let platform = Platform {
        host,
        vm,
        memory,
        memory_bytes: config.memory_bytes,
        vcpus: config.vcpus,
        boot,
        pci,
        output,
        input_drained: Arc::new(input_drained),
        mailbox,
    };
    log::line(format_args!(
        "starting `{}`: {} vCPUs, {} MiB",
        config.name,
        config.vcpus,
        config.memory_bytes >> 20
    ));
    terminal::make_raw();
    event_loop::run(platform, poll, signals, agent, config.grace).map_err(VmmError::Run)
}

/// What only the host can give.
struct HostResources {
    host: Host,
    nets: Vec<Net>,
    agent: Option<Link>,
}

fn host_resources(
    config: &CheckedConfig,
    agent: Option<&Path>,
    signals: &StopSignals,
) -> Result<HostResources, VmmError> {
    let masqueraded: Vec<InterfaceRequest> = config
        .interfaces
        .iter()
        .filter(|interface| matches!(interface.binding, Binding::Masquerade))
        .map(|interface| InterfaceRequest {
            name: interface.name.clone(),
            mac: interface.mac.to_string(),
            queues: network::pairs(config),
        })
        .collect();
    let Some(socket) = agent else {
        if let Some(interface) = masqueraded.first() {
            return Err(VmmError::NoAgent(interface.name.clone()));
        }
        let nets = network::open_all(config, Vec::new()).map_err(VmmError::Network)?;
        let host = Host::open().map_err(VmmError::Kvm)?;
        return Ok(HostResources {
            host,
            nets,
            agent: None,
        });
    };
    let grant = agent::negotiate(socket, &masqueraded, signals).map_err(VmmError::Agent)?;
    Ok(HostResources {
        host: Host::from_descriptor(grant.kvm).map_err(VmmError::Kvm)?,
        nets: network::open_all(config, grant.interfaces).map_err(VmmError::Network)?,
        agent: Some(grant.link),
    })
}
