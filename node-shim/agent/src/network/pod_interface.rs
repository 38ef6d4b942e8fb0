//! Reads an interface of the pod whose place a guest takes, and lets it take it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::{rt_addr, rt_link, rt_route};
use netlink_socket2::ReplyError;

use super::address::Mac;
use super::bridged::{Address, Bridged, PodInterface, PodRoute};
use super::link::{LinkError, Links};

/// `ARPHRD_ETHER` (`linux/if_arp.h`).
const TYPE_ETHERNET: u16 = 1;
/// `IFA_F_PERMANENT` (`linux/if_addr.h`): somebody gave it; it was not learnt from a router.
const ADDRESS_PERMANENT: u8 = 0x80;
/// `IN6_ADDR_GEN_MODE_NONE` (`linux/if_link.h`).
const NO_LINK_LOCAL: u8 = 1;
/// The least `IFLA_MTU` with which IPv4 works (RFC 791).
const MIN_MTU: u32 = 68;
/// Most addresses and routes of an interface that are looked at.
const MAX_ADDRESSES: usize = 16;
const MAX_ROUTES: usize = 64;

impl Links {
    /// The pod's interface with this name; that of the default route where it has none.
    pub(super) fn port(&mut self, name: Option<&str>) -> Result<PodInterface, LinkError> {
        let index = self.pod_interface(name)?;
        let mut found = self
            .link(index)
            .map_err(LinkError::request("read", "the pod's interface"))?;
        found.addresses = self
            .given_addresses(index)
            .map_err(LinkError::request("read the addresses of", &found.name))?;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let routes = self
                .routes_by(index, family)
                .map_err(LinkError::request("read the routes of", &found.name))?;
            found.routes.extend(routes);
        }
        Ok(found)
    }

    fn link(&mut self, index: u32) -> Result<PodInterface, ReplyError> {
        let header = rt_link::Ifinfomsg {
            ifi_index: index.cast_signed(),
            ..Default::default()
        };
        let request = rt_link::Request::new().op_getlink_do(&header);
        let mut reply = self.0.request(&request)?;
        let (header, link) = reply.recv_one()?;
        let ethernet = header.ifi_type == TYPE_ETHERNET;
        let mac = link.get_address().ok().filter(|_| ethernet).and_then(Mac::of_bytes);
        Ok(PodInterface {
            index,
            name: link.get_ifname()?.to_string_lossy().into_owned(),
            mac,
            mtu: u16::try_from(link.get_mtu()?.max(MIN_MTU)).unwrap_or(u16::MAX),
            addresses: Vec::new(),
            routes: Vec::new(),
        })
    }

    fn given_addresses(&mut self, index: u32) -> Result<Vec<Address>, ReplyError> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let header = rt_addr::Ifaddrmsg {
                ifa_family: family_of(family),
                ..Default::default()
            };
            let request = rt_addr::Request::new().op_getaddr_dump(&header);
            let mut reply = self.0.request(&request)?;
            while let Some((header, address)) = reply.recv().transpose()? {
                let ours = header.ifa_index == index
                    && header.ifa_scope == libc::RT_SCOPE_UNIVERSE
                    && header.ifa_flags & ADDRESS_PERMANENT != 0;
                // IPv6 has the attribute only for the near end of a tunnel.
                let address = address.get_local().or_else(|_| address.get_address());
                if let (true, Ok(address)) = (ours && found.len() < MAX_ADDRESSES, address) {
                    let prefix_length = header.ifa_prefixlen;
                    found.push(Address { address, prefix_length });
                }
            }
        }
        Ok(found)
    }

    fn routes_by(&mut self, index: u32, family: libc::c_int) -> Result<Vec<PodRoute>, ReplyError> {
        let header = rt_route::Rtmsg {
            rtm_family: family_of(family),
            rtm_table: libc::RT_TABLE_MAIN,
            ..Default::default()
        };
        let request = rt_route::Request::new().op_getroute_dump(&header);
        let mut reply = self.0.request(&request)?;
        let mut routes = Vec::new();
        while let Some((header, route)) = reply.recv().transpose()? {
            let ours = header.rtm_table == libc::RT_TABLE_MAIN
                && header.rtm_type == libc::RTN_UNICAST
                && header.rtm_family == family_of(family)
                && route.get_oif().is_ok_and(|interface| interface == index);
            let destination = match (route.get_dst(), family) {
                (Ok(destination), _) => destination,
                (Err(_), libc::AF_INET) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                (Err(_), _) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            if ours && routes.len() < MAX_ROUTES {
                routes.push(PodRoute {
                    destination,
                    prefix_length: header.rtm_dst_len,
                    gateway: route.get_gateway().or_else(|_| route.get_via()).ok(),
                    metric: route.get_priority().unwrap_or(0),
                });
            }
        }
        Ok(routes)
    }

    /// Sets a new tap up, which says nothing of its own to the guest, and returns its index.
    pub(super) fn set_up_bridged_tap(&mut self, bridged: &Bridged) -> Result<u32, LinkError> {
        let device = &bridged.device;
        let index = self.index(device).map_err(LinkError::request("find", device))?;
        let up = libc::IFF_UP.cast_unsigned();
        // The kernel would make an address when it comes up: so this comes first.
        let mut silence = || {
            let mut request = rt_link::Request::new().op_setlink_do(&flags(index, 0));
            let family = request.encode().nested_af_spec().nested_inet6();
            drop(family.push_addr_gen_mode(NO_LINK_LOCAL));
            match self.0.request(&request)?.recv_ack() {
                // A kernel without IPv6 makes none.
                Err(error) if error.as_io_error().raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
                result => result,
            }
        };
        silence().map_err(LinkError::request("silence", device))?;
        let mut raise = || {
            let mut request = rt_link::Request::new().op_setlink_do(&flags(index, up));
            request.encode().push_mtu(bridged.port.mtu.into());
            self.0.request(&request)?.recv_ack()
        };
        raise().map_err(LinkError::request("set up", device))?;
        Ok(index)
    }

    /// Sets the pod's interface up, and lets it take in what is for any group: which ones, its guest knows.
    pub(super) fn open_port(&mut self, bridged: &Bridged) -> Result<(), LinkError> {
        let mut open = || {
            let wanted = (libc::IFF_UP | libc::IFF_ALLMULTI).cast_unsigned();
            let request = rt_link::Request::new().op_setlink_do(&flags(bridged.port.index, wanted));
            self.0.request(&request)?.recv_ack()
        };
        open().map_err(LinkError::request("open", &bridged.port.name))
    }
}

/// A header that sets flags of an interface.
fn flags(index: u32, set: u32) -> rt_link::Ifinfomsg {
    rt_link::Ifinfomsg {
        ifi_index: index.cast_signed(),
        ifi_flags: set,
        ifi_change: set,
        ..Default::default()
    }
}

fn family_of(family: libc::c_int) -> u8 {
    u8::try_from(family).unwrap_or_default()
}
