//! Which pod calls: the one to which the kubelet has given the device whose socket is called. Nothing that the caller says matters.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::device_plugin::resource;
use crate::kubelet::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use crate::kubelet::pod_resources::{ListPodResourcesRequest, ListPodResourcesResponse};
use crate::kubelet::{self};

/// How long the kubelet may take to list a pod whose container it has already started.
const PATIENCE: Duration = Duration::from_secs(5);
/// First pause between two looks; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Largest list in bytes: some thousand pods.
const MAX_LIST_BYTES: usize = 16 << 20;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PodName {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// Why it is not known who calls.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// The kubelet does not answer.
    #[error(transparent)]
    Connect(kubelet::KubeletError),
    /// The kubelet refuses.
    #[error("the kubelet refused to list its pods' devices: {}", .0.message())]
    List(Box<tonic::Status>),
    /// Nobody has the device.
    #[error("the kubelet knows no pod with the device {resource} {0}", resource = resource::resource_of(.0))]
    NotAllocated(String),
    /// Two have it.
    #[error("the kubelet lists the device {resource} {device} for both {first} and {second}", resource = resource::resource_of(.device))]
    Ambiguous {
        /// The device's id.
        device: String,
        /// One.
        first: PodName,
        /// Another.
        second: PodName,
    },
}

/// The pod that has `device`, from the PodResources service at `socket`. Waits a little for a pod that is not yet listed.
pub(super) async fn of_device(socket: &Path, device: &str) -> Result<PodName, IdentityError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match look(socket, device).await {
            Ok(pod) => return Ok(pod),
            Err(error) => error,
        };
        if Instant::now() + pause > deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

async fn look(socket: &Path, device: &str) -> Result<PodName, IdentityError> {
    let channel = kubelet::connect(socket).await.map_err(IdentityError::Connect)?;
    let mut kubelet = PodResourcesListerClient::new(channel).max_decoding_message_size(MAX_LIST_BYTES);
    let list = kubelet
        .list(ListPodResourcesRequest {})
        .await
        .map_err(|status| IdentityError::List(Box::new(status)))?;
    find(list.get_ref(), device)
}

fn find(list: &ListPodResourcesResponse, device: &str) -> Result<PodName, IdentityError> {
    let resource = resource::resource_of(device);
    let has_device = |pod: &&kubelet::pod_resources::PodResources| {
        let devices = pod.containers.iter().flat_map(|container| &container.devices);
        devices
            .filter(|devices| devices.resource_name == resource)
            .any(|devices| devices.device_ids.iter().any(|id| id == device))
    };
    let mut pods = list.pod_resources.iter().filter(has_device);
    let name = |pod: &kubelet::pod_resources::PodResources| PodName {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
    };
    match (pods.next(), pods.next()) {
        (None, _) => Err(IdentityError::NotAllocated(device.to_owned())),
        (Some(pod), None) => Ok(name(pod)),
        (Some(first), Some(second)) => Err(IdentityError::Ambiguous {
            device: device.to_owned(),
            first: name(first),
            second: name(second),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KVM_RESOURCE;
    use crate::VOLUME_RESOURCE;
    use crate::kubelet::pod_resources::{ContainerDevices, ContainerResources, PodResources};

    fn pod(name: &str, resource: &str, ids: &[&str]) -> PodResources {
        let devices = vec![ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(ToString::to_string).collect(),
        }];
        let containers = vec![ContainerResources {
            name: "vm".into(),
            devices,
        }];
        PodResources {
            name: name.into(),
            namespace: "default".into(),
            containers,
        }
    }

    #[test]
    fn the_pod_with_the_id_of_our_resource_is_found() {
        let list = ListPodResourcesResponse {
            pod_resources: vec![
                pod("gpu", "example.com/gpu", &["7"]),
                pod("web", KVM_RESOURCE, &["7"]),
                pod("db", KVM_RESOURCE, &["70"]),
                pod("db.data", VOLUME_RESOURCE, &["volume-7"]),
                pod("odd", KVM_RESOURCE, &["volume-8"]),
            ],
        };
        assert_eq!(find(&list, "7").unwrap().to_string(), "default/web");
        assert_eq!(find(&list, "70").unwrap().to_string(), "default/db");
        assert_eq!(find(&list, "volume-7").unwrap().to_string(), "default/db.data");
        assert!(matches!(find(&list, "volume-8"), Err(IdentityError::NotAllocated(_))));
        assert!(matches!(find(&list, "0"), Err(IdentityError::NotAllocated(_))));
    }

    #[test]
    fn two_pods_with_one_id_are_neither() {
        let list = ListPodResourcesResponse {
            pod_resources: vec![pod("a", KVM_RESOURCE, &["7"]), pod("b", KVM_RESOURCE, &["7"])],
        };
        assert!(matches!(find(&list, "7"), Err(IdentityError::Ambiguous { .. })));
    }
}
