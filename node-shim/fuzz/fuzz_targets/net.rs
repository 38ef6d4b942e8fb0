//! A hostile driver of a network device, and a hostile network behind it.
#![no_main]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::{Action, drive, guest};
use node_shim_virtio::net::offload::Offloads;
use node_shim_virtio::net::{Link, Net};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// A datagram socket in the place of a tap.
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
}

fuzz_target!(|input: (u64, Vec<Action>, Vec<Vec<u8>>)| {
    let (features, actions, frames) = input;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (link, network) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).expect("sockets");
    let mut frames = frames.into_iter();
    let mut device = Net::new("net", Box::new(Socket(link)), guest());
    drive(&mut device, features, &actions, || {
        // A full or refused datagram is one that the network lost.
        if let Some(frame) = frames.next() {
            let _ = rustix::net::send(&network, &frame, SendFlags::empty());
        }
        let mut sent = [0; 2048];
        while let Ok((length, _)) = rustix::net::recv(&network, &mut sent, RecvFlags::empty()) {
            if length >= 24 {
                assert_eq!(
                    sent[18..24],
                    guest().mac.0,
                    "a frame with another's MAC address left the guest"
                );
            }
        }
    });
});
