//! A hostile driver: what the fuzzer chooses is written to guest memory, rings and registers, and the device under it must neither panic nor
//! touch anything outside of guest memory.

pub mod disk;

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use arbitrary::Arbitrary;
use node_shim_protocol::config::Route;
use node_shim_virtio::block::Format;
use node_shim_virtio::block::format;
use node_shim_virtio::block::storage::Access;
use node_shim_virtio::device::{Event, Memory, VirtioDevice};
use node_shim_virtio::net::responder::{GuestIpv4, GuestIpv6, Network};
use node_shim_virtio::net::{GuestIdentity, MacAddress};
use node_shim_virtio::testing::driver::put;
use node_shim_virtio::testing::{Descriptor, DriverQueue, activate, guest_memory};
use vmm_sys_util::eventfd::EventFd;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 16;
/// Guest-physical address of the first queue; each takes less than a page.
const QUEUES_AT: u64 = 0x1000;
/// Where small offsets into guest memory point to, so that descriptors often hit what was written.
const DATA_AT: u64 = 0x1_0000;

/// An address: mostly one where there is data, sometimes any at all.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Address {
    /// In the data.
    Data(u16),
    /// Near the end of guest memory.
    End(u8),
    /// In the queues themselves.
    Queues(u16),
    /// Anywhere.
    Any(u64),
}

impl Address {
    /// The guest-physical address.
    pub fn resolve(self) -> u64 {
        match self {
            Self::Data(offset) => DATA_AT + u64::from(offset),
            Self::End(before) => node_shim_virtio::testing::MEMORY_BYTES as u64 - u64::from(before),
            Self::Queues(offset) => QUEUES_AT + u64::from(offset),
            Self::Any(address) => address,
        }
    }
}

/// A descriptor.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct AnyDescriptor {
    address: Address,
    length: Length,
    flags: u8,
    next: u8,
}

/// A length: mostly a small one.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Small(u8),
    Sectors(u8),
    Any(u32),
}

impl AnyDescriptor {
    /// What the driver writes.
    pub fn resolve(self) -> Descriptor {
        let length = match self.length {
            Length::Small(bytes) => u32::from(bytes),
            Length::Sectors(sectors) => u32::from(sectors) * 512,
            Length::Any(bytes) => bytes,
        };
        Descriptor {
            address: self.address.resolve(),
            length,
            flags: u16::from(self.flags & 7),
            next: u16::from(self.next % 20),
        }
    }
}

/// One thing that a driver does.
#[derive(Arbitrary, Debug)]
pub enum Action {
    /// Write anything anywhere.
    Put {
        /// Where.
        address: Address,
        /// What.
        bytes: Vec<u8>,
    },
    /// Write one descriptor of a queue.
    Describe {
        /// Which queue.
        queue: u8,
        /// Which entry.
        index: u8,
        /// What.
        descriptor: AnyDescriptor,
    },
    /// Write and offer a chain that is well linked.
    Send {
        /// On which queue.
        queue: u8,
        /// From which entry on.
        head: u8,
        /// What.
        chain: Vec<AnyDescriptor>,
    },
    /// Offer any head.
    Offer {
        /// On which queue.
        queue: u8,
        /// Which.
        head: u16,
    },
    /// Set the available index.
    Jump {
        /// Of which queue.
        queue: u8,
        /// To what.
        index: u16,
    },
    /// Kick a queue.
    Kick(u8),
    /// The host has something.
    Host,
    /// Come to rest, be saved, and go on.
    Rest,
    /// Reset and activate again.
    Reset {
        /// With which of the offered features.
        features: u64,
    },
}

/// Most actions in one run: more only make it slow.
const MAX_ACTIONS: usize = 64;

/// A socket whose other end is closed is an error, as in every Rust program, and not the end of this one, whose `main` is C.
///
/// # Panics
/// When the signal cannot be ignored.
pub fn ignore_broken_pipes() {
    // SAFETY: no handler is installed, so nothing runs at odd moments.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    assert_ne!(before, libc::SIG_ERR, "SIGPIPE");
}

/// Lets a driver do these things to a device. `host` is what the host does when it has something.
pub fn drive(device: &mut dyn VirtioDevice, features: u64, actions: &[Action], mut host: impl FnMut()) {
    let memory = guest_memory();
    let mut queues = fresh_queues(device);
    let mut kicks = start(device, &memory, features, &queues);
    for action in actions.iter().take(MAX_ACTIONS) {
        let count = queues.len();
        let pick = |queue: &u8| usize::from(*queue) % count;
        // An error means that the device gave up, and that the transport would not call it again before a reset.
        let outcome = match action {
            Action::Put { address, bytes } => {
                put(&memory, address.resolve(), bytes);
                Ok(())
            }
            Action::Describe {
                queue,
                index,
                descriptor,
            } => {
                queues[pick(queue)].write_descriptor(&memory, u16::from(*index) % QUEUE_SIZE, descriptor.resolve());
                Ok(())
            }
            Action::Send { queue, head, chain } => {
                let chain: Vec<Descriptor> = chain.iter().take(20).map(|any| any.resolve()).collect();
                let queue = &mut queues[pick(queue)];
                // Only WRITE and INDIRECT are the fuzzer's: the links are right.
                let chain: Vec<Descriptor> = chain
                    .iter()
                    .map(|one| Descriptor {
                        flags: one.flags & !Descriptor::NEXT,
                        ..*one
                    })
                    .collect();
                queue.send(&memory, u16::from(*head) % QUEUE_SIZE, &chain);
                Ok(())
            }
            Action::Offer { queue, head } => {
                queues[pick(queue)].offer(&memory, *head);
                Ok(())
            }
            Action::Jump { queue, index } => {
                queues[pick(queue)].jump_to(&memory, *index);
                Ok(())
            }
            // A device with a thread of its own waits for the kick, and says by a host event that it gave up.
            Action::Kick(queue) if device.own_kicks() => {
                kicks[pick(queue)].write(1).expect("an eventfd with room");
                device.handle(Event::Host(0))
            }
            Action::Kick(queue) => device.handle(Event::Queue(u16::from(*queue % 6))),
            Action::Host => {
                host();
                device.handle(Event::Host(0))
            }
            Action::Rest => device.pause().map(|()| {
                let saved = device.save();
                assert_eq!(saved, device.save(), "nothing moves while the device is at rest");
                device.resume();
            }),
            Action::Reset { features } => {
                device.reset();
                queues = fresh_queues(device);
                kicks = start(device, &memory, *features, &queues);
                Ok(())
            }
        };
        if outcome.is_err() {
            device.reset();
            queues = fresh_queues(device);
            kicks = start(device, &memory, features, &queues);
        }
    }
    device.reset();
    assert_eq!(
        Arc::strong_count(&memory),
        1,
        "a device that was reset has let go of guest memory"
    );
}

/// Most reads of one image.
const MAX_READS: u64 = 64;

/// Opens an image of these bytes and reads here and there in its disk.
pub fn read_image(bytes: &[u8], format: Format) {
    let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).expect("room for it");
    let Ok(image) = format::open(file, Path::new("image"), Some(format), None) else {
        return;
    };
    let storage = image.storage;
    let mut buffer = [0; 8192];
    for read in 0..MAX_READS {
        // From the start on, and all over the disk.
        let spread = storage.len() / MAX_READS * read / 512 * 512;
        for offset in [read * 8192, spread, storage.len().saturating_sub(8192)] {
            let left = storage.len().saturating_sub(offset).min(8192);
            let Ok(length) = usize::try_from(left) else { continue };
            let fits = storage.read_bytes_at(&mut buffer[..length], offset).is_ok();
            let mut extents = Vec::new();
            if length > 0 && storage.extents(offset, left, Access::Read, &mut extents) {
                assert!(fits, "what extents say can be read");
                assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), left);
                assert!(
                    extents
                        .iter()
                        .all(|extent| extent.offset + extent.length <= bytes.len() as u64)
                );
            }
        }
    }
}

fn fresh_queues(device: &dyn VirtioDevice) -> Vec<DriverQueue> {
    (0..device.queue_max_sizes().len() as u64)
        .map(|index| DriverQueue::new(QUEUES_AT + 0x1000 * index, QUEUE_SIZE))
        .collect()
}

fn start(device: &mut dyn VirtioDevice, memory: &Arc<Memory>, features: u64, queues: &[DriverQueue]) -> Vec<EventFd> {
    for queue in queues {
        put(memory, queue.available_ring, &[0; 4]);
        put(memory, queue.used_ring, &[0; 4]);
    }
    let offered = device.features() | 1 << 28 | 1 << 29 | 1 << 32;
    let (_, kicks) = activate(device, memory, features & offered, queues).expect("all queues are there");
    kicks
}

/// The guest of the network targets.
pub fn guest() -> GuestIdentity {
    GuestIdentity {
        mac: MacAddress([2, 0, 0, 0, 0, 2]),
        network: Network::Private,
        ipv4: Some(GuestIpv4 {
            address: Ipv4Addr::new(10, 0, 2, 2),
            prefix_length: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 1)),
            routes: Vec::new(),
            server: Ipv4Addr::new(10, 0, 2, 1),
        }),
        gateway_mac: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: 1450,
        ipv6: Some(GuestIpv6 {
            address: Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2),
            prefix_length: 64,
            gateway: Some(Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 1)),
            router: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            router_mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
        }),
        name_servers: vec![
            Ipv4Addr::new(10, 96, 0, 10).into(),
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10).into(),
        ],
        search: vec![
            "default.svc.cluster.local".into(),
            "svc.cluster.local".into(),
            "cluster.local".into(),
        ],
        host_name: "fuzz".into(),
    }
}

/// The same guest on a network of others, with routes beyond its gateway.
pub fn bridged_guest() -> GuestIdentity {
    let mut guest = guest();
    guest.network = Network::Shared;
    let ipv4 = guest.ipv4.as_mut().expect("IPv4");
    ipv4.server = Ipv4Addr::new(169, 254, 84, 77);
    ipv4.routes = vec![Route {
        destination: Ipv4Addr::UNSPECIFIED,
        prefix_length: 0,
        gateway: Some(Ipv4Addr::new(10, 0, 2, 1)),
    }];
    let ipv6 = guest.ipv6.as_mut().expect("IPv6");
    ipv6.gateway = None;
    ipv6.router_mac = Some(MacAddress([10, 0, 0, 0, 0, 9]));
    guest
}

/// A frame that the guest may send: its own MAC, and its own addresses in ARP, IPv4 and IPv6. Written apart from the guard, which it checks.
///
/// # Panics
/// When it is another one.
pub fn assert_honest(frame: &[u8]) {
    assert_honest_of(&guest(), frame);
}

/// The same of [`bridged_guest`], which also has link-local addresses, and finds its neighbours itself.
///
/// # Panics
/// When it is another one.
pub fn assert_honest_of(guest: &GuestIdentity, frame: &[u8]) {
    let private = guest.network == Network::Private;
    let own4 = guest.ipv4.as_ref().expect("IPv4").address.octets();
    assert_eq!(frame[6..12], guest.mac.0, "MAC address");
    let packet = &frame[14..];
    match [frame[12], frame[13]] {
        [0x08, 0x00] => assert_eq!(packet[12..16], own4, "IPv4 source"),
        [0x86, 0xdd] => {
            let address = guest.ipv6.expect("IPv6").address.octets();
            let link_local = |text: &[u8]| !private && text[..8] == [0xfe, 0x80, 0, 0, 0, 0, 0, 0];
            let icmp = packet[6] == 58;
            let nobody = !private && ![6, 17].contains(&packet[6]) && packet[8..24] == [0; 16];
            let source = &packet[8..24];
            assert!(source == address || link_local(source) || nobody, "IPv6 source");
            // Without extension headers: of neighbour discovery only its own advertisement, and on a network of others its questions.
            if icmp {
                match packet[40] {
                    135 if !private => {}
                    133..=135 | 137 => panic!("neighbour discovery of kind {}", packet[40]),
                    136 => assert!(
                        packet[48..64] == address || link_local(&packet[48..64]),
                        "advertised address"
                    ),
                    _ => {}
                }
            }
        }
        [0x08, 0x06] => {
            assert_eq!(packet[8..14], guest.mac.0, "ARP sender");
            assert!(packet[14..18] == own4 || packet[14..18] == [0; 4], "ARP address");
        }
        other => panic!("a frame of kind {other:x?}"),
    }
}
