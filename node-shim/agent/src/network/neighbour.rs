//! Finds the MAC address of a router, in the calling thread's network namespace: by the kernel's own neighbour discovery.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netlink_bindings::rt_neigh;
use netlink_socket2::ReplyError;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::address::Mac;
use super::link::Links;

/// How long a router may take to answer. The kernel asks three times, a second apart.
const PATIENCE: Duration = Duration::from_secs(3);
/// `NTF_USE` (linux/neighbour.h): ask, unless it is known.
const USE: u8 = 0x01;
/// `NUD_INCOMPLETE` and `NUD_FAILED`: what is known besides is an address.
const UNRESOLVED: u16 = 0x01 | 0x20;
/// `RTMGRP_NEIGH` (linux/rtnetlink.h).
const GROUP_NEIGHBOURS: u32 = 4;

/// The MAC address of the neighbour `router` on the interface with this index.
pub(super) fn resolve(links: &mut Links, index: u32, router: Ipv6Addr) -> io::Result<Mac> {
    let news = subscribe()?;
    let deadline = Instant::now() + PATIENCE;
    links.ask_for(index, router)?;
    loop {
        if let Some(mac) = links.neighbour(index, router)? {
            return Ok(mac);
        }
        wait(&news, deadline)?;
    }
}

impl Links {
    fn ask_for(&mut self, index: u32, router: Ipv6Addr) -> io::Result<()> {
        let header = rt_neigh::Ndmsg {
            ndm_flags: USE,
            ..header(index)
        };
        let mut request = rt_neigh::Request::new().set_create().op_newneigh_do(&header);
        request.encode().push_dst(router.into());
        let asked = self.0.request(&request).map_err(ReplyError::from);
        asked.and_then(|mut reply| reply.recv_ack()).map_err(io_error)
    }

    fn neighbour(&mut self, index: u32, router: Ipv6Addr) -> io::Result<Option<Mac>> {
        let request = rt_neigh::Request::new().op_getneigh_dump(&header(0));
        let mut reply = self.0.request(&request).map_err(|error| io_error(error.into()))?;
        let mut found = None;
        while let Some((header, neighbour)) = reply.recv().transpose().map_err(io_error)? {
            let ours = header.ndm_ifindex == index.cast_signed() && header.ndm_state & UNRESOLVED == 0;
            if ours && neighbour.get_dst().is_ok_and(|address| address == router) {
                found = neighbour.get_lladdr().ok().and_then(Mac::of_bytes);
            }
        }
        Ok(found)
    }
}

fn header(index: u32) -> rt_neigh::Ndmsg {
    rt_neigh::Ndmsg {
        ndm_family: u8::try_from(libc::AF_INET6).unwrap_or_default(),
        ndm_ifindex: index.cast_signed(),
        ..Default::default()
    }
}

fn io_error(error: ReplyError) -> io::Error {
    io::Error::other(error)
}

/// A socket that becomes readable whenever the kernel learns of a neighbour.
fn subscribe() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP_NEIGHBOURS))?;
    Ok(socket)
}

/// Waits for news, and forgets them.
fn wait(news: &OwnedFd, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    if rustix::event::poll(&mut [PollFd::new(news, PollFlags::IN)], Some(&timeout))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut packet = [0_u8; 8192];
    // Whatever is lost of them, the neighbour is looked up next.
    while rustix::net::recv(news, &mut packet, RecvFlags::empty()).is_ok() {}
    Ok(())
}
