//! Requests and responses of virtio-mem (virtio 1.2, 5.15.6).

/// Bytes of `struct virtio_mem_req`: type and padding, address, number of blocks and padding.
pub(super) const REQUEST_BYTES: usize = 24;
/// Bytes of `struct virtio_mem_resp`: type and padding, state.
pub(super) const RESPONSE_BYTES: usize = 10;

pub(super) const STATE_PLUGGED: u16 = 0;
pub(super) const STATE_UNPLUGGED: u16 = 1;
pub(super) const STATE_MIXED: u16 = 2;

/// What a driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plug,
    Unplug,
    UnplugAll,
    State,
}

/// A request, of which nothing is checked but its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) address: u64,
    pub(super) count: u16,
}

impl Request {
    /// `None` for a type that there is not.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let [t0, t1, _, _, _, _, _, _, address @ .., c0, c1, _, _, _, _, _, _] = *bytes;
        let kind = match u16::from_le_bytes([t0, t1]) {
            0 => Kind::Plug,
            1 => Kind::Unplug,
            2 => Kind::UnplugAll,
            3 => Kind::State,
            _ => return None,
        };
        Some(Self {
            kind,
            address: u64::from_le_bytes(address),
            count: u16::from_le_bytes([c0, c1]),
        })
    }
}

/// What the device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Plugged.
    Done,
    /// These blocks are unplugged as soon as they are discarded.
    Discard {
        /// First block.
        first: u64,
        /// Number of blocks.
        count: u64,
    },
    /// The state of blocks.
    State(u16),
    /// Not now: more is not wanted.
    Refused,
    /// The request makes no sense.
    Error,
}

impl Reply {
    /// As the driver reads it.
    pub(super) fn bytes(self) -> [u8; RESPONSE_BYTES] {
        let (kind, state): (u16, u16) = match self {
            Self::Done | Self::Discard { .. } => (0, 0),
            Self::State(state) => (0, state),
            Self::Refused => (1, 0),
            Self::Error => (3, 0),
        };
        let mut bytes = [0; RESPONSE_BYTES];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        bytes
    }
}
