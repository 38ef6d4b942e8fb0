//! Pure: a VM's spec with what its instance type says filled in.

use crds::{VirtualMachine, VirtualMachineInstanceType};

use super::validate::Invalid;

/// The VM as it would be written without an instance type; `instance_type` is the one that it names, if there is one.
///
/// # Errors
///
/// When the instance type does not exist, or contradicts the VM.
pub(crate) fn resolved(
    vm: &VirtualMachine,
    instance_type: Option<&VirtualMachineInstanceType>,
) -> Result<VirtualMachine, Invalid> {
    let Some(reference) = &vm.spec.instance_type else {
        return Ok(vm.clone());
    };
    let Some(instance_type) = instance_type else {
        return Err(Invalid::InstanceTypeMissing(reference.name.clone()));
    };
    if vm.spec.cpu.is_some() || vm.spec.memory.is_some() {
        return Err(Invalid::TwoSizes);
    }
    let from = &instance_type.spec;
    let mut vm = vm.clone();
    vm.spec.cpu = Some(from.cpu.clone());
    vm.spec.memory = Some(from.memory.clone());
    for (label, value) in &from.node_selector {
        let own = vm
            .spec
            .node_selector
            .entry(label.clone())
            .or_insert_with(|| value.clone());
        if own != value {
            return Err(Invalid::InstanceTypeNodes {
                name: reference.name.clone(),
                label: label.clone(),
                value: value.clone(),
            });
        }
    }
    vm.spec.tolerations.extend(from.tolerations.iter().cloned());
    Ok(vm)
}
