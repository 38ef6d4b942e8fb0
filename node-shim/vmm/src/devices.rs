//! The VM's virtio devices, from its checked configuration.

use std::io;
use std::sync::Arc;

use node_shim_virtio::balloon::{Balloon, BalloonHandle};
use node_shim_virtio::block::Block;
use node_shim_virtio::console::Console;
use node_shim_virtio::device::{Memory, VirtioDevice};
use node_shim_virtio::mem::{Mem, MemHandle, Region};
use node_shim_virtio::net::Net;
use node_shim_virtio::pci::VirtioPci;
use node_shim_virtio::rng::Rng;
use node_shim_virtio::vsock::Vsock;

use crate::activator::DeviceActivator;
use crate::config::CheckedConfig;
use crate::event_loop::hotplug::Named;
use crate::kvm::Vm;
use crate::mailbox::Mailbox;
use crate::memory::Range;
use crate::pci;
use crate::poll::Poll;

pub(crate) mod disk;
pub(crate) mod network;
pub(crate) mod seed;
pub(crate) mod vsock;

/// Devices whose handles the rest of the VMM has.
pub(crate) struct Handles {
    /// Takes memory from the guest.
    pub(crate) balloon: BalloonHandle,
    /// Gives it more, where the configuration has room for that.
    pub(crate) mem: Option<MemHandle>,
}

/// What the user asked for, in the order of PCI slots: the guest finds disks in the order in which the configuration has them, and the seed
/// after them.
pub(crate) fn configured(disks: Vec<Block>, seed: Option<Block>, nets: Vec<Net>) -> Vec<Box<dyn VirtioDevice>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in disks.into_iter().chain(seed) {
        devices.push(Box::new(disk));
    }
    for net in nets {
        devices.push(Box::new(net));
    }
    devices
}

/// The names of what [`configured`] has, in its order.
pub(crate) fn named(config: &CheckedConfig) -> Vec<Option<Named>> {
    let disks = config.disks.iter().map(|disk| Some(Named::Disk(disk.name.clone())));
    let seed = config.cloud_init.iter().map(|_| None);
    let interfaces = config.interfaces.iter();
    let interfaces = interfaces.map(|interface| Some(Named::Interface(interface.name.clone())));
    disks.chain(seed).chain(interfaces).collect()
}

/// Adds what every machine has, and what depends on its memory.
pub(crate) fn add_common(
    devices: &mut Vec<Box<dyn VirtioDevice>>,
    memory: &Arc<Memory>,
    later: Option<Range>,
    console: Console,
    vsock: Option<Vsock>,
) -> io::Result<Handles> {
    devices.push(Box::new(Rng::new()));
    devices.push(Box::new(console));
    if let Some(vsock) = vsock {
        devices.push(Box::new(vsock));
    }
    let (balloon, balloon_handle) = Balloon::new(memory)?;
    devices.push(Box::new(balloon));
    let mut mem_handle = None;
    if let Some(Range { start, size }) = later {
        let (mem, handle) = Mem::new(Region { start, bytes: size }, Arc::clone(memory))?;
        devices.push(Box::new(mem));
        mem_handle = Some(handle);
    }
    Ok(Handles {
        balloon: balloon_handle,
        mem: mem_handle,
    })
}

/// Makes PCI functions of devices, each with its vectors and its connection to the event loop.
#[derive(Clone)]
pub(crate) struct Connector {
    /// Guest memory.
    pub(crate) memory: Arc<Memory>,
    /// For vectors and doorbells.
    pub(crate) vm: Arc<Vm>,
    /// Where the devices' events go.
    pub(crate) poll: Arc<Poll>,
    /// For the news that there is a driver.
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Connector {
    /// The function with this index.
    pub(crate) fn connect(&self, index: usize, device: Box<dyn VirtioDevice>) -> io::Result<Arc<VirtioPci>> {
        let queues = u16::try_from(device.queue_max_sizes().len()).map_err(io::Error::other)?;
        // One vector for each queue and one for the configuration.
        let interrupts = Arc::new(self.vm.msi_vectors(queues.saturating_add(1))?);
        let activator = Arc::new(DeviceActivator::new(
            index,
            Arc::clone(&self.vm),
            Arc::clone(&self.poll),
            Arc::clone(&self.mailbox),
        ));
        let bar = u32::try_from(pci::bar_address(index)).map_err(io::Error::other)?;
        let memory = Arc::clone(&self.memory);
        Ok(Arc::new(VirtioPci::new(device, memory, interrupts, activator, bar)))
    }
}
