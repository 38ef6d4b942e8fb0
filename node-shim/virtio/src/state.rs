//! State that is saved and restored: of a snapshot, or of a migration. Plain data with serde; what contains it is versioned by whoever
//! writes it (postcard is the wire format, so fields are told apart by their order).
//!
//! ```text
//! save:     vCPUs stopped -> VirtioPci::pause -> VirtioPci::save -> (resume, or the end)
//! restore:  a new VirtioPci of the same configuration, guest memory filled -> VirtioPci::restore -> resume -> vCPUs run
//! ```
//!
//! A device saves what its driver could notice if it were gone, and nothing that the transport's registers or the configuration say.
//! Where a queue stands is the same for all devices: [`QueuePosition`].

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::balloon::BalloonState;
use crate::block::BlockState;
use crate::console::ConsoleState;
use crate::device::DeviceError;
use crate::mem::MemState;
use crate::net::NetState;
use crate::rng::RngState;
use crate::vsock::VsockState;

/// Where a live queue stands. Its addresses and size are in the transport's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePosition {
    /// Index in the available ring of the next chain that the device takes.
    pub next_available: u16,
    /// Index in the used ring of the next chain that the device returns.
    pub next_used: u16,
}

/// What [`crate::device::VirtioDevice::save`] gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// One for each queue; `None` where it is not live. All are `None` while the device is not active.
    pub queues: Vec<Option<QueuePosition>>,
    /// The rest.
    pub device: DeviceState,
}

/// What is special about one device. Closed: a new device adds a variant at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// virtio-blk.
    Block(BlockState),
    /// virtio-net.
    Net(NetState),
    /// virtio-rng.
    Rng(RngState),
    /// virtio-console.
    Console(ConsoleState),
    /// virtio-balloon.
    Balloon(BalloonState),
    /// virtio-mem.
    Mem(MemState),
    /// virtio-vsock.
    Vsock(VsockState),
}

impl DeviceState {
    /// For messages.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Net(_) => "network",
            Self::Rng(_) => "entropy",
            Self::Console(_) => "console",
            Self::Balloon(_) => "balloon",
            Self::Mem(_) => "memory",
            Self::Vsock(_) => "socket",
        }
    }
}

/// Why a state cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another kind of device is in this place.
    #[error(
        "{device}: the saved state in its place is of a {found} device; restore with the devices that the VM was saved with"
    )]
    Kind {
        /// The device that is here.
        device: String,
        /// The saved one.
        found: &'static str,
    },
    /// Something that the guest knows is not the same here.
    #[error(
        "{device}: its {what} was {saved} when it was saved and is {here} here; restore with the configuration that it was saved with"
    )]
    Differs {
        /// The device.
        device: String,
        /// What differs.
        what: &'static str,
        /// As saved.
        saved: String,
        /// As it is.
        here: String,
    },
    /// The state is none that the device can be in.
    #[error("{device}: its saved state is damaged: {what}; use another snapshot")]
    Invalid {
        /// The device.
        device: String,
        /// What is wrong.
        what: String,
    },
    /// The device cannot be activated.
    #[error("failed to restore {device}: {source}")]
    Activate {
        /// The device.
        device: String,
        /// Why.
        source: DeviceError,
    },
}

impl RestoreError {
    /// For a device that found another one's state.
    pub fn kind(device: &str, found: &DeviceState) -> Self {
        Self::Kind {
            device: device.to_owned(),
            found: found.kind(),
        }
    }

    /// For a device that is not what it was.
    pub fn differs(device: &str, what: &'static str, saved: &dyn Display, here: &dyn Display) -> Self {
        Self::Differs {
            device: device.to_owned(),
            what,
            saved: saved.to_string(),
            here: here.to_string(),
        }
    }

    /// For a state that cannot be.
    pub fn invalid(device: &str, what: impl Into<String>) -> Self {
        Self::Invalid {
            device: device.to_owned(),
            what: what.into(),
        }
    }
}
