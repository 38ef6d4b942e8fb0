//! Packet headers (virtio 1.2, 5.10.6).
//!
//! Not by the crate virtio-vsock: it reads packets from virtio-queue's own chains, whose walk takes a broken chain for a short one (see
//! [`crate::chain`]).

/// Bytes of `struct virtio_vsock_hdr`.
pub(super) const HEADER_BYTES: usize = 44;
/// The host's context id (5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(super) const TYPE_STREAM: u16 = 1;
/// Most bytes of data in one packet, as Linux has it.
pub(super) const DATA_MAX_BYTES: u32 = 64 * 1024;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: who says so takes no more data.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: who says so sends no more data.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Operation {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Operation {
    fn parse(value: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|operation| *operation as u16 == value)
    }
}

/// The two ports that name a connection: context ids are always the host's and the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    /// The host's.
    pub(super) host: u32,
    /// The guest's.
    pub(super) guest: u32,
}

/// How much the sender of a packet has received and can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// Bytes of its buffer.
    pub(super) allocated: u32,
    /// Bytes that have left its buffer since the connection's start, modulo 2^32.
    pub(super) forwarded: u32,
}

/// A header from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) ports: Ports,
    pub(super) length: u32,
    pub(super) kind: u16,
    /// `None` where there is no such operation.
    pub(super) operation: Option<Operation>,
    pub(super) flags: u32,
    pub(super) credit: Credit,
}

impl Received {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            source_cid: u64_at(0),
            destination_cid: u64_at(8),
            ports: Ports {
                guest: u32_at(16),
                host: u32_at(20),
            },
            length: u32_at(24),
            kind: u16_at(28),
            operation: Operation::parse(u16_at(30)),
            flags: u32_at(32),
            credit: Credit {
                allocated: u32_at(36),
                forwarded: u32_at(40),
            },
        }
    }
}

/// A header for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) ports: Ports,
    pub(super) operation: Operation,
    pub(super) length: u32,
    pub(super) flags: u32,
    pub(super) credit: Credit,
}

impl Sent {
    /// A packet without data.
    pub(super) const fn control(ports: Ports, operation: Operation, flags: u32, credit: Credit) -> Self {
        Self {
            ports,
            operation,
            length: 0,
            flags,
            credit,
        }
    }

    /// Tells the guest that there is no such connection, or no longer.
    pub(super) const fn reset(ports: Ports) -> Self {
        let credit = Credit {
            allocated: 0,
            forwarded: 0,
        };
        Self::control(ports, Operation::Reset, 0, credit)
    }

    pub(super) fn bytes(&self, guest_cid: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&HOST_CID.to_le_bytes());
        bytes[8..16].copy_from_slice(&guest_cid.to_le_bytes());
        bytes[28..30].copy_from_slice(&TYPE_STREAM.to_le_bytes());
        bytes[30..32].copy_from_slice(&(self.operation as u16).to_le_bytes());
        for (at, value) in [
            (16, self.ports.host),
            (20, self.ports.guest),
            (24, self.length),
            (32, self.flags),
            (36, self.credit.allocated),
            (40, self.credit.forwarded),
        ] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}
