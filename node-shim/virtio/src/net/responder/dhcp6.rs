//! The DHCPv6 server of one client (RFC 8415). It has no state: there is one address, and it is the guest's for ever.
//!
//! ```text
//! SOLICIT                 --> ADVERTISE, or REPLY when the client agrees to rapid commit
//! REQUEST, RENEW, REBIND  --> REPLY with the address; any other gets a lifetime of zero
//! CONFIRM                 --> REPLY: whether every address is the guest's
//! RELEASE, DECLINE        --> REPLY
//! INFORMATION-REQUEST     --> REPLY without an address
//! ```

use std::net::Ipv6Addr;

use super::{GuestIdentity, GuestIpv6, dns_name};
use crate::net::frame::Ethernet;
use crate::net::ipv6::{self, Packet, TYPE_IPV6, Udp6};

const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
/// `All_DHCP_Relay_Agents_and_Servers` (7.1).
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Lifetime without an end (7.7).
const FOREVER: u32 = u32::MAX;
/// Most identity associations in a message that are looked at.
const MAX_ASSOCIATIONS: usize = 8;
/// Most addresses in one of them that are looked at.
const MAX_ADDRESSES: usize = 8;
/// Longest DUID (11.1).
const MAX_DUID_BYTES: usize = 130;
const MAX_NAME_SERVERS: usize = 8;
/// Bytes of search domains in a reply: it stays within the smallest MTU of IPv6 with them.
const MAX_SEARCH_BYTES: usize = 512;

/// Options (21, RFC 3646).
const OPTION_CLIENT_ID: u16 = 1;
const OPTION_SERVER_ID: u16 = 2;
const OPTION_ADDRESSES: u16 = 3;
const OPTION_TEMPORARY: u16 = 4;
const OPTION_ADDRESS: u16 = 5;
const OPTION_STATUS: u16 = 13;
const OPTION_RAPID_COMMIT: u16 = 14;
const OPTION_NAME_SERVERS: u16 = 23;
const OPTION_SEARCH: u16 = 24;
const OPTION_PREFIXES: u16 = 25;

/// Status codes (21.13).
const SUCCESS: u16 = 0;
const NO_ADDRESSES: u16 = 2;
const NOT_ON_LINK: u16 = 4;
const NO_PREFIXES: u16 = 6;

/// Messages of a client (7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Solicit,
    Request,
    Confirm,
    Renew,
    Rebind,
    Release,
    Decline,
    Information,
}

const ADVERTISE: u8 = 2;
const REPLY: u8 = 7;

impl Message {
    const fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Solicit,
            3 => Self::Request,
            4 => Self::Confirm,
            5 => Self::Renew,
            6 => Self::Rebind,
            8 => Self::Release,
            9 => Self::Decline,
            11 => Self::Information,
            _ => return None,
        })
    }

    /// Whether it names its server: it must, it must not, or as it likes (16).
    const fn names_server(self) -> Option<bool> {
        match self {
            Self::Solicit | Self::Confirm | Self::Rebind => Some(false),
            Self::Request | Self::Renew | Self::Release | Self::Decline => Some(true),
            Self::Information => None,
        }
    }
}

/// An identity association.
#[derive(Debug, PartialEq, Eq)]
struct Association {
    kind: u16,
    id: [u8; 4],
    addresses: Vec<Ipv6Addr>,
}

/// What a client asks.
#[derive(Debug)]
struct Query<'a> {
    message: Message,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    rapid: bool,
    associations: Vec<Association>,
}

/// Whether a datagram of the guest is one for its DHCPv6 server.
pub fn is_for_server(ours: &GuestIpv6, destination: Ipv6Addr, udp: &Udp6<'_>) -> bool {
    udp.destination_port == SERVER_PORT && (destination == ALL_SERVERS || ours.is_router(destination))
}

/// The frame that answers a datagram, if there is anything to say.
pub fn answer(guest: &GuestIdentity, ours: &GuestIpv6, packet: &Packet<'_>, udp: &Udp6<'_>) -> Option<Vec<u8>> {
    let query = Query::parse(udp.payload)?;
    let own = server_id(guest);
    let server_fits = match query.message.names_server() {
        Some(true) => query.server == Some(own.as_slice()),
        Some(false) => query.server.is_none(),
        None => query.server.is_none_or(|server| server == own),
    };
    if !server_fits || (query.client.is_none() && query.message != Message::Information) {
        return None;
    }
    // A unicast needs the server's leave, which it never first (18.4).
    if packet.destination != ALL_SERVERS && query.message != Message::Information || packet.source.is_unspecified() {
        return None;
    }
    let payload = write_reply(guest, ours, &query, &own)?;
    let reply = Udp6 {
        source_port: SERVER_PORT,
        destination_port: CLIENT_PORT,
        payload: &payload,
    };
    let packet = ipv6::write_packet(ours.router, packet.source, ipv6::PROTOCOL_UDP, reply.write()?, 6)?;
    let frame = Ethernet {
        destination: guest.mac,
        source: guest.gateway_mac,
        kind: TYPE_IPV6,
        payload: &packet,
    };
    Some(frame.write())
}

/// A DUID of the gateway's link-layer address (11.4), Ethernet.
fn server_id(guest: &GuestIdentity) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &guest.gateway_mac.0].concat()
}

/// Takes the next option off the front.
fn next_option<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let (header, after) = rest.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let (value, after) = after.split_at_checked(length)?;
    *rest = after;
    Some((u16::from_be_bytes([header[0], header[1]]), value))
}

impl<'a> Query<'a> {
    fn parse(payload: &'a [u8]) -> Option<Self> {
        let (header, mut rest) = payload.split_first_chunk::<4>()?;
        let mut query = Self {
            message: Message::of_code(header[0])?,
            transaction: [header[1], header[2], header[3]],
            client: None,
            server: None,
            rapid: false,
            associations: Vec::new(),
        };
        while !rest.is_empty() {
            let (code, value) = next_option(&mut rest)?;
            match code {
                OPTION_CLIENT_ID => query.client = Some(value).filter(|id| (1..=MAX_DUID_BYTES).contains(&id.len())),
                OPTION_SERVER_ID => query.server = Some(value),
                OPTION_RAPID_COMMIT => query.rapid = true,
                OPTION_ADDRESSES | OPTION_TEMPORARY | OPTION_PREFIXES
                    if query.associations.len() < MAX_ASSOCIATIONS =>
                {
                    query.associations.push(Association::parse(code, value)?);
                }
                _ => {}
            }
        }
        Some(query)
    }

    /// Whether every address in it is the guest's; nothing when there is none.
    fn confirmed(&self, ours: &GuestIpv6) -> Option<bool> {
        let mut addresses = self.associations.iter().flat_map(|ia| &ia.addresses).peekable();
        addresses.peek()?;
        Some(addresses.all(|address| *address == ours.address))
    }
}

impl Association {
    fn parse(kind: u16, value: &[u8]) -> Option<Self> {
        let (id, rest) = value.split_first_chunk::<4>()?;
        // T1 and T2, which the association of temporary addresses has not.
        let mut rest = rest.get(if kind == OPTION_TEMPORARY { 0 } else { 8 }..)?;
        let mut addresses = Vec::new();
        while !rest.is_empty() && addresses.len() < MAX_ADDRESSES {
            let (code, value) = next_option(&mut rest)?;
            if code == OPTION_ADDRESS && kind != OPTION_PREFIXES {
                addresses.push(ipv6::address(value.get(..16)?)?);
            }
        }
        Some(Self {
            kind,
            id: *id,
            addresses,
        })
    }
}

fn write_reply(guest: &GuestIdentity, ours: &GuestIpv6, query: &Query<'_>, own: &[u8]) -> Option<Vec<u8>> {
    let rapid = query.message == Message::Solicit && query.rapid;
    let code = if query.message == Message::Solicit && !rapid {
        ADVERTISE
    } else {
        REPLY
    };
    let mut reply = vec![code];
    reply.extend_from_slice(&query.transaction);
    if let Some(client) = query.client {
        put(&mut reply, OPTION_CLIENT_ID, client);
    }
    put(&mut reply, OPTION_SERVER_ID, own);
    match query.message {
        Message::Solicit | Message::Request | Message::Renew | Message::Rebind => {
            if rapid {
                put(&mut reply, OPTION_RAPID_COMMIT, &[]);
            }
            put_associations(&mut reply, ours, &query.associations);
            put_network(&mut reply, guest);
        }
        Message::Confirm => {
            let status = if query.confirmed(ours)? { SUCCESS } else { NOT_ON_LINK };
            put(&mut reply, OPTION_STATUS, &status.to_be_bytes());
        }
        Message::Release | Message::Decline => put(&mut reply, OPTION_STATUS, &SUCCESS.to_be_bytes()),
        Message::Information => put_network(&mut reply, guest),
    }
    Some(reply)
}

/// The first association of addresses gets the guest's. What a client thinks it has besides is over.
fn put_associations(reply: &mut Vec<u8>, ours: &GuestIpv6, associations: &[Association]) {
    let mut given = false;
    for Association { kind, id, addresses } in associations {
        let mut value = id.to_vec();
        if *kind != OPTION_TEMPORARY {
            // The address never runs out, so nothing is ever renewed.
            value.extend_from_slice(&FOREVER.to_be_bytes());
            value.extend_from_slice(&FOREVER.to_be_bytes());
        }
        let first = *kind == OPTION_ADDRESSES && !given;
        given |= first;
        if first {
            put_address(&mut value, ours.address, FOREVER);
        } else {
            let status = if *kind == OPTION_PREFIXES {
                NO_PREFIXES
            } else {
                NO_ADDRESSES
            };
            put(&mut value, OPTION_STATUS, &status.to_be_bytes());
        }
        for address in addresses.iter().filter(|address| !first || **address != ours.address) {
            put_address(&mut value, *address, 0);
        }
        put(reply, *kind, &value);
    }
}

fn put_address(value: &mut Vec<u8>, address: Ipv6Addr, lifetime: u32) {
    let mut option = address.octets().to_vec();
    option.extend_from_slice(&lifetime.to_be_bytes());
    option.extend_from_slice(&lifetime.to_be_bytes());
    put(value, OPTION_ADDRESS, &option);
}

fn put_network(reply: &mut Vec<u8>, guest: &GuestIdentity) {
    let servers: Vec<u8> = guest
        .name_servers6()
        .take(MAX_NAME_SERVERS)
        .flat_map(|server| server.octets())
        .collect();
    for (code, value) in [
        (OPTION_NAME_SERVERS, servers),
        (OPTION_SEARCH, dns_name::encode_all(&guest.search, MAX_SEARCH_BYTES)),
    ] {
        if !value.is_empty() {
            put(reply, code, &value);
        }
    }
}

/// Appends an option; what it cannot hold is left out.
fn put(reply: &mut Vec<u8>, code: u16, value: &[u8]) {
    if let Ok(length) = u16::try_from(value.len()) {
        reply.extend_from_slice(&code.to_be_bytes());
        reply.extend_from_slice(&length.to_be_bytes());
        reply.extend_from_slice(value);
    }
}
