//! The VM's virtio devices, from its checked configuration.

use std::io;
use std::sync::Arc;

use node_shim_virtio::block::Block;
use node_shim_virtio::console::Console;
use node_shim_virtio::device::{Memory, VirtioDevice};
use node_shim_virtio::net::Net;
use node_shim_virtio::pci::VirtioPci;
use node_shim_virtio::rng::Rng;

use crate::activator::DeviceActivator;
use crate::kvm::Vm;
use crate::mailbox::Mailbox;
use crate::pci;
use crate::poll::Poll;

pub(crate) mod disk;
pub(crate) mod network;
pub(crate) mod seed;

/// Every device, in the order of its PCI slots: the guest finds disks in the order in which the configuration has them, and the seed
/// after them.
pub(crate) fn all(
    disks: Vec<Block>,
    seed: Option<Block>,
    nets: Vec<Net>,
    console: Console,
) -> Vec<Box<dyn VirtioDevice>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in disks.into_iter().chain(seed) {
        devices.push(Box::new(disk));
    }
    for net in nets {
        devices.push(Box::new(net));
    }
    devices.push(Box::new(Rng::new()));
    devices.push(Box::new(console));
    devices
}

/// Makes PCI functions of devices, each with its vectors and its connection to the event loop.
pub(crate) fn connect(
    devices: Vec<Box<dyn VirtioDevice>>,
    memory: &Arc<Memory>,
    vm: &Arc<Vm>,
    poll: &Arc<Poll>,
    mailbox: &Arc<Mailbox>,
) -> io::Result<Vec<Arc<VirtioPci>>> {
    let mut functions = Vec::with_capacity(devices.len());
    for (index, device) in devices.into_iter().enumerate() {
        let queues = u16::try_from(device.queue_max_sizes().len()).map_err(io::Error::other)?;
        // One vector for each queue and one for the configuration.
        let interrupts = Arc::new(vm.msi_vectors(queues.saturating_add(1))?);
        let activator = Arc::new(DeviceActivator::new(
            index,
            Arc::clone(vm),
            Arc::clone(poll),
            Arc::clone(mailbox),
        ));
        let bar = u32::try_from(pci::bar_address(index)).map_err(io::Error::other)?;
        functions.push(Arc::new(VirtioPci::new(
            device,
            Arc::clone(memory),
            interrupts,
            activator,
            bar,
        )));
    }
    Ok(functions)
}
