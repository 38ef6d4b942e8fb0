//! The command line.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};

/// Turns each VirtualMachine into one shim pod.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    /// Image of the shim's container.
    #[arg(long, env = "TANDEM_SHIM_IMAGE")]
    pub(crate) shim_image: String,
    /// Namespace of the lease.
    #[arg(long, env = "TANDEM_LEASE_NAMESPACE", default_value = "tandem-system")]
    pub(crate) lease_namespace: String,
    /// Name of the lease.
    #[arg(long, env = "TANDEM_LEASE_NAME", default_value = "tandem-operator")]
    pub(crate) lease_name: String,
    /// Who takes the lease: the pod's name, if the operator runs in one.
    #[arg(long, env = "POD_NAME")]
    pub(crate) identity: Option<String>,
    /// Whether to take the lease before doing anything; without it nobody else may run an operator.
    #[arg(long, env = "TANDEM_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) leader_election: bool,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "TANDEM_HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    pub(crate) http_address: SocketAddr,
    /// VirtualMachines that are worked on at the same time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) concurrency: u16,
    /// Form of the log.
    #[arg(long, env = "TANDEM_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Log level, or directives as of tracing-subscriber's `EnvFilter`.
    #[arg(long, env = "TANDEM_LOG", default_value = "info")]
    pub(crate) log: String,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
