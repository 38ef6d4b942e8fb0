//! A hostile guest and hostile clients of the host on a socket device.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use node_shim_virtio::device::{Event, VirtioDevice};
use node_shim_virtio::testing::driver::put;
use node_shim_virtio::testing::{Descriptor, DriverQueue, activate, guest_memory};
use node_shim_virtio::vsock::Vsock;

const HEADER: u64 = 0x8_0000;
const RECEIVE: u64 = 0x2_0000;

#[derive(Arbitrary, Debug)]
enum Step {
    /// The guest sends a packet; its header's fields are mostly right.
    Packet {
        cids: u8,
        host_port: u8,
        guest_port: u8,
        length: u16,
        claimed: Option<u32>,
        kind: u8,
        operation: u8,
        flags: u8,
        allocated: u32,
        forwarded: u32,
        cut: u8,
    },
    /// The guest offers a buffer to receive into.
    Offer { length: u16 },
    /// A client of the host connects.
    Connect,
    /// A client says something.
    Say { client: u8, bytes: Vec<u8> },
    /// A client asks for a port.
    Ask { client: u8, port: u8 },
    /// A client reads.
    Listen { client: u8 },
    /// A client goes.
    Leave { client: u8 },
    /// The event loop.
    Event(u8),
    /// Another driver.
    Reset,
}

fn sockets() -> &'static (PathBuf, UnixListener, UnixListener) {
    static SOCKETS: OnceLock<(PathBuf, UnixListener, UnixListener)> = OnceLock::new();
    SOCKETS.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("fuzz-vsock-{}", std::process::id()));
        let port = path.with_file_name(format!("fuzz-vsock-{}_1", std::process::id()));
        for path in [&path, &port] {
            let _ = std::fs::remove_file(path);
        }
        let listeners = (
            UnixListener::bind(&path).expect("a socket"),
            UnixListener::bind(&port).expect("a socket"),
        );
        listeners.1.set_nonblocking(true).expect("a socket");
        (path, listeners.0, listeners.1)
    })
}

fuzz_target!(init: node_shim_fuzz::ignore_broken_pipes(), |steps: Vec<Step>| {
    let (path, listener, service) = sockets();
    let memory = guest_memory();
    let mut device = Vsock::new(3, path, listener.try_clone().expect("a socket")).expect("a device");
    let fresh =
        || -> [DriverQueue; 3] { std::array::from_fn(|index| DriverQueue::new(0x1000 + 0x1000 * index as u64, 16)) };
    let mut queues = fresh();
    activate(&mut device, &memory, 0, &queues).expect("all queues are there");
    let mut clients: Vec<UnixStream> = Vec::new();
    for step in steps.iter().take(64) {
        let picked = |client: &u8, count: usize| (count > 0).then(|| usize::from(*client) % count.max(1));
        let mut outcome = Ok(());
        match step {
            Step::Packet {
                cids,
                host_port,
                guest_port,
                length,
                claimed,
                kind,
                operation,
                flags,
                allocated,
                forwarded,
                cut,
            } => {
                let mut header = [0; 44];
                header[0] = 3 + (cids & 1);
                header[8] = 2 + (cids >> 1 & 1);
                // Ports of the host that its clients get start at 2^30.
                let host_port = if *host_port < 128 {
                    u32::from(host_port % 3)
                } else {
                    (1 << 30) + u32::from(host_port % 4)
                };
                header[16..20].copy_from_slice(&u32::from(guest_port % 4).to_le_bytes());
                header[20..24].copy_from_slice(&host_port.to_le_bytes());
                header[24..28].copy_from_slice(&claimed.unwrap_or(u32::from(*length)).to_le_bytes());
                header[28] = if kind % 8 == 0 { *kind } else { 1 };
                header[30] = operation % 9;
                header[32] = *flags;
                header[36..40].copy_from_slice(&allocated.to_le_bytes());
                header[40..44].copy_from_slice(&forwarded.to_le_bytes());
                put(&memory, HEADER, &header);
                let total = 44 + u32::from(*length);
                let cut = u32::from(*cut).min(total);
                let chain = [
                    Descriptor::readable(HEADER, cut),
                    Descriptor::readable(HEADER + u64::from(cut), total - cut),
                ];
                queues[1].send(&memory, 0, &chain);
                outcome = device.handle(Event::Queue(1));
            }
            Step::Offer { length } => {
                let head = queues[0].available % 16;
                queues[0].send(&memory, head, &[Descriptor::writable(RECEIVE, u32::from(*length))]);
                outcome = device.handle(Event::Queue(0));
            }
            Step::Connect if clients.len() < 8 => {
                let client = UnixStream::connect(path).expect("a listener");
                client.set_nonblocking(true).expect("a socket");
                clients.push(client);
            }
            Step::Connect => {}
            Step::Say { client, bytes } => {
                if let Some(index) = picked(client, clients.len()) {
                    let _ = clients[index].write(bytes);
                }
            }
            Step::Ask { client, port } => {
                if let Some(index) = picked(client, clients.len()) {
                    let _ = clients[index].write(format!("CONNECT {}\n", port % 4).as_bytes());
                }
            }
            Step::Listen { client } => {
                if let Some(index) = picked(client, clients.len()) {
                    let _ = clients[index].read(&mut [0; 4096]);
                }
            }
            Step::Leave { client } => {
                if let Some(index) = picked(client, clients.len()) {
                    clients.swap_remove(index);
                }
            }
            Step::Event(event) => {
                outcome = device.handle(if *event < 128 {
                    Event::Host(0)
                } else {
                    Event::Queue(u16::from(event % 4))
                });
                // Nobody serves the guest for long.
                while clients.len() < 8 {
                    let Ok((stream, _)) = service.accept() else { break };
                    stream.set_nonblocking(true).expect("a socket");
                    clients.push(stream);
                }
            }
            Step::Reset => {}
        }
        if outcome.is_err() || matches!(step, Step::Reset) {
            device.reset();
            queues = fresh();
            for queue in &queues {
                put(&memory, queue.available_ring, &[0; 4]);
                put(&memory, queue.used_ring, &[0; 4]);
            }
            activate(&mut device, &memory, 0, &queues).expect("all queues are there");
        }
    }
    drop(clients);
    device.reset();
    // What still waits in the listeners is of this run.
    while service.accept().is_ok() {}
    while listener.accept().is_ok() {}
});
