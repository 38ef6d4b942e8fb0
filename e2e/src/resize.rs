//! VMs that grow and shrink while they run, and how one sees that they did.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use crds::Quantity;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use crate::cluster::{Cluster, PATIENCE, condition, has_condition};
use crate::guest::{Guest, SshKey};
use crate::manifest::debian_vm;

/// The rule that docs/guest-agent.md tells the owner of a guest without the agent to install.
const UDEV_RULE: &str = include_str!("../../guest-agent/install/90-tandem-online.rules");
/// Prints the guest's online CPUs and its memory in KiB whenever they change. Only what the shell does itself: a process each time would keep an
/// emulated CPU busy.
const PRINT_SIZES: &str = "exec 9<> <(:); last=; while :; do \
    read -r cpus </sys/devices/system/cpu/online; read -r _ kib _ </proc/meminfo; \
    [ \"$cpus $kib\" = \"$last\" ] || echo \"$cpus $kib\"; last=\"$cpus $kib\"; read -r -t 0.05 -u 9; done";
/// Memory that Linux may count differently once it has grown and shrunk.
const TOLERANCE_KIB: u64 = 16 << 10;

/// A Debian VM with the udev rule, which has 1 CPU and `mib` MiB, and can have `max_cores` and `max_mib`.
pub fn growing_vm(namespace: &str, name: &str, key: &SshKey, mib: u64, (max_cores, max_mib): (u32, u64)) -> Value {
    let user_data = json!({
        "users": [{
            "name": "tandem",
            "shell": "/bin/bash",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "ssh_authorized_keys": [key.public],
        }],
        "write_files": [{ "path": "/etc/udev/rules.d/90-tandem-online.rules", "content": UDEV_RULE }],
        "runcmd": [["udevadm", "control", "--reload"]],
    });
    let mut vm = debian_vm(namespace, name, &format!("#cloud-config\n{user_data}\n"));
    vm["spec"]["cpu"] = json!({ "cores": 1, "maxCores": max_cores });
    vm["spec"]["memory"] = json!({ "size": format!("{mib}Mi"), "maxSize": format!("{max_mib}Mi") });
    vm
}

/// Edits what a VM shall have, as `kubectl edit` would.
///
/// # Errors
/// When the API server refuses it.
pub async fn edit(cluster: &Cluster, namespace: &str, name: &str, cores: u32, mib: u64) -> Result<()> {
    let patch = json!({ "spec": { "cpu": { "cores": cores }, "memory": { "size": format!("{mib}Mi") } } });
    let vms = cluster.vms(namespace);
    vms.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// Whether the VM says that it has what its spec says, and that its guest has so much.
pub fn is_resized(vm: &Value, cores: u32, mib: u64) -> bool {
    let guest = &vm["status"]["guest"];
    let memory = guest["memory"].as_str().map(bytes);
    has_condition(vm, "Resizing", "False")
        && guest["vcpus"] == cores
        && guest["podUID"] == vm["status"]["podUID"]
        && matches!(memory, Some(Ok(bytes)) if bytes == mib << 20)
}

/// Whether the VM's resize is where this reason of `Resizing` says.
pub fn is_resizing(vm: &Value, reason: &str) -> bool {
    has_condition(vm, "Resizing", "True") && condition(vm, "Resizing").is_some_and(|found| found.1 == reason)
}

/// Memory that the KVM node has for pods, and what of it no pod has asked for, in MiB.
///
/// # Errors
/// When the API server does not say so.
pub async fn node_memory_mib(cluster: &Cluster) -> Result<(u64, u64)> {
    let node = cluster.kvm_node().await?;
    let object: Value = serde_json::from_str(&cluster.kubectl(&["get", "node", &node, "-o", "json"]).await?)?;
    let field = format!("--field-selector=spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed");
    let pods: Value = serde_json::from_str(&cluster.kubectl(&["get", "pods", "-A", &field, "-o", "json"]).await?)?;
    let bytes = |quantity: &Value| quantity.as_str().map_or(Ok(0), bytes);
    let allocatable = bytes(&object["status"]["allocatable"]["memory"])?;
    let mut asked = 0;
    for pod in pods["items"].as_array().into_iter().flatten() {
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            asked += bytes(&container["resources"]["requests"]["memory"])?;
        }
    }
    Ok((allocatable >> 20, allocatable.saturating_sub(asked) >> 20))
}

/// Bytes that a quantity says.
///
/// # Errors
/// When it is none.
pub fn bytes(quantity: &str) -> Result<u64> {
    let bytes = Quantity(quantity.to_owned()).bytes();
    bytes.map_err(|error| anyhow!("{quantity} is no quantity: {error:?}"))
}

/// What a guest says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSize {
    /// CPUs that it uses.
    pub cpus: u32,
    /// Memory that it uses.
    pub kib: u64,
}

impl GuestSize {
    /// Whether it has this much more than `before` in MiB (or less, where it is negative), and so many CPUs.
    pub fn is(self, cpus: u32, before: Self, more_mib: i64) -> bool {
        let expected = before.kib.saturating_add_signed(more_mib << 10);
        self.cpus == cpus && self.kib.abs_diff(expected) <= TOLERANCE_KIB
    }
}

/// A session in a guest that tells of its size whenever it changes.
pub struct SizeWatch {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What was told last.
    pub size: GuestSize,
}

impl SizeWatch {
    /// Begins, with what the guest has now.
    ///
    /// # Errors
    /// When the session cannot be opened.
    pub async fn start(guest: &Guest<'_>) -> Result<Self> {
        let mut process = guest
            .ssh(PRINT_SIZES)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run ssh (Debian package openssh-client)")?;
        let lines = BufReader::new(process.stdout.take().context("no standard output")?).lines();
        let mut watch = Self {
            _process: process,
            lines,
            size: GuestSize { cpus: 0, kib: 0 },
        };
        watch.next().await?;
        Ok(watch)
    }

    /// Waits until the guest has what is wanted; returns when that was heard.
    ///
    /// # Errors
    /// When it has not after [`PATIENCE`], with what it has.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(GuestSize) -> bool) -> Result<Instant> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut heard = Instant::now();
        while !wanted(self.size) {
            match tokio::time::timeout_at(deadline, self.next()).await {
                Ok(next) => next?,
                Err(_) => bail!(
                    "the guest has not {what} after {} s: it has {:?}",
                    PATIENCE.as_secs(),
                    self.size
                ),
            }
            heard = Instant::now();
        }
        Ok(heard)
    }

    async fn next(&mut self) -> Result<()> {
        let line = self
            .lines
            .next_line()
            .await?
            .context("the session in the guest ended")?;
        self.size = parse(&line).with_context(|| format!("the guest says {line:?}"))?;
        Ok(())
    }
}

/// A line of [`PRINT_SIZES`], as in `0-2,5 1013964`.
fn parse(line: &str) -> Option<GuestSize> {
    let (list, kib) = line.split_once(' ')?;
    let count = |range: &str| match range.split_once('-') {
        Some((from, to)) => to.parse::<u32>().ok()?.checked_sub(from.parse().ok()?)?.checked_add(1),
        None => range.parse::<u32>().ok().map(|_| 1),
    };
    let cpus = list.split(',').map(count).sum::<Option<u32>>()?;
    Some(GuestSize {
        cpus,
        kib: kib.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_of_its_size_is_read() {
        let table = [
            ("0 1013964", Some((1, 1_013_964))),
            ("0-3 1", Some((4, 1))),
            ("0-2,5,7-8 1", Some((6, 1))),
            ("0-2", None),
            ("3-2 1", None),
            ("all 1", None),
        ];
        for (line, expected) in table {
            let size = parse(line).map(|size| (size.cpus, size.kib));
            assert_eq!(size, expected, "{line}");
        }
    }

    #[test]
    fn a_guest_has_more_or_less_than_before() {
        let size = |mib: u64| GuestSize {
            cpus: 2,
            kib: mib << 10,
        };
        assert!(size(1500).is(2, size(476), 1024));
        assert!(size(480).is(2, size(476), 0));
        assert!(!size(1400).is(2, size(476), 1024), "some of it is missing");
        assert!(!size(1500).is(3, size(476), 1024), "a CPU is missing");
        assert!(size(476).is(2, size(1500), -1024));
    }
}
