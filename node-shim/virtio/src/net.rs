//! virtio-net (virtio 1.2, section 5.1) on a tap. The guest's DHCP and ARP for its gateway are answered here, so that nothing else has to
//! run in the pod.
//!
//! ```text
//! guest --transmit queue--> transmit --writev--> tap
//!                              | DHCP, ARP for the gateway
//!                              v
//!                          responder
//!                              v
//! guest <--receive queue--- receive <--readv---- tap
//! ```

pub mod address;
pub mod frame;
pub mod link;
pub mod offload;
mod receive;
pub mod responder;
mod transmit;

use std::os::fd::{AsFd, AsRawFd};

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_net;

pub use self::address::MacAddress;
pub use self::link::{Link, Tap};
use self::offload::{FEATURE_MERGEABLE, OFFERED, Offloads};
use self::receive::Receiver;
pub use self::responder::GuestIdentity;
use self::responder::Responder;
pub use self::transmit::TransmitDrops;
use self::transmit::Transmitter;
use crate::device::{Activation, DeviceError, DeviceType, Event, HostSource, VirtioDevice, read_config_bytes};
use crate::ring::Ring;
use crate::state::{DeviceState, RestoreError, SavedDevice};

/// Bytes of `struct virtio_net_hdr`, with `num_buffers` (5.1.6), in the queues and on the tap.
pub const HEADER_BYTES: usize = 12;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Ethernet header with VLAN tag.
const ETHERNET_BYTES: usize = 18;
/// MAC address, status, queue pairs, MTU (5.1.4).
const CONFIG_BYTES: usize = 12;

/// A virtio network device.
pub struct Net {
    name: String,
    link: Box<dyn Link>,
    responder: Responder,
    active: Option<Active>,
    transmit_drops: TransmitDrops,
    receive_drops: u64,
}

/// What is saved of an interface. Frames on their way are lost, as on any network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {}

struct Active {
    receiver: Receiver,
    transmitter: Transmitter,
}

impl Net {
    /// An interface called `name` in logs.
    pub fn new(name: impl Into<String>, link: Box<dyn Link>, guest: GuestIdentity) -> Self {
        Self {
            name: name.into(),
            link,
            responder: Responder::new(guest),
            active: None,
            transmit_drops: TransmitDrops::default(),
            receive_drops: 0,
        }
    }

    /// Frames of the guest that went nowhere.
    pub fn transmit_drops(&self) -> TransmitDrops {
        self.active
            .as_ref()
            .map_or(self.transmit_drops, |active| active.transmitter.drops())
    }

    /// Frames for the guest that fit into no buffers.
    pub fn receive_drops(&self) -> u64 {
        self.receive_drops + self.active.as_ref().map_or(0, |active| active.receiver.dropped)
    }

    fn host_error(&self, what: &'static str, source: std::io::Error) -> DeviceError {
        DeviceError::Host {
            device: self.name.clone(),
            what,
            source,
        }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let guest = self.responder.guest();
        let mut config = [0; CONFIG_BYTES];
        config[..6].copy_from_slice(&guest.mac.0);
        config[6] = u8::try_from(virtio_net::VIRTIO_NET_S_LINK_UP).unwrap_or(1);
        config[8] = 1;
        config[10..].copy_from_slice(&guest.mtu.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        let receive = Ring::take(&mut activation, RECEIVE, &self.name)?;
        let transmit = Ring::take(&mut activation, TRANSMIT, &self.name)?;
        let offloads = Offloads::of_features(activation.features);
        self.link
            .configure(offloads)
            .map_err(|error| self.host_error("set the offloads of its tap", error))?;
        let large = offloads.intersects(Offloads::TSO4 | Offloads::TSO6);
        let mergeable = activation.features & FEATURE_MERGEABLE != 0;
        let frame_bytes = HEADER_BYTES + ETHERNET_BYTES + usize::from(self.responder.guest().mtu);
        self.active = Some(Active {
            receiver: Receiver::new(receive, mergeable, large, frame_bytes),
            transmitter: Transmitter::new(transmit, self.transmit_drops),
        });
        Ok(())
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![HostSource {
            fd: self.link.as_fd().as_raw_fd(),
            readable: true,
            writable: true,
        }]
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        let Self {
            name,
            link,
            responder,
            active,
            ..
        } = self;
        let Some(Active { receiver, transmitter }) = active else {
            return Ok(());
        };
        let transmit = match event {
            Event::Queue(RECEIVE) => false,
            Event::Queue(TRANSMIT) => true,
            Event::Host(0) => {
                receiver.set_readable();
                transmitter.unblock()
            }
            Event::Queue(_) | Event::Host(_) => return Ok(()),
        };
        if transmit {
            let mut replied = false;
            transmitter.pump(link.as_ref(), responder, name, |frame| {
                receiver.push(frame);
                replied = true;
            })?;
            if event == Event::Queue(TRANSMIT) && !replied {
                return Ok(());
            }
        }
        receiver.pump(link.as_ref(), name)
    }

    fn reset(&mut self) {
        self.transmit_drops = self.transmit_drops();
        self.receive_drops = self.receive_drops();
        self.active = None;
    }

    fn save(&self) -> SavedDevice {
        let active = self.active.as_ref();
        SavedDevice {
            queues: vec![
                active.map(|active| active.receiver.position()),
                active.map(|active| active.transmitter.position()),
            ],
            device: DeviceState::Net(NetState {}),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Net(NetState {}) = state else {
            return Err(RestoreError::kind(&self.name, state));
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
