//! The DHCP server of one client (RFC 2131, options of RFC 2132). It has no state: there is one address, and it is the guest's for ever.
//!
//! ```text
//! DISCOVER --> OFFER
//! REQUEST  --> ACK for the guest's address; NAK for any other; nothing when another server is meant
//! INFORM   --> ACK without an address
//! DECLINE, RELEASE --> nothing
//! ```

use std::net::Ipv4Addr;

use node_shim_protocol::config::Route;

use super::{GuestIdentity, GuestIpv4, dns_name};
use crate::net::address::MacAddress;
use crate::net::frame::{Ethernet, TYPE_IPV4, Udp};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const HARDWARE_ETHERNET: u8 = 1;
const FLAG_BROADCAST: u16 = 0x8000;
/// Offsets in the fixed part (RFC 2131, figure 1).
const TRANSACTION: usize = 4;
const FLAGS: usize = 10;
const CLIENT_ADDRESS: usize = 12;
const YOUR_ADDRESS: usize = 16;
const RELAY_ADDRESS: usize = 24;
const CLIENT_HARDWARE: usize = 28;
const COOKIE: usize = 236;
const OPTIONS: usize = 240;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Smallest BOOTP message (RFC 1542, 2.1).
const MIN_MESSAGE_BYTES: usize = 300;
/// What every client takes (RFC 2131, 2): an IP packet of 576 bytes.
const MIN_CLIENT_PACKET_BYTES: u16 = 576;
/// IPv4 and UDP headers.
const PACKET_HEADER_BYTES: usize = 28;
/// A lease without an end (RFC 2131, 3.3).
const LEASE_FOREVER: u32 = u32::MAX;
/// Most name servers in a reply: what resolvers use is three.
const MAX_NAME_SERVERS: usize = 8;

const OPTION_PAD: u8 = 0;
const OPTION_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_NAME_SERVERS: u8 = 6;
const OPTION_HOST_NAME: u8 = 12;
const OPTION_DOMAIN: u8 = 15;
const OPTION_MTU: u8 = 26;
const OPTION_BROADCAST: u8 = 28;
const OPTION_REQUESTED_ADDRESS: u8 = 50;
const OPTION_LEASE: u8 = 51;
const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_MAX_MESSAGE: u8 = 57;
const OPTION_CLIENT_ID: u8 = 61;
const OPTION_SEARCH: u8 = 119;
/// RFC 3442.
const OPTION_ROUTES: u8 = 121;
const OPTION_END: u8 = 255;

/// DHCP message types (RFC 2132, 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

impl Message {
    const fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }

    const fn code(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
        }
    }
}

/// What a client asks.
#[derive(Clone, Copy, Debug)]
struct Query<'a> {
    message: Message,
    transaction: [u8; 4],
    flags: u16,
    client_address: Ipv4Addr,
    requested_address: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
    /// Largest IP packet that the client takes.
    max_packet: u16,
}

/// Whether a datagram of the guest is one for its DHCP server.
pub fn is_for_server(ours: &GuestIpv4, udp: &Udp<'_>) -> bool {
    udp.destination_port == SERVER_PORT && (udp.destination.is_broadcast() || udp.destination == ours.server)
}

/// The frame that answers a datagram, if there is anything to say.
pub fn answer(guest: &GuestIdentity, ours: &GuestIpv4, udp: &Udp<'_>) -> Option<Vec<u8>> {
    let query = Query::parse(udp.payload, guest.mac)?;
    let message = decide(ours, &query)?;
    let payload = write_reply(guest, ours, &query, message);
    let (mac, destination) = addressee(guest.mac, ours, &query, message);
    let reply = Udp {
        source: ours.server,
        destination,
        source_port: SERVER_PORT,
        destination_port: CLIENT_PORT,
        payload: &payload,
    };
    let packet = reply.write()?;
    Some(
        Ethernet {
            destination: mac,
            source: guest.gateway_mac,
            kind: TYPE_IPV4,
            payload: &packet,
        }
        .write(),
    )
}

fn decide(ours: &GuestIpv4, query: &Query<'_>) -> Option<Message> {
    match query.message {
        Message::Discover => Some(Message::Offer),
        Message::Request => {
            if query.server.is_some_and(|server| server != ours.server) {
                return None;
            }
            let wanted = query.requested_address.unwrap_or(query.client_address);
            Some(if wanted == ours.address {
                Message::Ack
            } else {
                Message::Nak
            })
        }
        Message::Inform => Some(Message::Ack),
        Message::Offer | Message::Decline | Message::Ack | Message::Nak | Message::Release => None,
    }
}

/// To whom a reply goes (RFC 2131, 4.1).
fn addressee(guest: MacAddress, ours: &GuestIpv4, query: &Query<'_>, message: Message) -> (MacAddress, Ipv4Addr) {
    if message == Message::Nak {
        (MacAddress::BROADCAST, Ipv4Addr::BROADCAST)
    } else if !query.client_address.is_unspecified() {
        (guest, query.client_address)
    } else if query.flags & FLAG_BROADCAST != 0 {
        (MacAddress::BROADCAST, Ipv4Addr::BROADCAST)
    } else {
        (guest, ours.address)
    }
}

impl<'a> Query<'a> {
    /// Reads a message of the client with this MAC address that came without a relay.
    fn parse(payload: &'a [u8], mac: MacAddress) -> Option<Self> {
        let fixed: &[u8; OPTIONS] = payload.first_chunk()?;
        let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        let direct = fixed[..3] == [BOOT_REQUEST, HARDWARE_ETHERNET, 6] && address(RELAY_ADDRESS).is_unspecified();
        if !direct || fixed[CLIENT_HARDWARE..CLIENT_HARDWARE + 6] != mac.0 || fixed[COOKIE..] != MAGIC_COOKIE {
            return None;
        }
        let mut query = Self {
            // Without a type it is BOOTP, which nobody speaks.
            message: Message::Offer,
            transaction: *fixed[TRANSACTION..].first_chunk()?,
            flags: u16::from_be_bytes(*fixed[FLAGS..].first_chunk()?),
            client_address: address(CLIENT_ADDRESS),
            requested_address: None,
            server: None,
            client_id: None,
            max_packet: MIN_CLIENT_PACKET_BYTES,
        };
        query.read_options(&payload[OPTIONS..])?;
        Some(query)
    }

    fn read_options(&mut self, mut rest: &'a [u8]) -> Option<()> {
        loop {
            let (code, after) = rest.split_first()?;
            match *code {
                OPTION_END => return Some(()),
                OPTION_PAD => {
                    rest = after;
                    continue;
                }
                _ => {}
            }
            let (length, after) = after.split_first()?;
            let (value, after) = after.split_at_checked(usize::from(*length))?;
            rest = after;
            match (*code, value) {
                (OPTION_MESSAGE_TYPE, [kind]) => self.message = Message::of_code(*kind)?,
                (OPTION_REQUESTED_ADDRESS, [a, b, c, d]) => {
                    self.requested_address = Some(Ipv4Addr::new(*a, *b, *c, *d));
                }
                (OPTION_SERVER, [a, b, c, d]) => self.server = Some(Ipv4Addr::new(*a, *b, *c, *d)),
                (OPTION_MAX_MESSAGE, [high, low]) => {
                    self.max_packet = u16::from_be_bytes([*high, *low]).max(MIN_CLIENT_PACKET_BYTES);
                }
                (OPTION_CLIENT_ID, id) => self.client_id = Some(id),
                _ => {}
            }
        }
    }
}

fn write_reply(guest: &GuestIdentity, ours: &GuestIpv4, query: &Query<'_>, message: Message) -> Vec<u8> {
    let mut reply = vec![0; OPTIONS];
    reply[..3].copy_from_slice(&[BOOT_REPLY, HARDWARE_ETHERNET, 6]);
    reply[TRANSACTION..TRANSACTION + 4].copy_from_slice(&query.transaction);
    reply[FLAGS..FLAGS + 2].copy_from_slice(&query.flags.to_be_bytes());
    reply[CLIENT_HARDWARE..CLIENT_HARDWARE + 6].copy_from_slice(&guest.mac.0);
    reply[COOKIE..OPTIONS].copy_from_slice(&MAGIC_COOKIE);
    put(&mut reply, OPTION_MESSAGE_TYPE, &[message.code()]);
    put(&mut reply, OPTION_SERVER, &ours.server.octets());
    // A server returns the client's identifier (RFC 6842).
    if let Some(id) = query.client_id {
        put(&mut reply, OPTION_CLIENT_ID, id);
    }
    if message != Message::Nak {
        if query.message == Message::Inform {
            reply[CLIENT_ADDRESS..CLIENT_ADDRESS + 4].copy_from_slice(&query.client_address.octets());
        } else {
            reply[CLIENT_ADDRESS..CLIENT_ADDRESS + 4].copy_from_slice(&query.client_address.octets());
            reply[YOUR_ADDRESS..YOUR_ADDRESS + 4].copy_from_slice(&ours.address.octets());
            put(&mut reply, OPTION_LEASE, &LEASE_FOREVER.to_be_bytes());
        }
        put_network(&mut reply, guest, ours);
        let limit = usize::from(query.max_packet.min(guest.mtu)).saturating_sub(PACKET_HEADER_BYTES);
        put_domain(&mut reply, &guest.search, limit);
        put_search(&mut reply, &guest.search, limit);
    }
    reply.push(OPTION_END);
    reply.resize(reply.len().max(MIN_MESSAGE_BYTES), 0);
    reply
}

fn put_network(reply: &mut Vec<u8>, guest: &GuestIdentity, ours: &GuestIpv4) {
    let mask = ours.mask();
    put(reply, OPTION_MASK, &mask.octets());
    // A prefix of two addresses or one has none (RFC 3021).
    if ours.prefix_length <= 30 {
        put(reply, OPTION_BROADCAST, &(ours.address | !mask).octets());
    }
    if let Some(gateway) = ours.gateway {
        put(reply, OPTION_ROUTER, &gateway.octets());
    }
    put(reply, OPTION_ROUTES, &routes(&ours.routes));
    put(reply, OPTION_MTU, &guest.mtu.to_be_bytes());
    let servers: Vec<u8> = guest
        .name_servers4()
        .take(MAX_NAME_SERVERS)
        .flat_map(|server| server.octets())
        .collect();
    put(reply, OPTION_NAME_SERVERS, &servers);
    put(reply, OPTION_HOST_NAME, guest.host_name.as_bytes());
}

/// Classless static routes. Who understands them looks at no gateway besides, so the default route is among them.
fn routes(routes: &[Route]) -> Vec<u8> {
    let mut value = Vec::new();
    for route in routes {
        let significant = usize::from(route.prefix_length.min(32).div_ceil(8));
        value.push(route.prefix_length.min(32));
        value.extend_from_slice(&route.destination.octets()[..significant]);
        value.extend_from_slice(&route.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    }
    value
}

/// Appends an option; one without a value is left out, and what an option cannot hold is too.
fn put(reply: &mut Vec<u8>, code: u8, value: &[u8]) {
    if let Ok(length @ 1..) = u8::try_from(value.len()) {
        reply.extend_from_slice(&[code, length]);
        reply.extend_from_slice(value);
    }
}

/// Appends the domain (RFC 2132, 3.17), for clients that do not know of search domains: the first of them, if there is room.
fn put_domain(reply: &mut Vec<u8>, domains: &[String], limit: usize) {
    let first = domains.iter().find(|domain| dns_name::encode(domain).is_some());
    // Code, length, and the end.
    if let Some(domain) = first.filter(|domain| reply.len() + domain.len() + 3 <= limit) {
        put(reply, OPTION_DOMAIN, domain.as_bytes());
    }
}

/// Appends the search domains (RFC 3397), as many from the first on as leave the message at most `limit` bytes long. A value of more
/// than 255 bytes is split (RFC 3396).
fn put_search(reply: &mut Vec<u8>, domains: &[String], limit: usize) {
    let mut value = Vec::new();
    for name in domains.iter().filter_map(|domain| dns_name::encode(domain)) {
        let bytes = value.len() + name.len();
        // Two bytes for each part, and the end.
        if reply.len() + bytes + 2 * bytes.div_ceil(255) + 1 > limit {
            break;
        }
        value.extend_from_slice(&name);
    }
    for part in value.chunks(255) {
        put(reply, OPTION_SEARCH, part);
    }
}
