//! Ethernet, ARP, IPv4 and UDP as far as the responder needs them: readers that check every length, and writers.

use std::net::Ipv4Addr;

use super::address::MacAddress;

/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of an ARP packet for IPv4 over Ethernet (RFC 826).
pub const ARP_BYTES: usize = 28;
/// `EtherType` of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// `EtherType` of ARP.
pub const TYPE_ARP: u16 = 0x0806;
/// ARP operation: request.
pub const ARP_REQUEST: u16 = 1;
/// ARP operation: reply.
pub const ARP_REPLY: u16 = 2;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const PROTOCOL_UDP: u8 = 17;
/// Hardware type Ethernet, protocol IPv4, their address lengths.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// An Ethernet frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet<'a> {
    /// To whom.
    pub destination: MacAddress,
    /// From whom.
    pub source: MacAddress,
    /// What of.
    pub kind: u16,
    /// The rest.
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Reads a frame.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (destination, rest) = frame.split_first_chunk::<6>()?;
        let (source, rest) = rest.split_first_chunk::<6>()?;
        let (kind, payload) = rest.split_first_chunk::<2>()?;
        Some(Self {
            destination: MacAddress(*destination),
            source: MacAddress(*source),
            kind: u16::from_be_bytes(*kind),
            payload,
        })
    }

    /// Writes a frame.
    pub fn write(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETHERNET_BYTES + self.payload.len());
        frame.extend_from_slice(&self.destination.0);
        frame.extend_from_slice(&self.source.0);
        frame.extend_from_slice(&self.kind.to_be_bytes());
        frame.extend_from_slice(self.payload);
        frame
    }
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// [`ARP_REQUEST`] or [`ARP_REPLY`].
    pub operation: u16,
    /// Who says so.
    pub sender: MacAddress,
    /// Which address it says it has.
    pub sender_address: Ipv4Addr,
    /// Who is meant.
    pub target: MacAddress,
    /// Which address is meant.
    pub target_address: Ipv4Addr,
}

impl Arp {
    /// Reads the payload of a frame; padding after it is ignored.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let rest = payload.strip_prefix(&ARP_ETHERNET_IPV4)?;
        let (operation, rest) = rest.split_first_chunk::<2>()?;
        let (sender, rest) = rest.split_first_chunk::<6>()?;
        let (sender_address, rest) = rest.split_first_chunk::<4>()?;
        let (target, rest) = rest.split_first_chunk::<6>()?;
        let (target_address, _) = rest.split_first_chunk::<4>()?;
        Some(Self {
            operation: u16::from_be_bytes(*operation),
            sender: MacAddress(*sender),
            sender_address: Ipv4Addr::from(*sender_address),
            target: MacAddress(*target),
            target_address: Ipv4Addr::from(*target_address),
        })
    }

    /// Writes the payload of a frame.
    pub fn write(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(ARP_BYTES);
        payload.extend_from_slice(&ARP_ETHERNET_IPV4);
        payload.extend_from_slice(&self.operation.to_be_bytes());
        payload.extend_from_slice(&self.sender.0);
        payload.extend_from_slice(&self.sender_address.octets());
        payload.extend_from_slice(&self.target.0);
        payload.extend_from_slice(&self.target_address.octets());
        payload
    }
}

/// A UDP datagram over IPv4, not a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp<'a> {
    /// From which address.
    pub source: Ipv4Addr,
    /// To which address.
    pub destination: Ipv4Addr,
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
    /// The data, as far as it is there: the caller may have cut the frame.
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Reads the payload of a frame. Checksums are not looked at: the guest's driver may have left them to the host, and nothing
    /// between it and us damages anything.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let header: &[u8; IPV4_BYTES] = packet.first_chunk()?;
        let header_bytes = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // More fragments, or an offset.
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        if header[0] >> 4 != 4 || header_bytes < IPV4_BYTES || fragment != 0 || header[9] != PROTOCOL_UDP {
            return None;
        }
        let datagram = packet.get(header_bytes..total.min(packet.len()))?;
        let (udp, payload) = datagram.split_first_chunk::<UDP_BYTES>()?;
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]])).checked_sub(UDP_BYTES)?;
        Some(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]),
            source_port: u16::from_be_bytes([udp[0], udp[1]]),
            destination_port: u16::from_be_bytes([udp[2], udp[3]]),
            payload: payload.get(..length.min(payload.len()))?,
        })
    }

    /// Writes the payload of a frame, with its checksums. `None` when it would be longer than a packet can be.
    pub fn write(&self) -> Option<Vec<u8>> {
        let length = u16::try_from(UDP_BYTES + self.payload.len()).ok()?;
        let total = length.checked_add(20)?;
        let mut packet = Vec::with_capacity(usize::from(total));
        // Version 4 and 5 words; do not fragment; a hop limit of 64.
        packet.extend_from_slice(&[0x45, 0]);
        packet.extend_from_slice(&total.to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0x40, 0, 64, PROTOCOL_UDP, 0, 0]);
        packet.extend_from_slice(&self.source.octets());
        packet.extend_from_slice(&self.destination.octets());
        let checksum = internet_checksum(0, &packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend_from_slice(&self.source_port.to_be_bytes());
        packet.extend_from_slice(&self.destination_port.to_be_bytes());
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(self.payload);
        // The pseudo header's addresses are the last 8 bytes of the IPv4 header (RFC 768).
        let pseudo = u32::from(PROTOCOL_UDP) + u32::from(length);
        let checksum = match internet_checksum(pseudo, &packet[IPV4_BYTES - 8..]) {
            0 => 0xffff,
            checksum => checksum,
        };
        packet[IPV4_BYTES + 6..IPV4_BYTES + 8].copy_from_slice(&checksum.to_be_bytes());
        Some(packet)
    }
}

/// The ones' complement of the ones' complement sum (RFC 1071) of at most 64 KiB.
pub fn internet_checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_rfc_1071s_example() {
        assert_eq!(
            internet_checksum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }

    #[test]
    fn a_datagram_survives_and_every_cut_is_harmless() {
        let udp = Udp {
            source: Ipv4Addr::new(10, 0, 2, 1),
            destination: Ipv4Addr::new(10, 0, 2, 2),
            source_port: 67,
            destination_port: 68,
            payload: b"abc",
        };
        let packet = udp.write().unwrap();
        assert_eq!(Udp::parse(&packet), Some(udp));
        assert_eq!(internet_checksum(0, &packet[..20]), 0);
        assert_eq!(internet_checksum(17 + 11, &packet[12..]), 0);
        for length in 0..28 {
            assert_eq!(Udp::parse(&packet[..length]), None, "{length} bytes");
        }
        for (at, value) in [(0, 0x55), (0, 0x44), (0, 0x4f), (6, 0x20), (7, 1), (9, 6), (25, 7)] {
            let mut broken = packet.clone();
            broken[at] = value;
            assert_eq!(Udp::parse(&broken), None, "byte {at} is {value:#x}");
        }
    }

    #[test]
    fn arp_survives_and_foreign_kinds_are_refused() {
        let arp = Arp {
            operation: ARP_REQUEST,
            sender: MacAddress([2, 0, 0, 0, 0, 1]),
            sender_address: Ipv4Addr::new(10, 0, 2, 2),
            target: MacAddress([0; 6]),
            target_address: Ipv4Addr::new(10, 0, 2, 1),
        };
        let payload = arp.write();
        assert_eq!(payload.len(), ARP_BYTES);
        assert_eq!(Arp::parse(&payload), Some(arp));
        assert_eq!(Arp::parse(&payload[..27]), None);
        for at in 0..6 {
            let mut foreign = payload.clone();
            foreign[at] ^= 0x10;
            assert_eq!(Arp::parse(&foreign), None, "byte {at}");
        }
    }
}
