//! Ethernet frames and IPv4 packets, as little of them as the tests need.

use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

const ETHERNET_HEADER_BYTES: usize = 14;
const IP_HEADER_BYTES: usize = 20;

/// An IPv4 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) protocol: u8,
    pub(super) payload: Vec<u8>,
}

/// An IPv4 packet in its frame.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) destination_mac: [u8; 6],
    pub(super) source_mac: [u8; 6],
    pub(super) datagram: Datagram,
}

impl Seen {
    /// The packet in a frame, if it is IPv4.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let (header, packet) = frame.split_at_checked(ETHERNET_HEADER_BYTES)?;
        let is_ipv4 = header[12..] == [0x08, 0x00];
        let datagram = Datagram::parse(packet).filter(|_| is_ipv4)?;
        Some(Self {
            destination_mac: header[..6].try_into().ok()?,
            source_mac: header[6..12].try_into().ok()?,
            datagram,
        })
    }
}

/// A UDP header without a checksum (RFC 768), and data.
fn udp_payload(source_port: u16, destination_port: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    let header = [source_port, destination_port, length, 0];
    let header = header.iter().flat_map(|field| field.to_be_bytes());
    header.chain(data.iter().copied()).collect()
}

impl Datagram {
    /// A packet without options.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let (header, rest) = packet.split_at_checked(IP_HEADER_BYTES)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]])).checked_sub(IP_HEADER_BYTES)?;
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        let payload = rest.get(..length)?.to_vec();
        (header[0] == 0x45).then(|| Self {
            source: address(12),
            destination: address(16),
            protocol: header[9],
            payload,
        })
    }

    /// A UDP packet without a checksum.
    pub(super) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) -> Self {
        Self {
            source: from.0,
            destination: to.0,
            protocol: UDP,
            payload: udp_payload(from.1, to.1, data),
        }
    }

    pub(super) fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.payload[0], self.payload[1]])
    }

    pub(super) fn destination_port(&self) -> u16 {
        u16::from_be_bytes([self.payload[2], self.payload[3]])
    }

    pub(super) fn udp_payload(&self) -> &[u8] {
        &self.payload[8..]
    }

    /// An answer to a UDP packet.
    pub(super) fn udp_answer(&self, data: &[u8]) -> Self {
        Self::udp(
            (self.destination, self.destination_port()),
            (self.source, self.source_port()),
            data,
        )
    }

    /// The answer of a closed port to a TCP connection request (RFC 9293 section 3.5.2).
    pub(super) fn tcp_refusal(&self) -> Self {
        let sequence = u32::from_be_bytes(self.payload[4..8].try_into().unwrap());
        let mut payload = Vec::new();
        payload.extend(self.destination_port().to_be_bytes());
        payload.extend(self.source_port().to_be_bytes());
        payload.extend(0_u32.to_be_bytes());
        payload.extend(sequence.wrapping_add(1).to_be_bytes());
        // Five words of header; RST and ACK; no window, no checksum yet, no urgent data.
        payload.extend([0x50, 0x14, 0, 0, 0, 0, 0, 0]);
        let mut pseudo_header = Vec::new();
        pseudo_header.extend(self.destination.octets());
        pseudo_header.extend(self.source.octets());
        pseudo_header.extend([0, TCP, 0, 20]);
        pseudo_header.extend(&payload);
        payload[16..18].copy_from_slice(&checksum(&pseudo_header).to_be_bytes());
        Self {
            source: self.destination,
            destination: self.source,
            protocol: TCP,
            payload,
        }
    }

    /// The packet's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let length = u16::try_from(IP_HEADER_BYTES + self.payload.len()).unwrap();
        let mut header = vec![0x45, 0];
        header.extend(length.to_be_bytes());
        header.extend([0, 0, 0x40, 0, 64, self.protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(&self.payload);
        header
    }
}

/// An IPv6 packet of UDP or `ICMPv6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram6 {
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
    pub(super) protocol: u8,
    pub(super) payload: Vec<u8>,
}

impl Datagram6 {
    /// The packet in a frame, if it is IPv6.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET_HEADER_BYTES..)?;
        let (header, rest) = packet.split_at_checked(40)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).map(Ipv6Addr::from).ok();
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            protocol: header[6],
            payload: rest.get(..length)?.to_vec(),
        })
        .filter(|_| frame[12..14] == [0x86, 0xdd])
    }

    /// A UDP packet.
    pub(super) fn udp(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), data: &[u8]) -> Self {
        Self {
            source: from.0,
            destination: to.0,
            protocol: UDP,
            payload: udp_payload(from.1, to.1, data),
        }
        .with_checksum(6)
    }

    /// An echo request (type 128) or reply (129), sequence number 1.
    pub(super) fn echo(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, data: &[u8]) -> Self {
        let mut payload = vec![kind, 0, 0, 0, 0, 7, 0, 1];
        payload.extend(data);
        Self {
            source,
            destination,
            protocol: ICMPV6,
            payload,
        }
        .with_checksum(2)
    }

    /// An `ICMPv6` message, with the hop limit of neighbour discovery.
    pub(super) fn icmp(source: Ipv6Addr, destination: Ipv6Addr, payload: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            protocol: ICMPV6,
            payload,
        }
        .with_checksum(2)
    }

    fn with_checksum(mut self, at: usize) -> Self {
        let length = u16::try_from(self.payload.len()).unwrap();
        let mut pseudo = [self.source.octets(), self.destination.octets()].concat();
        pseudo.extend(length.to_be_bytes());
        pseudo.extend([0, self.protocol]);
        pseudo.extend(&self.payload);
        let sum = checksum(&pseudo);
        self.payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    pub(super) fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.payload[at], self.payload[at + 1]])
    }

    /// The packet's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(self.payload.len()).unwrap().to_be_bytes());
        packet.extend([self.protocol, 255]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(&self.payload);
        packet
    }
}

/// An ICMP echo request (type 8) or reply (0), sequence number 1.
pub(super) fn icmp_echo(kind: u8, identifier: u16, data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    message.extend(data);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let sum = words.fold(0, |sum, word| (sum + word) % 0xffff);
    !u16::try_from(sum).unwrap()
}
