//! The kernel's events of devices (`NETLINK_KOBJECT_UEVENT` of Linux): `ACTION@DEVPATH`, then `KEY=VALUE`, each ended by a byte 0.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};

use super::Kind;

/// The multicast group that the kernel's own events go to. Those of udev go to another one.
const KERNEL_GROUP: u32 = 1;
/// Longest event in bytes: `UEVENT_BUFFER_SIZE` and what stands before it.
const EVENT_BYTES: usize = 8 * 1024;

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A device of this kind and name came.
    Plugged(Kind, String),
    /// Something else.
    Other,
    /// There were more events than the socket could hold.
    Lost,
    /// Nothing, for as long as was to be waited.
    Silence,
}

/// A socket that hears them.
pub(super) struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self { socket })
    }

    /// Waits for the next one, no longer than this time where one is given.
    pub(super) fn next(&self, at_most: Option<Duration>) -> io::Result<Heard> {
        let time = at_most.and_then(|time| Timespec::try_from(time).ok());
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut ready, time.as_ref()) {
            Ok(0) => return Ok(Heard::Silence),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Heard::Other),
            Err(error) => return Err(error.into()),
        }
        let mut bytes = [0; EVENT_BYTES];
        match recvfrom(&self.socket, &mut bytes, RecvFlags::empty()) {
            Ok((count, _, from)) => {
                let sender = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
                // Others than the kernel have numbers.
                let from_kernel = sender.is_some_and(|sender| sender.pid() == 0);
                let event = bytes.get(..count).filter(|_| from_kernel);
                Ok(event.map_or(Heard::Other, parse))
            }
            Err(Errno::NOBUFS) => Ok(Heard::Lost),
            Err(Errno::INTR) => Ok(Heard::Other),
            Err(error) => Err(error.into()),
        }
    }
}

fn parse(event: &[u8]) -> Heard {
    let mut fields = event
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok());
    let Some(("add", path)) = fields.next().and_then(|header| header.split_once('@')) else {
        return Heard::Other;
    };
    let subsystem = fields.find_map(|field| field.strip_prefix("SUBSYSTEM="));
    let kind = Kind::ALL.into_iter().find(|kind| subsystem == Some(kind.word()));
    let name = path.rsplit_once('/').map(|(_, name)| name);
    match (kind, name) {
        (Some(kind), Some(name)) if kind.owns(name) => Heard::Plugged(kind, name.to_owned()),
        (Some(_) | None, Some(_) | None) => Heard::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_come_are_heard_of_and_nothing_else() {
        let event = |header: &str, subsystem: &str| {
            format!("{header}\0ACTION=x\0DEVPATH=/devices/system/cpu/cpu9\0SUBSYSTEM={subsystem}\0SEQNUM=1\0")
        };
        for (header, subsystem, heard) in [
            (
                "add@/devices/system/cpu/cpu2",
                "cpu",
                Heard::Plugged(Kind::Cpu, "cpu2".into()),
            ),
            (
                "add@/devices/system/memory/memory40",
                "memory",
                Heard::Plugged(Kind::Memory, "memory40".into()),
            ),
            ("remove@/devices/system/cpu/cpu2", "cpu", Heard::Other),
            ("offline@/devices/system/cpu/cpu2", "cpu", Heard::Other),
            ("add@/devices/system/cpu/cpu2", "memory", Heard::Other),
            ("add@/devices/system/cpu/..", "cpu", Heard::Other),
            ("add@/devices/system/cpu/cpu", "cpu", Heard::Other),
            ("add@/devices/system/cpu/cpuidle", "cpu", Heard::Other),
            ("add@cpu2", "cpu", Heard::Other),
            ("add@/devices/pci0000:00/0000:00:01.0", "pci", Heard::Other),
        ] {
            assert_eq!(parse(event(header, subsystem).as_bytes()), heard, "{header}");
        }
        for hostile in [&b""[..], b"\0", b"add@", b"\xff\0SUBSYSTEM=cpu", b"add@/a/cpu1"] {
            assert_eq!(parse(hostile), Heard::Other);
        }
    }

    /// The kernel repeats an event for who writes to a device's `uevent`: what hears it is the real socket.
    #[test]
    fn the_kernel_is_heard() {
        let cpu = std::path::Path::new("/sys/devices/system/cpu/cpu0/uevent");
        let Ok(events) = Uevents::listen() else {
            return eprintln!("SKIPPED: no netlink here");
        };
        if std::fs::write(cpu, "add").is_err() {
            return eprintln!("SKIPPED: only root may have the kernel repeat an event");
        }
        loop {
            match events.next(Some(Duration::from_secs(10))).unwrap() {
                Heard::Plugged(kind, name) if (kind, name.as_str()) == (Kind::Cpu, "cpu0") => break,
                Heard::Silence => panic!("the kernel says nothing"),
                Heard::Plugged(..) | Heard::Other | Heard::Lost => {}
            }
        }
        assert_eq!(events.next(Some(Duration::ZERO)).unwrap(), Heard::Silence);
    }
}
