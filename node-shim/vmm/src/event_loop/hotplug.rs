//! What of a running VM can be changed: vCPUs, memory, the balloon, disks and interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;

use node_shim_protocol::control::{AttachDisk, AttachNetwork, BalloonStatistics, Failure, FailureKind};
use node_shim_virtio::device::VirtioDevice;

use super::EventLoop;
use crate::config;
use crate::devices::{disk, network};
use crate::log;
use crate::machine::{Machine, Platform};

/// What a PCI slot has that can be named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Named {
    /// A disk.
    Disk(String),
    /// A network interface.
    Interface(String),
}

/// The disks and interfaces by their slots. A slot that the guest has given up is forgotten when somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Plugged {
    slots: BTreeMap<u8, Named>,
    /// The VM has other devices than its configuration says, or is about to.
    changed: bool,
}

impl Plugged {
    /// What the configuration has: these names in the slots from 1 on, with nothing to name where there is `None`.
    pub(crate) fn new(names: impl Iterator<Item = Option<Named>>) -> Self {
        let slots = (1..).zip(names);
        Self {
            slots: slots.filter_map(|(slot, name)| Some((slot, name?))).collect(),
            changed: false,
        }
    }

    /// Whether devices came or went since the start.
    pub(crate) const fn changed(&self) -> bool {
        self.changed
    }

    fn names(&mut self, platform: &Platform) -> BTreeSet<Named> {
        self.slots.retain(|slot, _| platform.pci.is_filled(*slot));
        self.slots.values().cloned().collect()
    }

    fn slot(&mut self, platform: &Platform, name: &Named) -> Option<u8> {
        self.slots.retain(|slot, _| platform.pci.is_filled(*slot));
        self.slots
            .iter()
            .find_map(|(slot, named)| (named == name).then_some(*slot))
    }
}

/// What to say of a change that is not made.
type Change = Result<(), Failure>;

fn failed(error: impl Error) -> Failure {
    Failure {
        kind: FailureKind::Failed,
        message: error.to_string(),
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure {
        kind: FailureKind::Invalid,
        message: message.into(),
    }
}

impl EventLoop {
    /// Changes the number of vCPUs, the amount of memory, or both. Memory comes first: a guest needs some for each vCPU.
    pub(super) fn resize(&mut self, machine: &Machine, vcpus: Option<u32>, memory_bytes: Option<u64>) -> Change {
        memory_bytes.map_or(Ok(()), |bytes| self.resize_memory(bytes))?;
        let Some(vcpus) = vcpus else {
            return Ok(());
        };
        let max = self.platform.vcpus_max;
        let Some(wanted) = u8::try_from(vcpus).ok().filter(|wanted| (1..=max).contains(wanted)) else {
            return Err(invalid(format!(
                "the VM can have 1 to {max} vCPUs, not {vcpus}; raise cpu.maxCores and start the VM anew"
            )));
        };
        machine.cpus.set(wanted).map_err(failed)?;
        self.platform.vcpus = wanted;
        Ok(())
    }

    fn resize_memory(&self, bytes: u64) -> Change {
        let base = self.platform.memory_bytes;
        let max = base + self.platform.later_memory.map_or(0, |range| range.size);
        let Some(plugged) = bytes.checked_sub(base).filter(|_| bytes <= max) else {
            return Err(invalid(format!(
                "the VM can have {base} to {max} bytes of memory, not {bytes}; change memory.sizeBytes or memory.maxSizeBytes and start \
                 the VM anew"
            )));
        };
        match &self.platform.handles.mem {
            Some(mem) => mem.set_requested(plugged).map(drop).map_err(failed),
            // Nothing to plug, and nothing is.
            None => Ok(()),
        }
    }

    /// Bytes of memory that the guest has.
    pub(super) fn memory_bytes(&self) -> u64 {
        let mem = self.platform.handles.mem.as_ref();
        self.platform.memory_bytes + mem.map_or(0, |mem| mem.status().plugged_bytes)
    }

    /// Asks the guest for memory.
    pub(super) fn set_balloon(&self, bytes: u64) -> Change {
        let target = self.platform.handles.balloon.set_target(bytes);
        target.map(drop).map_err(failed)
    }

    /// What the guest last said of its memory.
    pub(super) fn balloon_statistics(&self) -> Result<BalloonStatistics, Failure> {
        let balloon = &self.platform.handles.balloon;
        let (statistics, _) = balloon.statistics().map_err(failed)?.unzip();
        let statistics = statistics.unwrap_or_default();
        Ok(BalloonStatistics {
            actual_bytes: balloon.status().actual_bytes,
            total_bytes: statistics.total,
            free_bytes: statistics.free,
            available_bytes: statistics.available,
        })
    }

    /// Names of the disks and of the interfaces that the guest has.
    pub(super) fn names(&mut self) -> (Vec<String>, Vec<String>) {
        let (mut disks, mut interfaces) = (Vec::new(), Vec::new());
        for name in self.plugged.names(&self.platform) {
            match name {
                Named::Disk(name) => disks.push(name),
                Named::Interface(name) => interfaces.push(name),
            }
        }
        (disks, interfaces)
    }

    /// Plugs a disk whose open file came with the request.
    pub(super) fn attach_disk(&mut self, request: AttachDisk, descriptor: Option<OwnedFd>) -> Change {
        let AttachDisk { name, read_only } = request;
        let descriptor =
            descriptor.ok_or_else(|| invalid("attach the disk's open file to the request (SCM_RIGHTS)"))?;
        let named = self.free_name(&name, Named::Disk)?;
        let disk = disk::attach(&name, File::from(descriptor), read_only, self.platform.vcpus_max);
        self.plug(named, Box::new(disk.map_err(failed)?))
    }

    /// Plugs an interface whose tap came with the request.
    pub(super) fn attach_network(&mut self, request: AttachNetwork, tap: Option<OwnedFd>) -> Change {
        let AttachNetwork { name, mac, network } = request;
        let tap = tap.ok_or_else(|| {
            invalid("attach the interface's tap, opened with IFF_VNET_HDR, to the request (SCM_RIGHTS)")
        })?;
        let named = self.free_name(&name, Named::Interface)?;
        let checked = config::check_network("network", &network).and_then(|()| config::check_mac("mac", &mac));
        let mac = checked.map_err(|error| invalid(error.to_string()))?;
        let net = network::attach(&name, mac, &self.identity.host_name, &network, tap);
        self.plug(named, Box::new(net.map_err(failed)?))
    }

    /// Asks the guest to give a device up.
    pub(super) fn detach(&mut self, name: &Named) -> Change {
        let Some(slot) = self.plugged.slot(&self.platform, name) else {
            let (Named::Disk(what) | Named::Interface(what)) = name;
            return Err(invalid(format!(
                "the VM has no `{what}`; `status` has the names of those that it has"
            )));
        };
        self.plugged.changed = true;
        self.platform.slots.unplug(slot).map_err(failed)
    }

    fn free_name(&mut self, name: &str, kind: fn(String) -> Named) -> Result<Named, Failure> {
        if !config::is_label(name) {
            return Err(invalid(
                "name: write 1 to 63 lower-case letters, digits and dashes, with a letter or digit at both ends",
            ));
        }
        let named = kind(name.to_owned());
        if self.plugged.slot(&self.platform, &named).is_some() {
            return Err(invalid(format!(
                "the VM has a `{name}` already; use another name, or detach that one first"
            )));
        }
        Ok(named)
    }

    fn plug(&mut self, named: Named, device: Box<dyn VirtioDevice>) -> Change {
        let slot = self.platform.slots.plug(device).map_err(failed)?;
        log::line(format_args!("plugged {named:?} into slot {slot}"));
        self.plugged.changed = true;
        self.plugged.slots.insert(slot, named);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_devices_are_known_by_their_slots() {
        let disk = Some(Named::Disk("root".to_owned()));
        let interface = Some(Named::Interface("default".to_owned()));
        let plugged = Plugged::new([disk, None, interface].into_iter());
        let slots: Vec<_> = plugged.slots.iter().map(|(slot, name)| (*slot, name.clone())).collect();
        assert_eq!(
            slots,
            [
                (1, Named::Disk("root".to_owned())),
                (3, Named::Interface("default".to_owned()))
            ]
        );
        assert!(!plugged.changed());
    }
}
