//! The three extended resources: their devices and what an allocation gives. Pure but for looking at the node's `/dev`.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use node_shim_protocol::paths::AGENT_DIR;

use super::Most;
use super::health::Verdict;
use crate::kubelet::device_plugin::{ContainerAllocateResponse, Device, DeviceSpec, HEALTHY, Mount, UNHEALTHY};
use crate::node_paths::RunDir;

/// Devices of the node that `node-agent serve` works with, where they exist.
pub(crate) const HOST_DEVICES: [&str; 4] = ["kvm", "net/tun", "vhost-net", "userfaultfd"];
/// Variable in the environment of a container that was given one of `tandem.dev/host-devices`: its id.
pub(crate) const ALLOCATED: &str = "TANDEM_HOST_DEVICES";
/// Ids of `tandem.dev/host-devices`: one for the agent and one for its successor during a rolling update.
const HOST_DEVICE_IDS: [&str; 2] = ["agent-0", "agent-1"];

/// An extended resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// One per VM: the directory with its socket, and no device at all.
    Kvm,
    /// One per volume pod, as `Kvm`: offered where VMs can be.
    Volumes,
    /// For `node-agent serve`: the node's devices.
    HostDevices,
}

/// An allocation that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AllocationError {
    /// More or less than one device.
    #[error("a container must ask for exactly 1 {resource}, not {count}: write `{resource}: 1` into its limits")]
    Count {
        /// The resource.
        resource: &'static str,
        /// Devices asked for.
        count: usize,
    },
    /// Not one of ours.
    #[error("{0} is no device of this node")]
    UnknownDevice(String),
}

impl Resource {
    /// All.
    pub(super) const ALL: [Self; 3] = [Self::Kvm, Self::Volumes, Self::HostDevices];

    /// Name of the extended resource.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kvm => crate::KVM_RESOURCE,
            Self::Volumes => crate::VOLUME_RESOURCE,
            Self::HostDevices => "tandem.dev/host-devices",
        }
    }

    /// File name of the plugin's socket beside kubelet.sock.
    pub(super) const fn endpoint(self) -> &'static str {
        match self {
            Self::Kvm => "tandem-kvm.sock",
            Self::Volumes => "tandem-volumes.sock",
            Self::HostDevices => "tandem-host-devices.sock",
        }
    }

    /// The devices that the kubelet is told of.
    pub(super) fn devices(self, most: Most, verdict: &Verdict) -> Vec<Device> {
        match self {
            Self::Kvm | Self::Volumes => {
                let health = match verdict {
                    Verdict::Works => HEALTHY,
                    Verdict::Unknown | Verdict::Broken(_) => UNHEALTHY,
                    Verdict::Absent => return Vec::new(),
                };
                let device = |id| Device {
                    id,
                    health: health.into(),
                };
                self.ids(most).map(device).collect()
            }
            Self::HostDevices => HOST_DEVICE_IDS
                .map(|id| Device {
                    id: id.into(),
                    health: HEALTHY.into(),
                })
                .into_iter()
                .collect(),
        }
    }

    /// Ids of the devices that have a socket.
    fn ids(self, most: Most) -> impl Iterator<Item = String> {
        let (count, prefix) = match self {
            Self::Kvm => (most.vms, ""),
            Self::Volumes => (most.volumes, VOLUME_PREFIX),
            Self::HostDevices => (0, ""),
        };
        (0..count).map(move |index| format!("{prefix}{index}"))
    }
}

/// What an id of `tandem.dev/volumes` begins with: the directories of all ids are beside each other.
const VOLUME_PREFIX: &str = "volume-";

/// Ids of every device that has a socket.
pub(super) fn sockets(most: Most) -> impl Iterator<Item = String> {
    Resource::ALL.into_iter().flat_map(move |resource| resource.ids(most))
}

/// The extended resource that a device with a socket is of.
pub(crate) fn resource_of(id: &str) -> &'static str {
    if id.starts_with(VOLUME_PREFIX) {
        Resource::Volumes.name()
    } else {
        Resource::Kvm.name()
    }
}

/// What a container gets that was given `ids` of a resource whose devices have sockets.
pub(super) fn allocate_socket(
    resource: Resource,
    run_dir: &RunDir,
    most: Most,
    ids: &[String],
) -> Result<ContainerAllocateResponse, AllocationError> {
    let [id] = ids else {
        return Err(AllocationError::Count {
            resource: resource.name(),
            count: ids.len(),
        });
    };
    let known = resource.ids(most).any(|known| known == *id);
    let host_path = run_dir.device(id);
    match host_path.to_str() {
        Some(host_path) if known => Ok(ContainerAllocateResponse {
            mounts: vec![Mount {
                container_path: AGENT_DIR.into(),
                host_path: host_path.into(),
                read_only: true,
            }],
            devices: Vec::new(),
            envs: HashMap::new(),
        }),
        Some(_) | None => Err(AllocationError::UnknownDevice(id.clone())),
    }
}

/// What a container gets that was given `ids` of `tandem.dev/host-devices`, on a node where the files of `exists` are in `/dev`.
pub(super) fn allocate_host_devices(
    ids: &[String],
    exists: impl Fn(&str) -> bool,
) -> Result<ContainerAllocateResponse, AllocationError> {
    let [id] = ids else {
        return Err(AllocationError::Count {
            resource: Resource::HostDevices.name(),
            count: ids.len(),
        });
    };
    if !HOST_DEVICE_IDS.contains(&id.as_str()) {
        return Err(AllocationError::UnknownDevice(id.clone()));
    }
    let devices = HOST_DEVICES.iter().filter(|name| exists(name)).map(|name| {
        let path = format!("/dev/{name}");
        DeviceSpec {
            container_path: path.clone(),
            host_path: path,
            permissions: "rw".into(),
        }
    });
    Ok(ContainerAllocateResponse {
        mounts: Vec::new(),
        devices: devices.collect(),
        envs: HashMap::from([(ALLOCATED.into(), id.clone())]),
    })
}

/// Makes a device's directory: the pod's user must be able to enter it, and only root to change it, whatever the umask.
pub(super) fn make_device_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Most = Most { vms: 110, volumes: 2 };

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    }

    fn allocate(resource: Resource, devices: &[&str]) -> Result<ContainerAllocateResponse, AllocationError> {
        allocate_socket(resource, &RunDir::new("/run/tandem"), MOST, &ids(devices))
    }

    #[test]
    fn volumes_are_offered_where_vms_can_be_and_have_directories_of_their_own() {
        let count = |verdict| Resource::Volumes.devices(MOST, &verdict).len();
        assert_eq!((count(Verdict::Works), count(Verdict::Absent)), (2, 0));
        let allocated = allocate(Resource::Volumes, &["volume-1"]).unwrap();
        assert_eq!(allocated.mounts[0].host_path, "/run/tandem/devices/volume-1");
        let all: Vec<_> = sockets(Most { vms: 1, volumes: 2 }).collect();
        assert_eq!(all, ["0", "volume-0", "volume-1"]);
        assert_eq!(
            all.iter().map(|id| resource_of(id)).collect::<Vec<_>>(),
            ["tandem.dev/kvm", "tandem.dev/volumes", "tandem.dev/volumes"]
        );
    }

    #[test]
    fn kvm_devices_follow_the_verdict() {
        let healths = |verdict| -> Vec<String> {
            Resource::Kvm
                .devices(Most { vms: 2, ..MOST }, &verdict)
                .into_iter()
                .map(|device| device.id + " " + &device.health)
                .collect()
        };
        assert_eq!(healths(Verdict::Works), ["0 Healthy", "1 Healthy"]);
        assert_eq!(healths(Verdict::Unknown), ["0 Unhealthy", "1 Unhealthy"]);
        assert_eq!(
            healths(Verdict::Broken("no vmx".into())),
            ["0 Unhealthy", "1 Unhealthy"]
        );
        assert!(healths(Verdict::Absent).is_empty());
    }

    #[test]
    fn the_agent_can_always_be_started_twice() {
        for verdict in [
            Verdict::Absent,
            Verdict::Unknown,
            Verdict::Broken(String::new()),
            Verdict::Works,
        ] {
            let devices = Resource::HostDevices.devices(MOST, &verdict);
            assert_eq!(devices.iter().filter(|device| device.health == HEALTHY).count(), 2);
        }
    }

    #[test]
    fn a_vm_gets_its_directory_read_only_and_no_device() {
        let allocated = allocate(Resource::Kvm, &["17"]).unwrap();
        let mount = Mount {
            container_path: "/run/tandem".into(),
            host_path: "/run/tandem/devices/17".into(),
            read_only: true,
        };
        assert_eq!(
            allocated,
            ContainerAllocateResponse {
                mounts: vec![mount],
                devices: Vec::new(),
                envs: HashMap::new(),
            }
        );
    }

    #[test]
    fn ids_that_are_not_ours_are_refused() {
        for id in ["110", "-1", "007", "../0", "", "65536", "volume-0"] {
            assert_eq!(
                allocate(Resource::Kvm, &[id]),
                Err(AllocationError::UnknownDevice(id.into()))
            );
        }
        for id in ["volume-2", "0", "volume-", "volume-00"] {
            assert!(allocate(Resource::Volumes, &[id]).is_err(), "{id}");
        }
        for resource in [Resource::Kvm, Resource::Volumes] {
            assert!(allocate(resource, &["1", "2"]).is_err());
            assert!(allocate(resource, &[]).is_err());
        }
        assert!(allocate_host_devices(&ids(&["0"]), |_| true).is_err());
    }

    #[test]
    fn the_agent_gets_the_devices_that_exist() {
        let allocated = allocate_host_devices(&ids(&["agent-1"]), |name| name != "vhost-net").unwrap();
        let paths: Vec<_> = allocated
            .devices
            .iter()
            .map(|device| device.host_path.as_str())
            .collect();
        assert_eq!(paths, ["/dev/kvm", "/dev/net/tun", "/dev/userfaultfd"]);
        assert!(allocated.devices.iter().all(|device| device.permissions == "rw"));
        assert_eq!(allocated.envs[ALLOCATED], "agent-1");
    }
}
