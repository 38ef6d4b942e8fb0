//! `node-shim`: one process, one virtual machine.
//!
//! ```text
//! arguments -> config -> vmm (linear construction) -> event_loop -> termination
//!                                                       |    ^
//!                            machine: vCPUs, chips  <---+    | mailbox, doorbells, signals, stdin, agent
//! ```

use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod acpi;
mod activator;
mod agent;
mod boot;
mod bus;
mod clock;
mod config;
mod console;
mod cpuid;
mod cpus;
mod devices;
mod event_loop;
mod events;
mod kvm;
mod layout;
mod lifecycle;
mod lock;
mod log;
mod machine;
mod mailbox;
mod memory;
mod panic_port;
mod pci;
mod poll;
mod power;
mod registers;
mod serial;
mod signals;
mod slots;
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
        #[arg(long)]
        config: PathBuf,
        /// Socket of the node agent, which opens /dev/kvm and taps. Without it both are opened here.
        #[arg(long)]
        agent: Option<PathBuf>,
        /// Where to write why the VM ended, besides stderr [default: /dev/termination-log where it exists]
        #[arg(long)]
        termination_log: Option<PathBuf>,
    },
    /// Checks a configuration without starting anything.
    Check {
        /// The VM's configuration: a VmConfig in JSON.
        #[arg(long)]
        config: PathBuf,
    },
}

fn main() {
    match Arguments::parse().command {
        Command::Run {
            config,
            agent,
            termination_log,
        } => {
            termination::set_log(termination_log);
            termination::end_on_panic();
            if let Err(error) = rustix::thread::set_no_new_privs(true) {
                log::line(format_args!("failed to set no_new_privs: {error}"));
            }
            match vmm::run(&vmm::Options { config, agent }) {
                Ok(ending) => termination::end(ending.reason, &ending.message),
                Err(error) => termination::end(error.reason(), &error.to_string()),
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
