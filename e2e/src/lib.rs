//! End-to-end tests and benchmarks. They run on a cluster that `hack/up` made, as a user would: through `kubectl` and manifests for what a
//! user does, and through watches of the API for what a user waits for.
//!
//! The environment names the cluster: `TANDEM_CLUSTER` (its name, for `hack/node-exec`) and `KUBECONFIG`.

pub mod audit;
pub mod cluster;
pub mod console;
pub mod fault_proxy;
pub mod guest;
pub mod manifest;
pub mod operator_process;
pub mod resize;
pub mod runner;
pub mod volumes;
