//! A node's namespace, a pod's namespace, and a guest on the pod's tap.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use node_shim_protocol::agent::{GrantedNetwork, InterfaceGrant};
use node_shim_protocol::config::GuestNetwork;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrV4, SocketFlags, SocketType, ipproto};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::super::plan::tests::interfaces;
use super::super::{Attached, GuestInterface, NetworkError, PodNamespace};
use super::frame::{Datagram, Datagram6, Seen};

pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
pub(super) const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 1);
pub(super) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 7);
pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 1);
pub(super) const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);
pub(super) const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 0];
/// Longest wait for something that must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// `sizeof(struct virtio_net_hdr)`, before each frame of a tap with `IFF_VNET_HDR`.
const VIRTIO_NET_HEADER_BYTES: usize = 10;

/// A network namespace; the kernel removes it with its last descriptor.
pub(super) struct Namespace(File);

impl Namespace {
    /// A new one, or nothing without root.
    pub(super) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let make = || {
            // SAFETY: only this thread's network namespace changes, and the thread ends right after.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Some(Self(std::thread::spawn(make).join().unwrap()))
    }

    /// Starts `work` on a thread inside. A socket that it makes stays there.
    pub(super) fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = self.0.try_clone().unwrap();
        std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// Does `work` inside.
    pub(super) fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).join().unwrap()
    }

    /// What a command inside prints.
    pub(super) fn run(&self, program: &'static str, arguments: &[&str]) -> String {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        self.inside(move || {
            let output = Command::new(program).args(&arguments).output().unwrap();
            assert!(
                output.status.success(),
                "{program} {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap()
        })
    }

    pub(super) fn ip(&self, arguments: &str) {
        self.run("ip", &arguments.split(' ').collect::<Vec<_>>());
    }

    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// The test's end of the tap.
pub(super) struct Guest(pub(super) Option<File>);

impl Guest {
    /// The next IPv4 packet of `protocol`; what the kernel says besides is passed over.
    pub(super) fn receive(&self, protocol: u8) -> Seen {
        self.next(|frame| Seen::parse(frame).filter(|seen| seen.datagram.protocol == protocol))
    }

    /// The next IPv6 packet of `protocol` to the guest's address.
    pub(super) fn receive6(&self, protocol: u8) -> Datagram6 {
        let ours = |seen: &Datagram6| seen.protocol == protocol && seen.destination == GUEST6;
        self.next(|frame| Datagram6::parse(frame).filter(ours))
    }

    /// The next frame that `parse` makes something of.
    pub(super) fn next<T>(&self, parse: impl Fn(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut tap = self.0.as_ref().unwrap();
        let mut frame = vec![0; 65536];
        loop {
            match tap.read(&mut frame) {
                Ok(length) => {
                    if let Some(seen) = parse(&frame[VIRTIO_NET_HEADER_BYTES..length]) {
                        return seen;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait_readable(tap, deadline),
                Err(error) => panic!("the tap cannot be read: {error}"),
            }
        }
    }

    /// Sends a packet.
    pub(super) fn send(&self, datagram: &Datagram) {
        self.send_packet(0x0800, &datagram.encode());
    }

    /// Sends an IPv6 packet.
    pub(super) fn send6(&self, datagram: &Datagram6) {
        self.send_packet(0x86dd, &datagram.encode());
    }

    fn send_packet(&self, kind: u16, packet: &[u8]) {
        self.send_frame([0x02, 0, 0x54, 0x4d, 0, 0], GUEST_MAC, kind, packet);
    }

    /// Sends a frame.
    pub(super) fn send_frame(&self, destination: [u8; 6], source: [u8; 6], kind: u16, payload: &[u8]) {
        let mut frame = vec![0; VIRTIO_NET_HEADER_BYTES];
        frame.extend(destination);
        frame.extend(source);
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        self.0.as_ref().unwrap().write_all(&frame).unwrap();
    }
}

fn wait_readable(tap: &File, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: left.as_secs().try_into().unwrap(),
        tv_nsec: left.subsec_nanos().into(),
    };
    let ready = rustix::event::poll(&mut [PollFd::new(tap, PollFlags::IN)], Some(&timeout)).unwrap();
    assert!(ready > 0, "the guest got no such packet");
}

/// What a guest on a private network is told.
pub(super) fn private(grant: &InterfaceGrant) -> &GuestNetwork {
    match &grant.network {
        GrantedNetwork::Masquerade(network) => network,
        GrantedNetwork::Bridge(network) => panic!("a bridge: {network:?}"),
    }
}

/// Everything.
pub(super) struct Lab {
    pub(super) node: Namespace,
    pub(super) pod: Namespace,
    pub(super) guest: Guest,
    pub(super) grant: InterfaceGrant,
}

impl Lab {
    /// A pod with one guest interface, or nothing without root.
    pub(super) fn new() -> Option<Self> {
        Self::with_interfaces(1)
    }

    /// A pod whose guest has `count` interfaces, of which the lab holds the first.
    pub(super) fn with_interfaces(count: u8) -> Option<Self> {
        Self::make(count, false)
    }

    /// A pod with IPv6 beside IPv4, with one guest interface.
    pub(super) fn dual_stack() -> Option<Self> {
        Self::make(1, true)
    }

    fn make(count: u8, ipv6: bool) -> Option<Self> {
        let (node, pod) = pod(ipv6)?;
        let Attached { grant, mut queues } = attach_interfaces(&pod, interfaces(count)).unwrap().swap_remove(0);
        let tap = queues.swap_remove(0);
        Some(Self {
            node,
            pod,
            guest: Guest(Some(tap.into())),
            grant,
        })
    }

    /// Attaches again, as a shim does that was started again; the old tap is returned.
    pub(super) fn attach_again(&mut self) -> Guest {
        let tap = attach(&self.pod).unwrap().swap_remove(0).queues.swap_remove(0);
        std::mem::replace(&mut self.guest, Guest(Some(tap.into())))
    }

    /// Closes the tap.
    pub(super) fn without_guest(mut self) -> Self {
        self.guest = Guest(None);
        self
    }

    /// The rules as nft prints them.
    pub(super) fn rules(&self) -> String {
        self.pod.run("nft", &["list", "ruleset"])
    }
}

/// A node's namespace and a pod's, or nothing without root.
pub(super) fn pod(ipv6: bool) -> Option<(Namespace, Namespace)> {
    let (node, pod) = (Namespace::new()?, Namespace::new()?);
    node.ip(&format!("link add node0 type veth peer name eth0 netns {}", pod.path()));
    node.ip("addr add 10.244.1.1/24 dev node0");
    node.ip("link set node0 up");
    pod.ip("addr add 10.244.1.7/24 dev eth0");
    pod.ip("link set eth0 mtu 1450 up");
    pod.ip("link set lo up");
    pod.ip("route add default via 10.244.1.1");
    if ipv6 {
        node.ip("addr add fd00:244:1::1/64 dev node0 nodad");
        pod.ip("addr add fd00:244:1::7/64 dev eth0 nodad");
        pod.ip("-6 route add default via fd00:244:1::1");
        ready_for_ipv6(&node, "node0");
        ready_for_ipv6(&pod, "eth0");
    }
    Some((node, pod))
}

/// Waits until a link can be used for IPv6, as a pod's has been for long when its VM starts: the kernel says so by an address of its own.
fn ready_for_ipv6(namespace: &Namespace, link: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let addresses = namespace.run("ip", &["-6", "addr", "show", "dev", link, "scope", "link"]);
        if addresses.contains("fe80:") && !addresses.contains("tentative") {
            return;
        }
        assert!(Instant::now() < deadline, "{link} has no IPv6: {addresses}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Attaches one interface.
pub(super) fn attach(pod: &Namespace) -> Result<Vec<Attached>, NetworkError> {
    attach_interfaces(pod, interfaces(1))
}

/// Attaches these interfaces.
pub(super) fn attach_interfaces(
    pod: &Namespace,
    interfaces: Vec<GuestInterface>,
) -> Result<Vec<Attached>, NetworkError> {
    let namespace = PodNamespace::check(pod.0.try_clone().unwrap().into()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(super::super::attach(namespace, interfaces))
}

/// Attaches one more interface with this number.
pub(super) fn attach_beside(pod: &Namespace, number: u8) -> Result<Attached, NetworkError> {
    let namespace = PodNamespace::check(pod.0.try_clone().unwrap().into()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let interface = GuestInterface::check("more", "02:00:00:00:01:00").unwrap();
    runtime.block_on(super::super::attach_beside(namespace, number, interface))
}

/// A raw socket for ICMP, with a time limit on reads.
pub(super) fn icmp_socket() -> File {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )
    .unwrap();
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
    File::from(socket)
}

/// Sets where a raw socket sends to.
pub(super) fn connect(socket: &File, to: Ipv4Addr) {
    rustix::net::connect(socket, &SocketAddrV4::new(to, 0)).unwrap();
}
