//! Claims for a test, on local volumes of a node.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Local volumes on a node: the claim `files` with a file system, and the claim `device`, which is a block device of 16 MiB.
pub struct Volumes {
    namespace: String,
    /// The node.
    pub node: String,
    /// The block device there.
    pub device: String,
}

impl Volumes {
    /// Makes volumes on a node, and claims of them in a namespace.
    ///
    /// # Errors
    /// When the node or the API server refuses.
    pub async fn make(cluster: &Cluster, namespace: &str, node: &str) -> Result<Self> {
        let directory = directory(namespace);
        let make = format!(
            "mkdir -p {directory}/files && truncate -s 16M {directory}/device.img && losetup --find --show {directory}/device.img"
        );
        let device = cluster.node_exec(node, &["sh", "-c", &make]).await?.trim().to_owned();
        ensure!(device.starts_with("/dev/loop"), "losetup printed {device:?}");
        for (name, mode, path) in [
            ("files", "Filesystem", format!("{directory}/files")),
            ("device", "Block", device.clone()),
        ] {
            cluster.apply(&volume(namespace, node, name, mode, &path)).await?;
            cluster.apply(&claim(namespace, name, mode)).await?;
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            node: node.to_owned(),
            device,
        })
    }

    /// Where a file of the claim `files` is on the node.
    pub fn file(&self, name: &str) -> String {
        format!("{}/files/{name}", directory(&self.namespace))
    }

    /// Takes everything away; their namespace must be gone.
    ///
    /// # Errors
    /// When the node or the API server refuses.
    pub async fn remove(&self, cluster: &Cluster) -> Result<()> {
        for name in ["files", "device"] {
            let name = format!("{}-{name}", self.namespace);
            cluster.kubectl(&["delete", "pv", &name, "--wait=false"]).await?;
        }
        let remove = format!(
            "losetup --detach {} && rm -rf {}",
            self.device,
            directory(&self.namespace)
        );
        cluster.node_exec(&self.node, &["sh", "-c", &remove]).await?;
        Ok(())
    }
}

fn directory(namespace: &str) -> String {
    format!("/var/lib/tandem-{namespace}")
}

fn volume(namespace: &str, node: &str, name: &str, mode: &str, path: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": format!("{namespace}-{name}")},
        "spec": {
            "capacity": {"storage": "16Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "volumeMode": mode,
            "claimRef": {"namespace": namespace, "name": name},
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
            ]}]}},
        },
    })
}

fn claim(namespace: &str, name: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "volumeMode": mode,
            "volumeName": format!("{namespace}-{name}"),
            "resources": {"requests": {"storage": "16Mi"}},
        },
    })
}
