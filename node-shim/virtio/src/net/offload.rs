//! Which work on checksums and segments the driver leaves to the host, and takes from it (virtio 1.2, section 5.1.3).

use bitflags::bitflags;
use virtio_bindings::bindings::virtio_net as bits;

use super::HEADER_BYTES;
use super::guard::{Layout, Version};

/// Frames may span several receive buffers.
pub const FEATURE_MERGEABLE: u64 = 1 << bits::VIRTIO_NET_F_MRG_RXBUF;
/// The configuration has an MTU.
pub const FEATURE_MTU: u64 = 1 << bits::VIRTIO_NET_F_MTU;
const FEATURE_GUEST_CHECKSUM: u64 = 1 << bits::VIRTIO_NET_F_GUEST_CSUM;
const FEATURE_GUEST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO4;
const FEATURE_GUEST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO6;
const FEATURE_GUEST_ECN: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ECN;

const FEATURE_CHECKSUM: u64 = 1 << bits::VIRTIO_NET_F_CSUM;
const FEATURE_HOST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_HOST_TSO4;
const FEATURE_HOST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_HOST_TSO6;
const FEATURE_HOST_ECN: u64 = 1 << bits::VIRTIO_NET_F_HOST_ECN;

/// Fields of `struct virtio_net_hdr` (5.1.6): flags, kind of segments, ..., size of a segment, where a checksum starts and goes.
const FLAG_NEEDS_CHECKSUM: u8 = 1;
const SEGMENTS_NONE: u8 = 0;
const SEGMENTS_TCP4: u8 = 1;
const SEGMENTS_TCP6: u8 = 4;
const SEGMENTS_ECN: u8 = 0x80;
const PROTOCOL_TCP: u8 = 6;
/// Where TCP has its checksum, and its shortest header (RFC 9293, 3.1).
const TCP_CHECKSUM: u16 = 16;
const TCP_BYTES: usize = 20;

/// What the device offers. UDP fragmentation offload is left out: Linux has had no use for it since 4.14.
pub const OFFERED: u64 = FEATURE_MERGEABLE
    | FEATURE_MTU
    | FEATURE_GUEST_CHECKSUM
    | FEATURE_GUEST_TSO4
    | FEATURE_GUEST_TSO6
    | FEATURE_GUEST_ECN
    | FEATURE_CHECKSUM
    | FEATURE_HOST_TSO4
    | FEATURE_HOST_TSO6
    | FEATURE_HOST_ECN
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
    /// Whether frames longer than the MTU come with them.
    pub fn are_large(self) -> bool {
        self.intersects(Self::TSO4 | Self::TSO6)
    }

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

/// The header that goes to the host before a frame of `frame_bytes`, from what the driver wrote before it; `None` when the driver may not
/// ask for that. The host writes a checksum wherever it is told to: that must not be in headers which were found to be right, so
/// it begins after the IP header at the earliest.
pub fn check_header(
    header: [u8; HEADER_BYTES],
    layout: Layout,
    features: u64,
    frame_bytes: usize,
) -> Option<[u8; HEADER_BYTES]> {
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (segment_bytes, start, place) = (field(4), field(6), field(8));
    let (segments, ecn) = (header[1] & !SEGMENTS_ECN, header[1] & SEGMENTS_ECN != 0);
    let mut checked = [0; HEADER_BYTES];
    if header[0] & FLAG_NEEDS_CHECKSUM == 0 {
        // Segments have no checksums yet.
        return (header[1] == SEGMENTS_NONE).then_some(checked);
    }
    let Layout::Transport {
        version,
        protocol,
        offset,
    } = layout
    else {
        return None;
    };
    let end = usize::from(start) + usize::from(place) + 2;
    if features & FEATURE_CHECKSUM == 0 || usize::from(start) < offset || end > frame_bytes {
        return None;
    }
    checked[0] = FLAG_NEEDS_CHECKSUM;
    checked[6..10].copy_from_slice(&header[6..10]);
    if header[1] == SEGMENTS_NONE {
        return Some(checked);
    }
    let feature = match (segments, version) {
        (SEGMENTS_TCP4, Version::V4) => FEATURE_HOST_TSO4,
        (SEGMENTS_TCP6, Version::V6) => FEATURE_HOST_TSO6,
        _ => return None,
    };
    let ecn_agreed = !ecn || features & FEATURE_HOST_ECN != 0;
    let is_tcp = protocol == PROTOCOL_TCP && usize::from(start) == offset && place == TCP_CHECKSUM;
    if features & feature == 0 || !ecn_agreed || !is_tcp || segment_bytes == 0 || offset + TCP_BYTES > frame_bytes {
        return None;
    }
    checked[1] = header[1];
    // The driver's own is a hint, which the host believes: 5.1.6.2.
    let header_bytes = u16::try_from(offset + TCP_BYTES).ok()?;
    checked[2..4].copy_from_slice(&header_bytes.to_le_bytes());
    checked[4..6].copy_from_slice(&header[4..6]);
    Some(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP4: Layout = Layout::Transport {
        version: Version::V4,
        protocol: 6,
        offset: 34,
    };
    const TCP6: Layout = Layout::Transport {
        version: Version::V6,
        protocol: 6,
        offset: 54,
    };
    const UDP4: Layout = Layout::Transport {
        version: Version::V4,
        protocol: 17,
        offset: 34,
    };

    /// Flags, kind of segments, length of headers, size of a segment, start and place of the checksum, buffers.
    fn header(flags: u8, kind: u8, rest: [u16; 5]) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..2].copy_from_slice(&[flags, kind]);
        for (at, field) in rest.iter().enumerate() {
            header[2 + 2 * at..4 + 2 * at].copy_from_slice(&field.to_le_bytes());
        }
        header
    }

    #[test]
    fn only_headers_that_make_sense_reach_the_host() {
        let same = |flags, kind, rest| (header(flags, kind, rest), Some(header(flags, kind, rest)));
        let to = |from, to| (from, Some(to));
        let refused = |flags, kind, rest| (header(flags, kind, rest), None);
        let none = [0; HEADER_BYTES];
        for (what, layout, frame_bytes, (given, expected)) in [
            ("nothing to do", Layout::Opaque, 60, same(0, 0, [0; 5])),
            (
                "rubbish without meaning",
                TCP4,
                60,
                to(header(0, 0, [9, 9, 9, 9, 9]), none),
            ),
            ("checksums were checked", TCP4, 60, to(header(2, 0, [0; 5]), none)),
            ("a checksum", TCP4, 60, same(1, 0, [0, 0, 34, 16, 0])),
            ("a checksum of UDP", UDP4, 60, same(1, 0, [0, 0, 34, 6, 0])),
            ("inside of a tunnel", UDP4, 200, same(1, 0, [0, 0, 84, 16, 0])),
            (
                "headers' length lies",
                TCP4,
                60,
                to(header(1, 0, [9999, 0, 34, 16, 3]), header(1, 0, [0, 0, 34, 16, 0])),
            ),
            ("in the source address", TCP4, 60, refused(1, 0, [0, 0, 0, 26, 0])),
            ("in the IP header", TCP4, 60, refused(1, 0, [0, 0, 33, 16, 0])),
            ("after the end", TCP4, 60, refused(1, 0, [0, 0, 50, 9, 0])),
            ("at the end", TCP4, 60, same(1, 0, [0, 0, 50, 8, 0])),
            (
                "far after the end",
                TCP4,
                60,
                refused(1, 0, [0, 0, u16::MAX, u16::MAX, 0]),
            ),
            ("of what has none", Layout::Opaque, 60, refused(1, 0, [0, 0, 34, 16, 0])),
            (
                "segments",
                TCP4,
                9000,
                to(
                    header(1, 1, [9999, 1448, 34, 16, 7]),
                    header(1, 1, [54, 1448, 34, 16, 0]),
                ),
            ),
            ("segments with ECN", TCP4, 9000, same(1, 0x81, [54, 1448, 34, 16, 0])),
            ("segments of IPv6", TCP6, 9000, same(1, 4, [74, 1428, 54, 16, 0])),
            ("segments of size 0", TCP4, 9000, refused(1, 1, [54, 0, 34, 16, 0])),
            (
                "segments without checksum",
                TCP4,
                9000,
                refused(0, 1, [54, 1448, 34, 16, 0]),
            ),
            ("ECN of nothing", TCP4, 9000, refused(0, 0x80, [0; 5])),
            ("the other version's", TCP4, 9000, refused(1, 4, [54, 1448, 34, 16, 0])),
            ("segments of UDP", UDP4, 9000, refused(1, 3, [42, 1448, 34, 6, 0])),
            ("TCP segments of UDP", UDP4, 9000, refused(1, 1, [42, 1448, 34, 6, 0])),
            (
                "segments inside of a tunnel",
                TCP4,
                9000,
                refused(1, 1, [54, 1448, 84, 16, 0]),
            ),
            (
                "segments with another place",
                TCP4,
                9000,
                refused(1, 1, [54, 1448, 34, 6, 0]),
            ),
            (
                "segments shorter than TCP",
                TCP4,
                53,
                refused(1, 1, [54, 1448, 34, 16, 0]),
            ),
        ] {
            assert_eq!(check_header(given, layout, OFFERED, frame_bytes), expected, "{what}");
        }
    }

    #[test]
    fn nothing_works_that_was_not_agreed_on() {
        let checksum = header(1, 0, [0, 0, 34, 16, 0]);
        assert_eq!(check_header(checksum, TCP4, OFFERED & !FEATURE_CHECKSUM, 60), None);
        let (segments4, segments6) = (header(1, 0x81, [54, 9, 34, 16, 0]), header(1, 4, [74, 9, 54, 16, 0]));
        assert_eq!(check_header(segments4, TCP4, OFFERED & !FEATURE_HOST_TSO4, 9000), None);
        assert_eq!(check_header(segments4, TCP4, OFFERED & !FEATURE_HOST_ECN, 9000), None);
        assert_eq!(check_header(segments6, TCP6, OFFERED & !FEATURE_HOST_TSO6, 9000), None);
    }

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
