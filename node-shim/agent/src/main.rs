//! The Tandem node agent: everything that a VM needs from its node and a pod may not do itself.
//!
//! `device-plugin` offers devices to the kubelet and has no capability; `serve` opens devices and network for the pods and has
//! `NET_ADMIN` and `SYS_ADMIN`. Each is a `DaemonSet`: see `docs/adr/0002-device-plugin-and-agent.md`.

mod device_plugin;
mod directory_watch;
mod event_loop;
mod kubelet;
mod kvm_report;
mod network;
mod node_paths;
mod serve;
mod unix_socket;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use node_paths::{KubeletDir, RunDir};

/// The extended resource of which each VM has one.
pub(crate) const KVM_RESOURCE: &str = "tandem.dev/kvm";
/// The extended resource of which each volume pod has one.
pub(crate) const VOLUME_RESOURCE: &str = "tandem.dev/volumes";

#[derive(Debug, Parser)]
#[command(version, about = "The Tandem node agent")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How log lines are written to standard error.
    #[arg(long, env = "TANDEM_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    /// What is logged: a level, or `tracing` directives.
    #[arg(long, env = "TANDEM_LOG", default_value = "info", global = true)]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Offer `tandem.dev/kvm`, `tandem.dev/volumes` and `tandem.dev/host-devices` to the kubelet.
    DevicePlugin(DevicePluginArguments),
    /// Serve the VM pods of this node.
    Serve(ServeArguments),
    /// Ask `serve` whether it is well: for an exec probe.
    Health(Directories),
}

#[derive(Debug, Args)]
struct Directories {
    /// Directory that both halves of the agent and the kubelet see under this path.
    #[arg(long, default_value = "/run/tandem")]
    run_dir: PathBuf,
}

#[derive(Debug, Args)]
struct DevicePluginArguments {
    #[command(flatten)]
    directories: Directories,
    /// The kubelet's root directory.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// The node's /dev; it is only looked at.
    #[arg(long, default_value = "/host/dev")]
    host_dev: PathBuf,
    /// The most VMs that this node may have.
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u16).range(1..=1000))]
    max_vms: u16,
    /// The most disks that may be plugged into this node's VMs while they run.
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u16).range(1..=1000))]
    max_volumes: u16,
}

#[derive(Debug, Args)]
struct ServeArguments {
    #[command(flatten)]
    directories: Directories,
    /// The kubelet's root directory.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Offer a KVM that has neither VT-x nor SVM beneath it, as `KVM_PVM`: it cannot boot Linux, but runs guests made for it.
    #[arg(long)]
    allow_paravirtual_kvm: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = start_log(&arguments) {
        eprintln!("node-agent: --log is no filter: {error}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(until_terminated(arguments.command));
        // A thread that the kernel holds in a pod's namespace must not delay the successor.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(arguments: &Arguments) -> Result<(), tracing_subscriber::filter::ParseError> {
    // The client logs each failed request as an error, and its caller logs it again with what is done about it.
    let filter = EnvFilter::try_new(format!("kube_client::client::builder=off,{}", arguments.log))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Runs the command until it ends or SIGTERM or SIGINT comes. Sockets stay for the successor, which takes their places.
async fn until_terminated(command: Command) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = run(command) => result,
        _ = terminate.recv() => {
            tracing::info!("SIGTERM: closing");
            Ok(())
        }
        _ = interrupt.recv() => {
            tracing::info!("SIGINT: closing");
            Ok(())
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::DevicePlugin(DevicePluginArguments {
            directories,
            kubelet_dir,
            host_dev,
            max_vms,
            max_volumes,
        }) => {
            let options = device_plugin::Options {
                run_dir: RunDir::new(directories.run_dir),
                kubelet_dir: KubeletDir::new(kubelet_dir),
                host_dev,
                most: device_plugin::Most {
                    vms: max_vms,
                    volumes: max_volumes,
                },
            };
            Ok(device_plugin::run(options).await?)
        }
        Command::Serve(ServeArguments {
            directories,
            kubelet_dir,
            node_name,
            allow_paravirtual_kvm,
        }) => {
            let options = serve::Options {
                run_dir: RunDir::new(directories.run_dir),
                kubelet_dir: KubeletDir::new(kubelet_dir),
                node_name,
                allow_paravirtual_kvm,
            };
            Ok(serve::run(options).await?)
        }
        Command::Health(directories) => Ok(serve::ask_health(&RunDir::new(directories.run_dir)).await?),
    }
}
