//! Pure: what should exist for a VM. [`pod`] speaks Kubernetes, [`vm_config`] the VMM's language; nothing else knows both.

mod guest_command;
pub(crate) mod identity;
mod networks;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod snapshot;
pub(crate) mod vm_config;
pub(crate) mod volume_pod;

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
/// Label of a volume pod that holds its VM's name. It has no other label of the VM: no Service is to find it.
pub(crate) const VOLUME_OF_LABEL: &str = "tandem.dev/volume-of";
/// Label of a volume pod that holds the name of its disk.
pub(crate) const DISK_LABEL: &str = "tandem.dev/disk";
/// Annotation of a volume pod: the disk that it was made from, as the VM's spec had it.
pub(crate) const DISK_SPEC_ANNOTATION: &str = "tandem.dev/disk-spec";
/// Name of a volume pod's container.
pub(crate) const VOLUME_CONTAINER: &str = "volume";
/// Extended resource that one volume pod takes.
pub(crate) const VOLUME_RESOURCE: &str = "tandem.dev/volumes";
