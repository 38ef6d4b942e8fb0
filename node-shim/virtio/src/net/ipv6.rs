//! IPv6 (RFC 8200) as far as the responder needs it: a reader that checks every length and follows extension headers, and writers.

use std::net::Ipv6Addr;

use super::frame::internet_checksum;

/// `EtherType` of IPv6.
pub const TYPE_IPV6: u16 = 0x86dd;
/// Bytes of the fixed header (RFC 8200, 3).
pub const IPV6_BYTES: usize = 40;
/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// Protocol number of `ICMPv6` (RFC 4443).
pub const PROTOCOL_ICMPV6: u8 = 58;
/// All nodes on the link (RFC 4291, 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;
/// Most extension headers that are followed: honest packets have one or two.
const MAX_EXTENSIONS: usize = 8;
const UDP_BYTES: usize = 8;

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// From whom.
    pub source: Ipv6Addr,
    /// To whom.
    pub destination: Ipv6Addr,
    /// Routers that it may still pass; 255 says that it has passed none.
    pub hop_limit: u8,
    /// What follows the extension headers.
    pub upper: Upper<'a>,
    /// It is a piece of a packet, or says so.
    pub fragment: bool,
}

/// What follows the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper<'a> {
    /// A header of this protocol.
    Header {
        /// IANA's number.
        protocol: u8,
        /// Where it begins, from the start of the IPv6 header.
        offset: usize,
        /// From there on, as far as it is there: the caller may have cut the frame.
        payload: &'a [u8],
    },
    /// The middle of a packet whose headers were in another fragment.
    Piece,
}

impl<'a> Packet<'a> {
    /// Reads the payload of a frame. `None` when it is no IPv6, or its extension headers do not end in what is there: a first fragment
    /// has all of them (RFC 7112).
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let header: &[u8; IPV6_BYTES] = packet.first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let packet = packet.get(..packet.len().min(IPV6_BYTES + length))?;
        let (upper, fragment) = follow(packet, header[6])?;
        Some(Self {
            source: address(&header[8..24])?,
            destination: address(&header[24..40])?,
            hop_limit: header[7],
            upper,
            fragment,
        })
    }
}

/// Follows extension headers (RFC 8200, 4) from the one after the fixed header.
fn follow(packet: &[u8], first: u8) -> Option<(Upper<'_>, bool)> {
    let (mut next, mut offset, mut fragment) = (first, IPV6_BYTES, false);
    for _ in 0..=MAX_EXTENSIONS {
        let bytes = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => {
                8 * (usize::from(*packet.get(offset + 1)?) + 1)
            }
            // In words, less two (RFC 4302, 2.2).
            AUTHENTICATION => 4 * (usize::from(*packet.get(offset + 1)?) + 2),
            FRAGMENT => {
                let header: &[u8; 8] = packet.get(offset..)?.first_chunk()?;
                if u16::from_be_bytes([header[2], header[3]]) >> 3 != 0 {
                    return Some((Upper::Piece, true));
                }
                fragment = true;
                8
            }
            protocol => {
                let payload = packet.get(offset..)?;
                let upper = Upper::Header {
                    protocol,
                    offset,
                    payload,
                };
                return Some((upper, fragment));
            }
        };
        next = *packet.get(offset)?;
        offset += bytes;
    }
    None
}

/// An address of 16 bytes.
pub fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp6<'a> {
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
    /// The data, as far as it is there.
    pub payload: &'a [u8],
}

impl<'a> Udp6<'a> {
    /// Reads what follows the IPv6 headers. The checksum is not looked at: see [`super::frame::Udp::parse`].
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (udp, payload) = datagram.split_first_chunk::<UDP_BYTES>()?;
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]])).checked_sub(UDP_BYTES)?;
        Some(Self {
            source_port: u16::from_be_bytes([udp[0], udp[1]]),
            destination_port: u16::from_be_bytes([udp[2], udp[3]]),
            payload: payload.get(..length.min(payload.len()))?,
        })
    }

    /// Writes the datagram, with room for its checksum, which [`write_packet`] fills in. `None` when it is too long.
    pub fn write(&self) -> Option<Vec<u8>> {
        let length = u16::try_from(UDP_BYTES + self.payload.len()).ok()?;
        let mut datagram = Vec::with_capacity(usize::from(length));
        for field in [self.source_port, self.destination_port, length, 0] {
            datagram.extend_from_slice(&field.to_be_bytes());
        }
        datagram.extend_from_slice(self.payload);
        Some(datagram)
    }
}

/// Writes a packet with a hop limit of 255, whose payload has a checksum at `checksum_at` that is zero. `None` when it is too long.
pub fn write_packet(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: u8,
    mut payload: Vec<u8>,
    checksum_at: usize,
) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let addresses = [source.octets(), destination.octets()].concat();
    // The pseudo header (RFC 8200, 8.1): addresses, length, protocol.
    let pseudo = addresses
        .chunks_exact(2)
        .fold(u32::from(length) + u32::from(protocol), |sum, pair| {
            sum + u32::from(u16::from_be_bytes([pair[0], pair[1]]))
        });
    let checksum = match internet_checksum(pseudo, &payload) {
        0 => 0xffff,
        checksum => checksum,
    };
    payload
        .get_mut(checksum_at..checksum_at + 2)?
        .copy_from_slice(&checksum.to_be_bytes());
    let mut packet = Vec::with_capacity(IPV6_BYTES + payload.len());
    packet.extend_from_slice(&[0x60, 0, 0, 0]);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[protocol, 255]);
    packet.extend_from_slice(&addresses);
    packet.extend_from_slice(&payload);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);

    /// A packet whose first next-header is `first`.
    fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        packet.extend([first, 64]);
        packet.extend(A.octets());
        packet.extend(B.octets());
        packet.extend(rest);
        packet
    }

    #[test]
    fn extension_headers_are_followed_to_their_end() {
        let udp = [1, 2, 3, 4, 0, 8, 0, 0];
        let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let fragment = |next: u8, offset: u16| {
            let [high, low] = offset.to_be_bytes();
            [next, 0, high, low, 0, 0, 0, 7]
        };
        let header = |protocol, offset| Some((protocol, offset));
        // What follows the fixed header, what is found (protocol and offset; none for a piece), and whether it is a fragment.
        for (what, first, rest, expected) in [
            ("plain", 17, udp.to_vec(), Some((header(17, 40), false))),
            (
                "hop by hop",
                0,
                [options(17), udp].concat(),
                Some((header(17, 48), false)),
            ),
            (
                "two options",
                0,
                [options(60), options(58), udp].concat(),
                Some((header(58, 56), false)),
            ),
            (
                "authentication",
                51,
                [[17, 0, 0, 0, 0, 0, 0, 1], udp].concat(),
                Some((header(17, 48), false)),
            ),
            (
                "first",
                44,
                [fragment(17, 1), udp].concat(),
                Some((header(17, 48), true)),
            ),
            (
                "atomic",
                44,
                [fragment(17, 0), udp].concat(),
                Some((header(17, 48), true)),
            ),
            ("later", 44, [fragment(17, 8), udp].concat(), Some((None, true))),
            ("nothing follows", 59, Vec::new(), Some((header(59, 40), false))),
            ("encrypted", 50, vec![9; 30], Some((header(50, 40), false))),
            ("cut in the options", 0, options(17)[..1].to_vec(), None),
            ("options beyond the end", 0, vec![17, 200, 0, 0, 0, 0, 0, 0], None),
            ("cut fragment", 44, fragment(17, 0)[..7].to_vec(), None),
            ("too many", 0, options(0).repeat(12), None),
        ] {
            let packet = packet(first, &rest);
            let found = Packet::parse(&packet).map(|packet| {
                let upper = match packet.upper {
                    Upper::Header { protocol, offset, .. } => Some((protocol, offset)),
                    Upper::Piece => None,
                };
                (upper, packet.fragment)
            });
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn a_datagram_survives_and_every_cut_is_harmless() {
        let datagram = Udp6 {
            source_port: 547,
            destination_port: 546,
            payload: b"abc",
        };
        let packet = write_packet(A, B, PROTOCOL_UDP, datagram.write().unwrap(), 6).unwrap();
        let read = Packet::parse(&packet).unwrap();
        assert_eq!((read.source, read.destination, read.hop_limit), (A, B, 255));
        let Upper::Header { payload, .. } = read.upper else {
            panic!()
        };
        assert_eq!(Udp6::parse(payload), Some(datagram));
        // Pseudo header and datagram sum to all ones.
        let pseudo = [&packet[8..40], &[0, 11, 0, 17], &packet[40..]].concat();
        assert_eq!(internet_checksum(0, &pseudo), 0);
        for length in 0..40 {
            assert_eq!(Packet::parse(&packet[..length]), None, "{length} bytes");
        }
        let mut ipv4 = packet.clone();
        ipv4[0] = 0x45;
        assert_eq!(Packet::parse(&ipv4), None);
    }
}
