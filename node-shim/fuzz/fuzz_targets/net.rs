//! A hostile driver of a network device with two queue pairs, and a hostile network behind it.
#![no_main]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, assert_honest, drive, guest};
use node_shim_virtio::net::offload::Offloads;
use node_shim_virtio::net::{HEADER_BYTES, Link, Net, Options};
use node_shim_virtio::rate_limit::Limits;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// A datagram socket in the place of a tap's queue.
struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Socket {
    fn configure(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn attach(&mut self, _attached: bool) -> io::Result<()> {
        Ok(())
    }
}

/// What leaves the guest is its own before the host has written the checksum that it was asked for, and after it.
fn check(sent: &mut [u8]) {
    let (header, frame) = sent.split_at_mut(HEADER_BYTES);
    assert_honest(frame);
    if header[0] & 1 != 0 {
        let at = usize::from(u16::from_le_bytes([header[6], header[7]]))
            + usize::from(u16::from_le_bytes([header[8], header[9]]));
        frame[at..at + 2].copy_from_slice(&[0xa5, 0x5a]);
        assert_honest(frame);
    }
}

fuzz_target!(|input: (u64, Vec<Action>, Vec<Vec<u8>>)| {
    let (features, actions, frames) = input;
    let (mut links, mut networks) = (Vec::<Box<dyn Link>>::new(), Vec::new());
    for _ in 0..2 {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (link, network) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).expect("sockets");
        links.push(Box::new(Socket(link)));
        networks.push(network);
    }
    let options = Options {
        name: "net".into(),
        guest: guest(),
        receive_limits: Limits::default(),
        transmit_limits: Limits::default(),
        log: |_| {},
        on_thread: node_shim_virtio::threads::unconfined,
    };
    let mut frames = frames.into_iter();
    let mut device = Net::on_caller(options, links).expect("descriptors");
    let mut network_acts = || {
        for network in &networks {
            // A full or refused datagram is one that the network lost.
            if let Some(frame) = frames.next() {
                let _ = rustix::net::send(network, &frame, SendFlags::empty());
            }
            let mut sent = [0; 70_000];
            while let Ok((length, _)) = rustix::net::recv(network, &mut sent, RecvFlags::empty()) {
                check(&mut sent[..length]);
            }
        }
    };
    drive(&mut device, features, &actions, &mut network_acts);
    network_acts();
});
