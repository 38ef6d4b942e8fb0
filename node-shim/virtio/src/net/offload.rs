//! Which work on checksums and segments the driver leaves to the host, and takes from it (virtio 1.2, section 5.1.3).

use bitflags::bitflags;
use virtio_bindings::bindings::virtio_net as bits;

/// Frames may span several receive buffers.
pub const FEATURE_MERGEABLE: u64 = 1 << bits::VIRTIO_NET_F_MRG_RXBUF;
/// The configuration has an MTU.
pub const FEATURE_MTU: u64 = 1 << bits::VIRTIO_NET_F_MTU;
const FEATURE_GUEST_CHECKSUM: u64 = 1 << bits::VIRTIO_NET_F_GUEST_CSUM;
const FEATURE_GUEST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO4;
const FEATURE_GUEST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO6;
const FEATURE_GUEST_ECN: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ECN;

/// What the device offers. UDP fragmentation offload is left out: Linux has had no use for it since 4.14.
pub const OFFERED: u64 = FEATURE_MERGEABLE
    | FEATURE_MTU
    | FEATURE_GUEST_CHECKSUM
    | FEATURE_GUEST_TSO4
    | FEATURE_GUEST_TSO6
    | FEATURE_GUEST_ECN
    | 1 << bits::VIRTIO_NET_F_CSUM
    | 1 << bits::VIRTIO_NET_F_HOST_TSO4
    | 1 << bits::VIRTIO_NET_F_HOST_TSO6
    | 1 << bits::VIRTIO_NET_F_HOST_ECN
    | 1 << bits::VIRTIO_NET_F_MAC
    | 1 << bits::VIRTIO_NET_F_STATUS;

bitflags! {
    /// What a tap may hand to its reader undone: the argument of `TUNSETOFFLOAD` (linux/if_tun.h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Frames without checksums.
        const CHECKSUM = 0x01;
        /// TCP segments over IPv4 larger than the MTU.
        const TSO4 = 0x02;
        /// TCP segments over IPv6 larger than the MTU.
        const TSO6 = 0x04;
        /// Such segments with congestion notification.
        const TSO_ECN = 0x08;
    }
}

impl Offloads {
    /// What a driver with these features takes. Segments need the checksum feature (5.1.3.1), whatever a driver says.
    pub fn of_features(features: u64) -> Self {
        if features & FEATURE_GUEST_CHECKSUM == 0 {
            return Self::empty();
        }
        let mut offloads = Self::CHECKSUM;
        offloads.set(Self::TSO4, features & FEATURE_GUEST_TSO4 != 0);
        offloads.set(Self::TSO6, features & FEATURE_GUEST_TSO6 != 0);
        // Linux refuses ECN without segments.
        let segments = offloads.intersects(Self::TSO4 | Self::TSO6);
        offloads.set(Self::TSO_ECN, segments && features & FEATURE_GUEST_ECN != 0);
        offloads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_what_the_driver_takes() {
        let (checksum, tso4, tso6, ecn) = (
            FEATURE_GUEST_CHECKSUM,
            FEATURE_GUEST_TSO4,
            FEATURE_GUEST_TSO6,
            FEATURE_GUEST_ECN,
        );
        for (features, expected) in [
            (0, Offloads::empty()),
            (tso4 | tso6 | ecn, Offloads::empty()),
            (checksum, Offloads::CHECKSUM),
            (checksum | ecn, Offloads::CHECKSUM),
            (checksum | tso6, Offloads::CHECKSUM | Offloads::TSO6),
            (OFFERED, Offloads::all()),
        ] {
            assert_eq!(Offloads::of_features(features), expected, "{features:#x}");
        }
    }
}
