//! `node-shim`: one process, one virtual machine.
//!
//! ```text
//! arguments -> config -> vmm (linear construction) -> event_loop -> termination
//!                                                       |    ^
//!                            machine: vCPUs, chips  <---+    | mailbox, doorbells, signals, stdin, agent
//! ```

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Parser, Subcommand};
use node_shim_protocol::{ExitReason, paths};

use self::control::command::Verb;
use self::jail::seccomp::Mode;
use self::vmm::Origin;

mod acpi;
mod activator;
mod agent;
mod boot;
mod bus;
mod clock;
mod config;
mod console;
mod control;
mod cpuid;
mod cpus;
mod devices;
mod event_loop;
mod events;
mod guest_agent;
mod jail;
mod kvm;
mod layout;
mod lend;
mod lifecycle;
mod log;
mod machine;
mod mailbox;
mod memory;
mod packet;
mod panic_port;
mod pci;
mod poll;
mod power;
mod registers;
mod serial;
mod signals;
mod slots;
mod snapshot;
mod terminal;
mod termination;
mod timer;
mod vcpu;
mod vmm;
mod volume;
mod watchdog;

/// A small KVM virtual machine monitor: one process, one VM.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a VM until it ends. SIGTERM is its power button; the exit code says how it ended.
    Run {
        /// The VM's configuration: a VmConfig in JSON.
        #[arg(long, required_unless_present = "restore")]
        config: Option<PathBuf>,
        /// Goes on from a snapshot's folder, which has its configuration.
        #[arg(long, conflicts_with = "config")]
        restore: Option<PathBuf>,
        /// Where the files of a restored VM's disks go [default: the scratch directory that it was saved with]
        #[arg(long, requires = "restore")]
        scratch: Option<PathBuf>,
        /// Where to make the control socket. Without it there is none.
        #[arg(long)]
        control: Option<PathBuf>,
        /// Socket of the node agent, which opens /dev/kvm and taps. Without it both are opened here.
        #[arg(long, requires = "pod_uid")]
        agent: Option<PathBuf>,
        /// UID of the pod that this runs in, for the node agent.
        #[arg(long, value_name = "UID", requires = "agent")]
        pod_uid: Option<String>,
        /// A directory that snapshots may be written to, besides the scratch directory. May be given again.
        #[arg(long, value_name = "DIRECTORY")]
        snapshots: Vec<PathBuf>,
        /// What becomes of a system call that a thread of the VMM has no need of.
        #[arg(long, value_enum, default_value_t = Seccomp::Enforce)]
        seccomp: Seccomp,
        /// Where to write why the VM ended, besides stderr [default: /dev/termination-log where it exists]
        #[arg(long)]
        termination_log: Option<PathBuf>,
    },
    /// Opens a disk and lends it to a running VM of the same node, until SIGTERM and until its guest has given it up.
    Lend {
        /// The disk: a LendConfig in JSON.
        #[arg(long)]
        config: PathBuf,
        /// Socket of the node agent.
        #[arg(long)]
        agent: PathBuf,
        /// UID of the pod that this runs in, for the node agent.
        #[arg(long, value_name = "UID")]
        pod_uid: String,
        /// What becomes of a system call that the process has no need of.
        #[arg(long, value_enum, default_value_t = Seccomp::Enforce)]
        seccomp: Seccomp,
        /// Where to write why it ended, besides stderr [default: /dev/termination-log where it exists]
        #[arg(long)]
        termination_log: Option<PathBuf>,
    },
    /// Asks a running VM for something, and prints the answer in JSON.
    Control {
        /// The VM's control socket: inside its pod the usual one.
        #[arg(long, default_value = paths::CONTROL_SOCKET)]
        socket: PathBuf,
        #[command(subcommand)]
        verb: ControlVerb,
    },
    /// Does something with a disk of a VM that does not run.
    Disk {
        #[command(subcommand)]
        verb: devices::disk::command::Verb,
    },
    /// Checks a configuration without starting anything.
    Check {
        /// The VM's configuration: a VmConfig in JSON.
        #[arg(long)]
        config: PathBuf,
    },
}

/// Whom to ask.
#[derive(Subcommand)]
enum ControlVerb {
    #[command(flatten)]
    Vmm(Verb),
    /// Asks the agent in the guest, which is optional: docs/guest-agent.md.
    Guest {
        /// The VM's vsock socket: inside its pod the usual one.
        #[arg(long, default_value = paths::VSOCK_SOCKET)]
        vsock: PathBuf,
        #[command(subcommand)]
        verb: guest_agent::command::Verb,
    },
}

/// Modes of the seccomp filters.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Seccomp {
    /// It is not made, and the VMM ends with exit code 50.
    Enforce,
    /// It is made, and the kernel logs it: for development.
    Log,
}

impl From<Seccomp> for Mode {
    fn from(seccomp: Seccomp) -> Self {
        match seccomp {
            Seccomp::Enforce => Self::Enforce,
            Seccomp::Log => Self::Log,
        }
    }
}

fn main() {
    let started = Instant::now();
    match Arguments::parse().command {
        Command::Run {
            config,
            restore,
            scratch,
            control,
            agent,
            pod_uid,
            snapshots,
            seccomp,
            termination_log,
        } => {
            jail::close_inherited();
            termination::set_log(termination_log);
            termination::end_on_panic();
            let origin = match (config, restore) {
                (_, Some(folder)) => Origin::Snapshot { folder, scratch },
                (config, None) => Origin::Config(config.unwrap_or_default()),
            };
            let options = vmm::Options {
                origin,
                agent: agent
                    .zip(pod_uid)
                    .map(|(socket, pod_uid)| agent::Address { socket, pod_uid }),
                control,
                snapshots,
                seccomp: seccomp.into(),
                started,
            };
            match vmm::run(&options) {
                Ok(ending) => termination::end(ending.reason, &ending.message),
                Err(error) => termination::end(error.reason(), &error.to_string()),
            }
        }
        Command::Lend {
            config,
            agent: socket,
            pod_uid,
            seccomp,
            termination_log,
        } => {
            jail::close_inherited();
            termination::set_log(termination_log);
            termination::end_on_panic();
            let ended = lend::run(&lend::Options {
                config,
                agent: agent::Address { socket, pod_uid },
                seccomp: seccomp.into(),
            });
            match ended {
                Ok(()) => termination::end(ExitReason::PoweredOff, "the disk is not lent any more"),
                Err(error) => termination::end(error.reason(), &error.to_string()),
            }
        }
        Command::Control { socket, verb } => std::process::exit(match verb {
            ControlVerb::Vmm(verb) => ask_vmm(&socket, verb),
            ControlVerb::Guest { vsock, verb } => guest_agent::command::run(&vsock, verb).into(),
        }),
        Command::Disk { verb } => {
            if let Err(error) = devices::disk::command::run(verb) {
                log::line(format_args!("{error}"));
                std::process::exit(1);
            }
        }
        Command::Check { config } => {
            termination::end_on_panic();
            if let Err(error) = config::load(&config) {
                let error = vmm::VmmError::Config(error);
                termination::end(error.reason(), &error.to_string());
            }
        }
    }
}

/// Asks the VMM, and returns the exit code.
fn ask_vmm(socket: &Path, verb: Verb) -> i32 {
    match control::command::run(socket, verb) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            log::line(format_args!("{error}"));
            2
        }
    }
}
