//! virtio-vsock (virtio 1.2, section 5.10): stream sockets between the guest and Unix sockets of the host, with Firecracker's protocol.
//!
//! * A client of the host connects to the device's socket, writes `CONNECT <port>\n`, and reads `OK <host port>\n` once the guest has
//!   accepted; from then on bytes flow. A guest that refuses closes the connection.
//! * A connection of the guest to port n of the host (context id 2) goes to the socket whose path is the device's with `_n` appended.
//!
//! Everything happens inside of `handle`, so nothing is in flight when the VM is saved. Connections do not outlive that: a restored guest is
//! told that its transport was reset (5.10.6.7), and connects anew.

mod connection;
mod greeting;
mod muxer;
mod packet;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::muxer::Muxer;
use self::packet::{HEADER_BYTES, HOST_CID, Received, Sent};
use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{Activation, DeviceError, DeviceType, Event, HostSource, Memory, VirtioDevice, read_config_bytes};
use crate::ring::{Ring, Step};
use crate::state::{DeviceState, RestoreError, SavedDevice};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENTS: u16 = 2;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` as the driver reads it (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// A socket device.
pub struct Vsock {
    guest_cid: u64,
    muxer: Muxer,
    active: Option<Active>,
    chain: Chain,
    room: Room,
    /// The guest has yet to hear that its connections are gone.
    reset_pending: bool,
    /// The guest's packets wait until it takes ours.
    stalled: bool,
}

struct Active {
    receive: Ring,
    transmit: Ring,
    events: Ring,
}

/// What is saved of a socket device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    guest_cid: u64,
}

impl Vsock {
    /// A device for the guest with this context id (at least 3) that accepts clients of the host on `listener`, which is bound to `path`.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(guest_cid: u64, path: &Path, listener: UnixListener) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            muxer: Muxer::new(path, listener)?,
            active: None,
            chain: Chain::default(),
            room: Room::default(),
            reset_pending: false,
            stalled: false,
        })
    }

    fn on_transmit(&mut self, now: Instant) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let (muxer, room, guest_cid) = (&mut self.muxer, &mut self.room, self.guest_cid);
        let drained = active.transmit.drain(&mut self.chain, |memory, chain| {
            // Each packet may want an answer.
            if muxer.is_full() {
                return Ok(Step::Stall);
            }
            take_packet(memory, chain, room, |packet, data| {
                if packet.source_cid == guest_cid && packet.destination_cid == HOST_CID {
                    muxer.on_packet(packet, data, now);
                }
            })?;
            Ok(Step::Done(0))
        })?;
        self.stalled = !drained;
        Ok(())
    }

    /// Gives the guest what there is, at most as many packets as the queue has entries.
    fn fill(&mut self, now: Instant) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let ring = &mut active.receive;
        let mut budget = ring.size();
        while self.muxer.has_packets() {
            if budget == 0 {
                ring.kick_self();
                break;
            }
            budget -= 1;
            if !ring.next(&mut self.chain)? {
                if ring.enable_kicks()? {
                    continue;
                }
                break;
            }
            let memory = ring.memory().clone();
            match give_packet(
                &memory,
                &self.chain,
                &mut self.room,
                &mut self.muxer,
                self.guest_cid,
                now,
            )? {
                Some(written) => ring.complete(self.chain.head(), written)?,
                None => ring.put_back(1),
            }
        }
        ring.announce()
    }

    fn announce_reset(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if !self.reset_pending || !active.events.next(&mut self.chain)? {
            return Ok(());
        }
        let memory = active.events.memory().clone();
        let mut buffers = Buffers::gather(std::mem::take(&mut self.room), &memory, self.chain.writable())
            .map_err(|source| broken(format!("an event cannot be written: {source}")))?;
        let written = buffers.fill_from(&TRANSPORT_RESET);
        self.room = buffers.into_room();
        self.reset_pending = false;
        active
            .events
            .complete(self.chain.head(), u32::try_from(written).unwrap_or_default())?;
        active.events.announce()
    }

    /// The host's side, then what follows from it for the guest; the guest's packets too, if they had to wait.
    fn work(&mut self, transmit: bool) -> Result<(), DeviceError> {
        let now = Instant::now();
        if transmit {
            self.on_transmit(now)?;
        }
        let failed = |source| DeviceError::Host {
            device: "vsock".into(),
            what: "wait for its sockets",
            source,
        };
        let more = self.muxer.on_host(now).map_err(failed)?;
        self.fill(now)?;
        self.muxer.set_timer().map_err(failed)?;
        if let Some(active) = &self.active {
            if self.stalled && !self.muxer.is_full() {
                self.stalled = false;
                active.transmit.kick_self();
            }
            if more {
                active.receive.kick_self();
            }
        }
        Ok(())
    }
}

fn broken(what: String) -> DeviceError {
    DeviceError::Driver {
        device: "vsock".into(),
        what,
    }
}

/// Reads a header, in one copy that the guest cannot change, and hands it on with the data that it says there is.
fn take_packet(
    memory: &Memory,
    chain: &Chain,
    room: &mut Room,
    each: impl FnOnce(&Received, Buffers<'_>),
) -> Result<(), DeviceError> {
    let unreadable = |source: io::Error| broken(format!("a packet cannot be read: {source}"));
    let mut buffers = Buffers::gather(std::mem::take(room), memory, chain.readable()).map_err(unreadable)?;
    let mut header = [0; HEADER_BYTES];
    if buffers.copy_into(&mut header) < HEADER_BYTES {
        return Err(broken(format!("a packet of {} bytes", chain.readable_bytes())));
    }
    let packet = Received::parse(&header);
    let length = packet.length as usize;
    if length > buffers.len() {
        return Err(broken(format!(
            "a packet says {length} bytes of data and has {}",
            buffers.len()
        )));
    }
    buffers.truncate(length);
    each(&packet, buffers);
    Ok(())
}

/// Writes the next packet into a buffer of the guest's. `None` when there was none after all.
fn give_packet(
    memory: &Memory,
    chain: &Chain,
    room: &mut Room,
    muxer: &mut Muxer,
    guest_cid: u64,
    now: Instant,
) -> Result<Option<u32>, DeviceError> {
    let unwritable = |source: io::Error| broken(format!("a packet cannot be written: {source}"));
    let mut buffers = Buffers::gather(std::mem::take(room), memory, chain.writable()).map_err(unwritable)?;
    // Without room for a byte of data a connection's end could not be told from a full buffer.
    if buffers.len() <= HEADER_BYTES {
        return Err(broken(format!("a receive buffer of {} bytes", buffers.len())));
    }
    let packet: Option<Sent> = muxer.next_control().or_else(|| {
        buffers.skip(HEADER_BYTES);
        muxer.next_data(&mut buffers, now)
    });
    let Some(packet) = packet else {
        *room = buffers.into_room();
        return Ok(None);
    };
    let mut front = Buffers::gather(buffers.into_room(), memory, chain.writable()).map_err(unwritable)?;
    front.fill_from(&packet.bytes(guest_cid));
    *room = front.into_room();
    // At most 64 KiB of data.
    Ok(u32::try_from(HEADER_BYTES).ok().map(|header| header + packet.length))
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn name(&self) -> &'static str {
        "vsock"
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        self.active = Some(Active {
            receive: Ring::take(&mut activation, RECEIVE, self.name())?,
            transmit: Ring::take(&mut activation, TRANSMIT, self.name())?,
            events: Ring::take(&mut activation, EVENTS, self.name())?,
        });
        Ok(())
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![HostSource {
            fd: self.muxer.descriptor().as_raw_fd(),
            readable: true,
            writable: false,
        }]
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        match event {
            Event::Queue(TRANSMIT) => self.work(true),
            Event::Queue(EVENTS) => self.announce_reset(),
            Event::Queue(_) => self.work(false),
            Event::Host(_) => {
                self.announce_reset()?;
                self.work(false)
            }
        }
    }

    fn reset(&mut self) {
        self.active = None;
        self.reset_pending = false;
        self.stalled = false;
        self.muxer.clear();
    }

    fn save(&self) -> SavedDevice {
        let active = self.active.as_ref();
        SavedDevice {
            queues: vec![
                active.map(|active| active.receive.position()),
                active.map(|active| active.transmit.position()),
                active.map(|active| active.events.position()),
            ],
            device: DeviceState::Vsock(VsockState {
                guest_cid: self.guest_cid,
            }),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(VsockState { guest_cid }) = state else {
            return Err(RestoreError::kind(self.name(), state));
        };
        if *guest_cid != self.guest_cid {
            return Err(RestoreError::differs(
                self.name(),
                "context id",
                guest_cid,
                &self.guest_cid,
            ));
        }
        self.reset_pending = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
