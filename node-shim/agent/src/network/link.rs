//! Interfaces, addresses, neighbours and routes, by rtnetlink in the calling thread's network namespace.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::{rt_addr, rt_link, rt_neigh, rt_route};
use netlink_socket2::{NetlinkSocket, ReplyError};

use super::plan::{PREFIX_LENGTH, PREFIX_LENGTH_6, Tap, Uplink};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const _: () = assert!(AF_INET as i32 == libc::AF_INET && AF_INET6 as i32 == libc::AF_INET6);
/// `IFA_F_NODAD` (`linux/if_addr.h`): nobody else is there to have the address.
const ADDRESS_NO_DAD: u8 = 0x02;
/// `NUD_PERMANENT` (linux/neighbour.h).
const NEIGHBOUR_PERMANENT: u16 = 0x80;
/// `IPV4_DEVCONF_FORWARDING` (linux/ip.h).
const DEVCONF_FORWARDING: u16 = 1;
/// `IPV4_DEVCONF_ROUTE_LOCALNET` (linux/ip.h).
const DEVCONF_ROUTE_LOCALNET: u16 = 26;
/// Most addresses of the pod that are looked at.
const MAX_ADDRESSES: usize = 16;
/// The least `IFLA_MTU` with which IPv4 works (RFC 791).
const MIN_MTU: u32 = 68;

/// Failure to read or change the namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// No default route.
    #[error("the pod has no IPv4 default route: is the node's CNI plugin working?")]
    NoUplink,
    /// No address.
    #[error("the pod's interface {0} has no IPv4 address: is the node's CNI plugin working?")]
    NoAddress(String),
    /// No such interface.
    #[error(
        "the pod has no interface {0}, which its network should have: does Multus run on this node, and its annotation k8s.v1.cni.cncf.io/networks \
         name the interface?"
    )]
    NoInterface(String),
    /// Refused by the kernel.
    #[error("failed to {action} {object} in the pod's network namespace: {source}")]
    Request {
        /// What was tried.
        action: &'static str,
        /// With what.
        object: String,
        /// What the kernel says.
        source: Box<ReplyError>,
    },
}

impl LinkError {
    /// Whether the same request may succeed later: what Multus did not make before the pod began, it never makes.
    pub(super) const fn is_retryable(&self) -> bool {
        !matches!(self, Self::NoInterface(_))
    }

    pub(super) fn request<E: Into<ReplyError>>(action: &'static str, object: &str) -> impl FnOnce(E) -> Self + use<E> {
        let object = object.to_owned();
        move |source| Self::Request {
            action,
            object,
            source: Box::new(source.into()),
        }
    }
}

/// An rtnetlink socket.
pub(super) struct Links(pub(super) NetlinkSocket);

impl Links {
    /// For the calling thread's network namespace; the socket opens with the first request.
    pub(super) fn new() -> Self {
        Self(NetlinkSocket::new())
    }

    /// The index of the pod's interface with this name; of that of the IPv4 default route with the best metric where it has none.
    pub(super) fn pod_interface(&mut self, name: Option<&str>) -> Result<u32, LinkError> {
        let Some(name) = name else {
            return self
                .default_route()
                .map_err(LinkError::request("read", "the IPv4 routes"))?
                .ok_or(LinkError::NoUplink);
        };
        match self.index(name) {
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => {
                Err(LinkError::NoInterface(name.to_owned()))
            }
            result => result.map_err(LinkError::request("find", name)),
        }
    }

    /// The pod's interface that a guest is to be behind.
    pub(super) fn uplink(&mut self, name: Option<&str>) -> Result<Uplink, LinkError> {
        let index = self.pod_interface(name)?;
        let (name, mtu) = self
            .name_and_mtu(index)
            .map_err(LinkError::request("read", "the uplink"))?;
        let all = self
            .addresses(index, AF_INET)
            .map_err(LinkError::request("read the addresses of", &name))?;
        let addresses: Vec<Ipv4Addr> = all.into_iter().filter_map(ipv4).collect();
        if addresses.is_empty() {
            return Err(LinkError::NoAddress(name));
        }
        // A kernel without IPv6 says that there are none.
        let all = self
            .addresses(index, AF_INET6)
            .map_err(LinkError::request("read the IPv6 addresses of", &name))?;
        let addresses6: Vec<Ipv6Addr> = all.into_iter().filter_map(ipv6).collect();
        let mtu = u16::try_from(mtu.max(MIN_MTU)).unwrap_or(u16::MAX);
        Ok(Uplink {
            index,
            name,
            mtu,
            addresses,
            addresses6,
        })
    }

    fn default_route(&mut self) -> Result<Option<u32>, ReplyError> {
        let header = rt_route::Rtmsg {
            rtm_family: AF_INET,
            rtm_table: libc::RT_TABLE_MAIN,
            ..Default::default()
        };
        let request = rt_route::Request::new().op_getroute_dump(&header);
        let mut reply = self.0.request(&request)?;
        let mut best: Option<(u32, u32)> = None;
        while let Some((header, route)) = reply.recv().transpose()? {
            let is_default = header.rtm_dst_len == 0
                && header.rtm_table == libc::RT_TABLE_MAIN
                && header.rtm_type == libc::RTN_UNICAST
                && header.rtm_family == AF_INET;
            let metric = route.get_priority().unwrap_or(0);
            if let (true, Ok(interface)) = (is_default, route.get_oif())
                && best.is_none_or(|(best_metric, _)| metric < best_metric)
            {
                best = Some((metric, interface));
            }
        }
        Ok(best.map(|(_, interface)| interface))
    }

    fn name_and_mtu(&mut self, index: u32) -> Result<(String, u32), ReplyError> {
        let header = rt_link::Ifinfomsg {
            ifi_index: index.cast_signed(),
            ..Default::default()
        };
        let request = rt_link::Request::new().op_getlink_do(&header);
        let mut reply = self.0.request(&request)?;
        let (_, link) = reply.recv_one()?;
        let name = link
            .get_ifname()?
            .to_str()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok((name.to_owned(), link.get_mtu()?))
    }

    fn addresses(&mut self, index: u32, family: u8) -> Result<Vec<IpAddr>, ReplyError> {
        let header = rt_addr::Ifaddrmsg {
            ifa_family: family,
            ..Default::default()
        };
        let request = rt_addr::Request::new().op_getaddr_dump(&header);
        let mut reply = self.0.request(&request)?;
        let mut addresses = Vec::new();
        while let Some((header, address)) = reply.recv().transpose()? {
            let ours = header.ifa_index == index && header.ifa_scope == libc::RT_SCOPE_UNIVERSE;
            // IPv6 has the attribute only for the near end of a tunnel.
            let address = address.get_local().or_else(|_| address.get_address());
            if let (true, Ok(address)) = (ours && addresses.len() < MAX_ADDRESSES, address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    pub(super) fn index(&mut self, device: &str) -> Result<u32, ReplyError> {
        let mut request = rt_link::Request::new().op_getlink_do(&rt_link::Ifinfomsg::default());
        request.encode().push_ifname(&c_name(device)?);
        let mut reply = self.0.request(&request)?;
        let (header, _) = reply.recv_one()?;
        Ok(header.ifi_index.cast_unsigned())
    }

    /// Removes `device`, if it is there.
    pub(super) fn remove(&mut self, device: &str) -> Result<(), LinkError> {
        let mut remove = || {
            let mut request = rt_link::Request::new().op_dellink_do(&rt_link::Ifinfomsg::default());
            request.encode().push_ifname(&c_name(device)?);
            self.0.request(&request)?.recv_ack()
        };
        match remove() {
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result.map_err(LinkError::request("remove", device)),
        }
    }

    /// Gives a new tap its addresses, sets it up and lets packets pass.
    pub(super) fn set_up_tap(&mut self, tap: &Tap, mtu: u16) -> Result<(), LinkError> {
        let index = self
            .index(&tap.device)
            .map_err(LinkError::request("find", &tap.device))?;
        self.set_link(index, tap, mtu)
            .map_err(LinkError::request("set up", &tap.device))?;
        self.add_address(index, tap.gateway.into())
            .map_err(LinkError::request("add an address to", &tap.device))?;
        self.add_neighbour(index, tap.guest.into(), tap)
            .map_err(LinkError::request("make the guest a neighbour on", &tap.device))?;
        if let Some(ipv6) = &tap.ipv6 {
            self.add_address(index, ipv6.gateway.into())
                .map_err(LinkError::request("add an IPv6 address to", &tap.device))?;
            self.add_neighbour(index, ipv6.guest.into(), tap)
                .map_err(LinkError::request("make the guest an IPv6 neighbour on", &tap.device))?;
        }
        self.forward_ipv4(index, &tap.device)?;
        // Lets an answer to a connection that came from 127.0.0.1 back in: `kubectl port-forward` connects there.
        let changed = self.set_ipv4_configuration(index, DEVCONF_ROUTE_LOCALNET);
        changed.map_err(LinkError::request("let packets of local connections pass", &tap.device))
    }

    fn set_link(&mut self, index: u32, tap: &Tap, mtu: u16) -> Result<(), ReplyError> {
        let up = libc::IFF_UP.cast_unsigned();
        let header = rt_link::Ifinfomsg {
            ifi_index: index.cast_signed(),
            ifi_flags: up,
            ifi_change: up,
            ..Default::default()
        };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request
            .encode()
            .push_address(&tap.gateway_mac.bytes())
            .push_mtu(mtu.into());
        self.0.request(&request)?.recv_ack()
    }

    fn add_address(&mut self, index: u32, address: IpAddr) -> Result<(), ReplyError> {
        let (ifa_family, ifa_prefixlen, ifa_flags) = match address {
            IpAddr::V4(_) => (AF_INET, PREFIX_LENGTH, 0),
            IpAddr::V6(_) => (AF_INET6, PREFIX_LENGTH_6, ADDRESS_NO_DAD),
        };
        let header = rt_addr::Ifaddrmsg {
            ifa_family,
            ifa_prefixlen,
            ifa_flags,
            ifa_index: index,
            ..Default::default()
        };
        let mut request = rt_addr::Request::new().set_create().op_newaddr_do(&header);
        request.encode().push_local(address).push_address(address);
        self.0.request(&request)?.recv_ack()
    }

    fn add_neighbour(&mut self, index: u32, guest: IpAddr, tap: &Tap) -> Result<(), ReplyError> {
        let header = rt_neigh::Ndmsg {
            ndm_family: if guest.is_ipv4() { AF_INET } else { AF_INET6 },
            ndm_ifindex: index.cast_signed(),
            ndm_state: NEIGHBOUR_PERMANENT,
            ..Default::default()
        };
        let mut request = rt_neigh::Request::new()
            .set_create()
            .set_replace()
            .op_newneigh_do(&header);
        request.encode().push_dst(guest).push_lladdr(&tap.guest_mac.bytes());
        self.0.request(&request)?.recv_ack()
    }

    /// Lets IPv4 packets that come in by the interface be forwarded.
    pub(super) fn forward_ipv4(&mut self, index: u32, name: &str) -> Result<(), LinkError> {
        let changed = self.set_ipv4_configuration(index, DEVCONF_FORWARDING);
        changed.map_err(LinkError::request("switch IPv4 forwarding on for", name))
    }

    /// Sets a value of `/proc/sys/net/ipv4/conf/<interface>` to 1. By netlink, because /proc/sys is read-only in an unprivileged container.
    fn set_ipv4_configuration(&mut self, index: u32, key: u16) -> Result<(), ReplyError> {
        let header = rt_link::Ifinfomsg {
            ifi_index: index.cast_signed(),
            ..Default::default()
        };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request
            .encode()
            .nested_af_spec()
            .nested_inet()
            .push_conf(&ipv4_configuration(key, 1));
        self.0.request(&request)?.recv_ack()
    }
}

/// The content of `IFLA_INET_CONF` in a request: one attribute whose type is the key and whose value is a u32.
fn ipv4_configuration(key: u16, value: u32) -> [u8; 8] {
    let [k0, k1] = key.to_ne_bytes();
    let [l0, l1] = 8u16.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    [l0, l1, k0, k1, v0, v1, v2, v3]
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn ipv6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}

pub(super) fn c_name(device: &str) -> Result<CString, ReplyError> {
    CString::new(device).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput).into())
}
