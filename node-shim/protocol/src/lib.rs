//! What the operator, the node agent and `node-shim` say to each other. Types only: no IO, no Kubernetes, no KVM.
//!
//! ```text
//! operator    -- VmConfig: pod annotation, projected to a file -->  node-shim
//! node-shim   -- agent::Request (+ descriptors) --> node-agent      one SOCK_SEQPACKET connection for a VM's life
//! node-shim   <-- agent::Response (+ descriptors) -- node-agent
//! operator    -- LendConfig: as VmConfig -->  node-shim lend -- agent::Request::Lend (+ descriptor) --> node-agent
//! anybody     -- control::Request (+ descriptor) --> node-shim     control socket; control::Response comes back
//! anybody     -- guest::Request --> agent in the guest             vsock stream through node-shim; guest::Response comes back
//! node-shim   -- Termination: exit code and termination message -->  kubelet --> operator
//! ```

pub mod agent;
pub mod config;
pub mod control;
pub mod guest;
pub mod lend;
pub mod overhead;
pub mod paths;
pub mod termination;

pub use config::VmConfig;
pub use lend::LendConfig;
pub use termination::{ExitReason, Termination};
