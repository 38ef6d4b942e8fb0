//! The Tandem API, group `tandem.dev`: the Rust types of every kind and the CRDs that are generated from them.
//!
//! One file per kind ([`virtual_machine`]) and one for each part of a spec. Types here do no IO and know no defaults that depend on a
//! cluster. A default that a field's documentation names is applied by whoever reads it, never written into a stored `spec`: the spec
//! belongs to its owner.
#![forbid(unsafe_code)]
// `KubeSchema` makes a private twin of each type, whose fields are as public as the type itself.
#![allow(unreachable_pub)]

pub mod applies;
pub mod boot;
pub mod cloud_init;
pub mod conditions;
pub mod cpu;
pub mod disk;
pub mod eviction_policy;
pub mod generated;
pub mod guest;
pub mod ignition;
pub mod image;
pub mod instance_type;
pub mod manifest;
pub mod memory;
pub mod network_interface;
pub mod pod_metadata;
pub mod probe;
pub mod quantity;
pub mod rate_limit;
pub mod reference;
pub mod run_policy;
pub mod scheduling;
pub mod status;
pub mod virtual_machine;
pub mod virtual_machine_set;
pub mod volume_claim_template;

pub use eviction_policy::EvictionPolicy;
pub use instance_type::{VirtualMachineInstanceType, VirtualMachineInstanceTypeSpec};
pub use quantity::Quantity;
pub use run_policy::RunPolicy;
pub use status::VirtualMachineStatus;
pub use virtual_machine::{VirtualMachine, VirtualMachineSpec};
pub use virtual_machine_set::{VirtualMachineSet, VirtualMachineSetSpec, VirtualMachineSetStatus};

/// API group of every kind.
pub const GROUP: &str = "tandem.dev";
