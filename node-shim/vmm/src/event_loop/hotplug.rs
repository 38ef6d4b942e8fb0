//! What of a running VM can be changed: vCPUs, memory, the balloon, disks and interfaces.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Instant;

use node_shim_protocol::agent::{
    self, GrantedNetwork, MAX_INTERFACES, PLUGGED_DISKS_MAX, PluggedDisk, PluggedInterface,
};
use node_shim_protocol::control::{AttachDisk, AttachNetwork, BalloonStatistics, Failure, FailureKind};
use node_shim_virtio::device::VirtioDevice;

use super::EventLoop;
use super::size::bounded;
use crate::config;
use crate::cpus::CpuError;
use crate::devices::disk::lent::{self, AttachError};
use crate::devices::{disk, network};
use crate::log;
use crate::machine::Machine;

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
    slots: BTreeMap<u8, Held>,
    /// How many devices the configuration has.
    configured: usize,
}

/// What a slot has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    name: Named,
    origin: Origin,
}

/// Where a device comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// The configuration has it.
    Configured,
    /// Whoever controls the VMM plugged it.
    Controlled,
    /// The node agent did: the UID of the volume pod that lends it.
    Lent(String),
    /// It did, an interface: its number.
    Given(u8),
}

impl Plugged {
    /// What the configuration has: these names in the slots from 1 on, with nothing to name where there is `None`.
    pub(crate) fn new(names: impl Iterator<Item = Option<Named>>) -> Self {
        let origin = Origin::Configured;
        let held = |name| Held {
            name,
            origin: origin.clone(),
        };
        let slots: BTreeMap<u8, Held> = (1..)
            .zip(names)
            .filter_map(|(slot, name)| Some((slot, held(name?))))
            .collect();
        let configured = slots.len();
        Self { slots, configured }
    }

    /// Forgets the slots that are no longer filled.
    fn follow(&mut self, is_filled: impl Fn(u8) -> bool) {
        self.slots.retain(|slot, _| is_filled(*slot));
    }

    /// Whether these are the devices that the configuration has. One that the guest was asked to give up is still there.
    fn is_as_configured(&self) -> bool {
        self.slots.len() == self.configured && self.slots.values().all(|held| held.origin == Origin::Configured)
    }

    /// The disks that volume pods have lent, by their names, of the slots that are filled.
    fn lent(&self, is_filled: impl Fn(u8) -> bool) -> Vec<PluggedDisk> {
        let filled = self.slots.iter().filter(|(slot, _)| is_filled(**slot));
        let lent = filled.filter_map(|(_, held)| match held {
            Held {
                name: Named::Disk(name),
                origin: Origin::Lent(lender),
            } => Some(PluggedDisk {
                name: name.clone(),
                lender: lender.clone(),
            }),
            Held { .. } => None,
        });
        let mut lent: Vec<_> = lent.take(PLUGGED_DISKS_MAX).collect();
        lent.sort_unstable();
        lent
    }

    /// The interfaces that the agent has given, by their names, of the slots that are filled.
    fn given(&self, is_filled: impl Fn(u8) -> bool) -> Vec<PluggedInterface> {
        let filled = self.slots.iter().filter(|(slot, _)| is_filled(**slot));
        let given = filled.filter_map(|(_, held)| match held {
            Held {
                name: Named::Interface(name),
                origin: Origin::Given(number),
            } => Some(PluggedInterface {
                name: name.clone(),
                number: *number,
            }),
            Held { .. } => None,
        });
        let mut given: Vec<_> = given.collect();
        given.sort_unstable();
        given
    }

    fn slot(&self, name: &Named) -> Option<u8> {
        self.slots
            .iter()
            .find_map(|(slot, held)| (held.name == *name).then_some(*slot))
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
    /// Changes the number of vCPUs, the amount of memory, or both: neither where one of them cannot be. Memory comes first: a guest needs some
    /// for each vCPU.
    pub(super) fn resize(&mut self, machine: &Machine, vcpus: Option<u32>, memory_bytes: Option<u64>) -> Change {
        let refuse = |error: CpuError| match error {
            CpuError::Range { .. } => invalid(error.to_string()),
            CpuError::Kvm(_) | CpuError::Registers { .. } | CpuError::Cpuid(_) | CpuError::Host { .. } => failed(error),
        };
        let plugged = memory_bytes.map(|bytes| self.pluggable(bytes)).transpose()?;
        let vcpus = vcpus.map(|wanted| machine.cpus.possible(wanted)).transpose();
        let vcpus = vcpus.map_err(refuse)?;
        // Without one there is nothing to plug.
        if let (Some(plugged), Some(mem)) = (plugged, &self.platform.handles.mem) {
            mem.set_requested(plugged);
        }
        if let Some(wanted) = vcpus {
            machine.cpus.set(wanted).map_err(refuse)?;
            self.platform.vcpus = wanted;
        }
        Ok(())
    }

    /// Plugs a vCPU again that the guest has given up although it shall have it: it was asked to, and asked to keep it after all when it could no
    /// longer stop.
    pub(super) fn keep_vcpus(&self, machine: &Machine) {
        let wanted = self.platform.vcpus;
        if machine.cpus.present() < wanted
            && let Err(error) = machine.cpus.set(wanted)
        {
            log::line(format_args!(
                "failed to plug a vCPU again that the guest gave up: {error}"
            ));
        }
    }

    /// How much is to be plugged for so much memory.
    fn pluggable(&self, bytes: u64) -> Result<u64, Failure> {
        let base = self.platform.memory_plan.size_bytes;
        let max = self.platform.memory_plan.mapped_bytes();
        let plugged = bytes.checked_sub(base).filter(|_| bytes <= max);
        plugged.ok_or_else(|| {
            invalid(format!(
                "the VM can have {base} to {max} bytes of memory, not {bytes}; change memory.sizeBytes or memory.maxSizeBytes and start \
                 the VM anew"
            ))
        })
    }

    /// Bytes of memory that the guest has.
    pub(super) fn memory_bytes(&self) -> u64 {
        let mem = self.platform.handles.mem.as_ref();
        self.platform.memory_plan.size_bytes + mem.map_or(0, |mem| mem.status().plugged_bytes)
    }

    /// Asks the guest for memory.
    pub(super) fn set_balloon(&self, bytes: u64) {
        self.platform.handles.balloon.set_target(bytes);
    }

    /// What the guest last said of its memory.
    pub(super) fn balloon_statistics(&self) -> BalloonStatistics {
        let balloon = &self.platform.handles.balloon;
        let (statistics, _) = balloon.statistics().unzip();
        let statistics = statistics.unwrap_or_default();
        BalloonStatistics {
            actual_bytes: balloon.status().actual_bytes,
            total_bytes: statistics.total,
            free_bytes: statistics.free,
            available_bytes: statistics.available,
        }
    }

    /// What the slots have by now.
    fn plugged(&mut self) -> &mut Plugged {
        let pci = &self.platform.pci;
        self.plugged.follow(|slot| pci.is_filled(slot));
        &mut self.plugged
    }

    /// Whether the VM has the disks and interfaces that its configuration has.
    pub(super) fn has_configured_devices(&mut self) -> bool {
        self.plugged().is_as_configured()
    }

    /// Names of the disks and of the interfaces that the guest has.
    pub(super) fn names(&mut self) -> (Vec<String>, Vec<String>) {
        let (mut disks, mut interfaces) = (Vec::new(), Vec::new());
        for held in self.plugged().slots.values() {
            match &held.name {
                Named::Disk(name) => disks.push(name.clone()),
                Named::Interface(name) => interfaces.push(name.clone()),
            }
        }
        disks.sort_unstable();
        interfaces.sort_unstable();
        (disks, interfaces)
    }

    /// Plugs a disk whose open file came with the request.
    pub(super) fn attach_disk(&mut self, request: AttachDisk, descriptor: Option<OwnedFd>) -> Change {
        let AttachDisk { name, read_only } = request;
        let descriptor =
            descriptor.ok_or_else(|| invalid("attach the disk's open file to the request (SCM_RIGHTS)"))?;
        let named = self.free_name(&name, Named::Disk)?;
        let disk = disk::attach(&name, File::from(descriptor), read_only, self.platform.vcpus_max);
        self.plug(named, Origin::Controlled, Box::new(disk.map_err(failed)?))
    }

    /// The disks that volume pods have lent, as far as the guest has not given them up.
    pub(super) fn lent_disks(&self) -> Vec<PluggedDisk> {
        self.plugged.lent(|slot| self.platform.pci.is_filled(slot))
    }

    /// The agent wants the guest to have a disk.
    pub(super) fn on_attach(&mut self, machine: &Machine, disk: agent::AttachDisk, descriptors: Vec<OwnedFd>) {
        let result = self.attach_lent(&disk, descriptors);
        self.answer_disk(machine, disk.name, result);
    }

    /// The agent wants the guest to give a disk up.
    pub(super) fn on_detach(&mut self, machine: &Machine, name: String) {
        let is_lent = self.lent_disks().iter().any(|disk| disk.name == name);
        let result = if is_lent {
            self.detach(&Named::Disk(name.clone()))
        } else {
            // It has given it up already.
            Ok(())
        };
        self.answer_disk(machine, name, result);
    }

    fn answer_disk(&mut self, machine: &Machine, name: String, result: Change) {
        let plugged = self.answer(machine, name, result);
        if let Some(agent) = &mut self.agent {
            agent.answer_disk(&self.poll, plugged);
        }
    }

    /// What to say of a change that the agent asked for.
    fn answer(&mut self, machine: &Machine, name: String, result: Change) -> agent::Plugged {
        if let Err(failure) = &result {
            log::line(format_args!("device `{name}`: {}", failure.message));
        }
        let size = self.size(machine);
        let plugged = agent::Plugged {
            name,
            failure: result.err().map(bounded),
            status: self.status(&size),
        };
        self.reports.tell(Instant::now(), size);
        plugged
    }

    /// The interfaces that the agent has given, as far as the guest has not given them up.
    pub(super) fn given_interfaces(&self) -> Vec<PluggedInterface> {
        self.plugged.given(|slot| self.platform.pci.is_filled(slot))
    }

    /// The agent wants the guest to have one more interface.
    pub(super) fn on_attach_interface(
        &mut self,
        machine: &Machine,
        interface: agent::AttachInterface,
        queues: Vec<OwnedFd>,
    ) {
        let result = self.attach_given(&interface, queues);
        self.answer_interface(machine, interface.grant.name, result);
    }

    /// The agent wants the guest to give an interface up.
    pub(super) fn on_detach_interface(&mut self, machine: &Machine, name: String) {
        let is_given = self.given_interfaces().iter().any(|interface| interface.name == name);
        let result = if is_given {
            self.detach(&Named::Interface(name.clone()))
        } else {
            // It has given it up already.
            Ok(())
        };
        self.answer_interface(machine, name, result);
    }

    fn answer_interface(&mut self, machine: &Machine, name: String, result: Change) {
        let plugged = self.answer(machine, name, result);
        if let Some(agent) = &mut self.agent {
            agent.answer_interface(&self.poll, plugged);
        }
    }

    /// Plugs an interface whose tap the agent has made. The tap of one that is there already has taken the other's place in the pod's network, so
    /// the agent does not ask twice.
    fn attach_given(&mut self, interface: &agent::AttachInterface, mut queues: Vec<OwnedFd>) -> Change {
        let agent::AttachInterface { number, mac, grant } = interface;
        let GrantedNetwork::Masquerade(network) = &grant.network else {
            return Err(invalid("only an interface with masquerade can be plugged"));
        };
        if usize::from(*number) >= MAX_INTERFACES || queues.is_empty() || queues.len() != usize::from(grant.queues) {
            return Err(invalid("an interface needs its number and the queues of its tap"));
        }
        if self.given_interfaces().iter().any(|given| given.number == *number) {
            return Err(Failure {
                kind: FailureKind::Refused,
                message: "another interface of the VM has this number, until the guest has given it up".to_owned(),
            });
        }
        let named = self.free_name(&grant.name, Named::Interface)?;
        let checked = config::check_network("network", network).and_then(|()| config::check_mac("mac", mac));
        let mac = checked.map_err(|error| invalid(error.to_string()))?;
        // A queue that nobody reads would swallow what the kernel puts there; closed it is none.
        queues.truncate(network::pairs_for(self.platform.vcpus_max).into());
        let net = network::attach(&grant.name, mac, &self.identity.host_name, network, queues);
        self.plug(named, Origin::Given(*number), Box::new(net.map_err(failed)?))
    }

    /// Plugs a disk that a volume pod lends. The same one again is there already.
    fn attach_lent(&mut self, disk: &agent::AttachDisk, descriptors: Vec<OwnedFd>) -> Change {
        let wanted = PluggedDisk {
            name: disk.name.clone(),
            lender: disk.lender.clone(),
        };
        let lent = self.lent_disks();
        if lent.contains(&wanted) {
            return Ok(());
        }
        if lent.len() >= PLUGGED_DISKS_MAX || !(1..=agent::POD_UID_MAX_BYTES).contains(&wanted.lender.len()) {
            return Err(invalid(
                "no more disks can be lent to this VM, or its lender has no UID",
            ));
        }
        let Ok([descriptor]) = <[_; 1]>::try_from(descriptors) else {
            return Err(invalid("a disk that is lent comes with exactly one descriptor"));
        };
        let named = self.free_name(&wanted.name, Named::Disk)?;
        let device = lent::attach(disk, File::from(descriptor), self.platform.vcpus_max);
        let device = device.map_err(|error| match error {
            AttachError::Invalid(_) => invalid(error.to_string()),
            AttachError::Disk(_) => failed(error),
        })?;
        self.plug(named, Origin::Lent(wanted.lender), Box::new(device))
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
        let net = network::attach(&name, mac, &self.identity.host_name, &network, vec![tap]);
        self.plug(named, Origin::Controlled, Box::new(net.map_err(failed)?))
    }

    /// Asks the guest to give a device up.
    pub(super) fn detach(&mut self, name: &Named) -> Change {
        let Some(slot) = self.plugged().slot(name) else {
            let (Named::Disk(what) | Named::Interface(what)) = name;
            return Err(invalid(format!(
                "the VM has no `{what}`; `status` has the names of those that it has"
            )));
        };
        self.platform.slots.unplug(slot).map_err(failed)
    }

    fn free_name(&mut self, name: &str, kind: fn(String) -> Named) -> Result<Named, Failure> {
        config::check_label("name", name).map_err(|error| invalid(error.to_string()))?;
        let named = kind(name.to_owned());
        if self.plugged().slot(&named).is_some() {
            return Err(invalid(format!(
                "the VM has a `{name}` already; use another name, or detach that one first"
            )));
        }
        Ok(named)
    }

    fn plug(&mut self, name: Named, origin: Origin, device: Box<dyn VirtioDevice>) -> Change {
        let slot = self.platform.slots.plug(device).map_err(failed)?;
        log::line(format_args!("plugged {name:?} into slot {slot}"));
        self.plugged.slots.insert(slot, Held { name, origin });
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
        let mut plugged = Plugged::new([disk, None, interface].into_iter());
        let slots: Vec<_> = plugged
            .slots
            .iter()
            .map(|(slot, held)| (*slot, held.name.clone()))
            .collect();
        assert_eq!(
            slots,
            [
                (1, Named::Disk("root".to_owned())),
                (3, Named::Interface("default".to_owned()))
            ]
        );
        assert!(plugged.is_as_configured());
        assert_eq!(plugged.slot(&Named::Disk("default".to_owned())), None);

        let data = Held {
            name: Named::Disk("data".to_owned()),
            origin: Origin::Controlled,
        };
        plugged.slots.insert(4, data.clone());
        assert!(!plugged.is_as_configured(), "one came");
        plugged.follow(|slot| slot != 4);
        assert!(plugged.is_as_configured(), "and went");
        plugged.follow(|slot| slot != 1);
        assert!(!plugged.is_as_configured(), "one is missing");
        plugged.slots.insert(1, data);
        assert!(!plugged.is_as_configured(), "another one is in its place");
    }

    #[test]
    fn the_agent_is_told_of_what_was_lent_and_is_there() {
        let disk = |name: &str| Named::Disk(name.to_owned());
        let mut plugged = Plugged::new([Some(disk("root"))].into_iter());
        let held = |name, origin| Held { name, origin };
        let lent = |uid: &str| Origin::Lent(uid.to_owned());
        for (slot, held) in [
            (2, held(disk("z"), lent("v1"))),
            (3, held(disk("c"), Origin::Controlled)),
            (4, held(disk("a"), lent("v2"))),
            (5, held(disk("gone"), lent("v3"))),
        ] {
            plugged.slots.insert(slot, held);
        }
        let told: Vec<_> = plugged
            .lent(|slot| slot != 5)
            .into_iter()
            .map(|disk| (disk.name, disk.lender))
            .collect();
        let expected = [("a", "v2"), ("z", "v1")].map(|(name, lender)| (name.to_owned(), lender.to_owned()));
        assert_eq!(told, expected);
    }

    #[test]
    fn the_agent_is_told_of_the_interfaces_that_it_gave() {
        let mut plugged = Plugged::default();
        let interface = |name: &str| Named::Interface(name.to_owned());
        for (slot, name, origin) in [
            (1, "default", Origin::Configured),
            (2, "z", Origin::Given(1)),
            (3, "a", Origin::Given(2)),
            (4, "mine", Origin::Controlled),
            (5, "gone", Origin::Given(3)),
        ] {
            let name = interface(name);
            plugged.slots.insert(slot, Held { name, origin });
        }
        let told: Vec<_> = plugged
            .given(|slot| slot != 5)
            .into_iter()
            .map(|interface| (interface.name, interface.number))
            .collect();
        assert_eq!(told, [("a".to_owned(), 2), ("z".to_owned(), 1)]);
    }
}
