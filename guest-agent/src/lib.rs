//! `tandem-guest-agent`: runs in a Linux guest and does what the host asks for over vsock. The protocol is `node_shim_protocol::guest`.
//!
//! ```text
//! listener -> session (a thread for each connection) -> agent -> exec, info, shutdown, freeze, online -> response
//!                                                                                       ^
//! uevents of the kernel (a thread) -----------------------------------------------------+
//! ```
//!
//! Everything blocks or polls: no runtime, and no memory that the host can make grow. Decisions are functions of texts that the kernel
//! gives; what reads and writes is beside them.

pub mod agent;
pub mod connection;
mod exec;
pub mod freeze;
mod info;
pub mod listener;
mod lock;
pub mod log;
pub mod online;
pub mod options;
mod process;
mod session;
mod shutdown;

pub use self::session::serve;
