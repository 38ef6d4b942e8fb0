//! Network interfaces.

use crds::{
    network_interface::{MULTUS_ANNOTATION, MultusNetwork, NetworkInterface},
    pod_metadata::PodMetadata,
};

use super::{Invalid, ValidLimits, check_names, limits};

/// An interface with exactly one binding.
#[derive(Clone, Debug)]
pub(crate) struct ValidInterface {
    pub(crate) name: String,
    pub(crate) binding: ValidBinding,
    /// The network; the pod's own where there is none.
    pub(crate) network: Option<Attachment>,
    pub(crate) receive_limits: ValidLimits,
    pub(crate) transmit_limits: ValidLimits,
}

/// How an interface is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValidBinding {
    Masquerade,
    Bridge,
}

/// A `NetworkAttachmentDefinition`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// The VM's own where there is none.
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl Attachment {
    fn of(network: &MultusNetwork) -> Self {
        match network.network_name.split_once('/') {
            Some((namespace, name)) => Self {
                namespace: Some(namespace.to_owned()),
                name: name.to_owned(),
            },
            None => Self {
                namespace: None,
                name: network.network_name.clone(),
            },
        }
    }
}

pub(super) fn interfaces(
    interfaces: &[NetworkInterface],
    metadata: Option<&PodMetadata>,
) -> Result<Vec<ValidInterface>, Invalid> {
    check_names("interface", interfaces.iter().map(|interface| interface.name.as_str()))?;
    let valid: Vec<ValidInterface> = interfaces.iter().map(interface).collect::<Result<_, _>>()?;
    let on_pod_network = || valid.iter().filter(|interface| interface.network.is_none());
    if on_pod_network().count() > 1 && on_pod_network().any(|interface| interface.binding == ValidBinding::Bridge) {
        return Err(Invalid::PodNetworkShared);
    }
    if metadata.is_some_and(|metadata| metadata.annotations.contains_key(MULTUS_ANNOTATION)) {
        return Err(Invalid::NetworksAnnotation);
    }
    Ok(valid)
}

fn interface(interface: &NetworkInterface) -> Result<ValidInterface, Invalid> {
    let owner = format!("interface {:?}", interface.name);
    let binding = match (&interface.masquerade, &interface.bridge) {
        (Some(_), None) => ValidBinding::Masquerade,
        (None, Some(_)) => ValidBinding::Bridge,
        (None, None) | (Some(_), Some(_)) => return Err(Invalid::Binding(interface.name.clone())),
    };
    Ok(ValidInterface {
        name: interface.name.clone(),
        binding,
        network: interface.multus.as_ref().map(Attachment::of),
        receive_limits: limits(&owner, interface.receive_limits.as_ref())?,
        transmit_limits: limits(&owner, interface.transmit_limits.as_ref())?,
    })
}
