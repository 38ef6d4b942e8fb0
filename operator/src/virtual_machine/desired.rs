//! Pure: what should exist for a VM. [`pod`] speaks Kubernetes, [`vm_config`] the VMM's language; nothing else knows both.

mod guest_command;
pub(crate) mod identity;
mod networks;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod snapshot;
pub(crate) mod vm_config;

/// Name of the shim's container.
pub(crate) const CONTAINER: &str = "vm";
/// Label of the shim pod that holds its VM's name.
pub(crate) const VM_LABEL: &str = "tandem.dev/vm";
/// Label and value that mark everything that Tandem makes.
pub(crate) const MANAGED_BY_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "tandem");
/// Annotation of the shim pod: generation of the VirtualMachine that it was made from.
pub(crate) const GENERATION_ANNOTATION: &str = "tandem.dev/vm-generation";
/// Annotation of the shim pod: `spec.restartedAt` that it was made from.
pub(crate) const RESTARTED_AT_ANNOTATION: &str = "tandem.dev/restarted-at";
/// Annotation of the shim pod: the spec that it was made from, with long texts as digests.
pub(crate) const SPEC_ANNOTATION: &str = "tandem.dev/vm-spec";
/// Extended resource that one VM takes.
pub(crate) const KVM_RESOURCE: &str = "tandem.dev/kvm";
