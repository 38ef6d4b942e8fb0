//! The networks of a VM's pod beside its own, as Multus is told of them.

use serde::Serialize;

use super::identity;
use crate::virtual_machine::validate::{ValidBinding, ValidatedVm};

/// A network of a pod: `NetworkSelectionElement` of the Kubernetes Network Plumbing Working Group's specification, as far as it is used.
#[derive(Serialize)]
struct Selection<'a> {
    name: &'a str,
    namespace: &'a str,
    /// Name of the pod's interface.
    interface: String,
    /// MAC address of the pod's interface, where the network lets it be chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
}

/// The value of [`crds::network_interface::MULTUS_ANNOTATION`]; none where the pod is on no other network.
///
/// # Errors
/// Never: it is all text.
pub(crate) fn annotation(vm: &ValidatedVm) -> Result<Option<String>, serde_json::Error> {
    let selections: Vec<Selection<'_>> = vm
        .interfaces
        .iter()
        .filter_map(|interface| {
            let network = interface.network.as_ref()?;
            Some(Selection {
                name: &network.name,
                namespace: network.namespace.as_deref().unwrap_or(&vm.namespace),
                interface: identity::pod_interface(&interface.name),
                // With a bridge the guest has it, too: so it keeps its own from pod to pod.
                mac: (interface.binding == ValidBinding::Bridge).then(|| identity::mac(&vm.uid, &interface.name)),
            })
        })
        .collect();
    if selections.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(&selections).map(Some)
}
