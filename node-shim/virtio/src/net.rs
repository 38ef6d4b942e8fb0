//! virtio-net (virtio 1.2, section 5.1) on a tap. The guest's DHCP, ARP, router solicitations and neighbour discovery are answered here, so
//! that nothing else has to run in the pod, and the guest sends nothing but what is its own.
//!
//! ```text
//!                                 thread of queue pair 0 (1, 2, 3 ...)
//! guest --transmit queue--> guard --rate limit--> check of offloads --writev--> tap's queue 0 (1, 2, 3 ...)
//!                             | DHCP, ARP and ND for the gateway, ...
//!                             v
//!                         responder
//!                             v
//! guest <--receive queue--- receive <--rate limit--readv--- tap's queue 0 (1, 2, 3 ...)
//!
//! guest --control queue--> event loop: how many pairs are in use, offloads, announcements
//! ```

pub mod address;
mod control;
pub mod frame;
pub mod guard;
pub mod ipv6;
pub mod link;
pub mod offload;
mod pair;
mod receive;
pub mod responder;
mod thread;
mod traffic;
mod transmit;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_net;

pub use self::address::MacAddress;
use self::control::{Command, ControlQueue, FEATURE_ANNOUNCE, FEATURE_CONTROL, FEATURE_MULTI_QUEUE};
pub use self::link::{Link, Tap};
use self::offload::{FEATURE_MERGEABLE, Offloads};
use self::pair::{Events, Pair, Queues, Shared};
use self::receive::Receiver;
pub use self::responder::GuestIdentity;
use self::responder::Responder;
use self::thread::{Failure, PairThread};
use self::traffic::{Counters, Valve};
pub use self::traffic::{Log, TransmitDrops};
use self::transmit::Transmitter;
use crate::device::{Activation, DeviceError, DeviceType, Event, HostSource, VirtioDevice, read_config_bytes};
use crate::rate_limit::Limits;
use crate::ring::Ring;
use crate::state::{DeviceState, QueuePosition, RestoreError, SavedDevice};
use crate::transport::Interrupts;

/// Bytes of `struct virtio_net_hdr`, with `num_buffers` (5.1.6), in the queues and on the tap.
pub const HEADER_BYTES: usize = 12;
/// Most queue pairs.
pub const PAIRS_MAX: u16 = 4;
/// Entries of each queue, and of the control queue.
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;
/// The queues of so many pairs, and the control queue: from [`PAIRS_MAX`] on backwards.
const QUEUE_SIZES: [u16; 2 * PAIRS_MAX as usize + 1] = {
    let mut sizes = [QUEUE_SIZE; 2 * PAIRS_MAX as usize + 1];
    sizes[2 * PAIRS_MAX as usize] = CONTROL_QUEUE_SIZE;
    sizes
};
/// Ethernet header with VLAN tag.
const ETHERNET_BYTES: usize = 18;
/// MAC address, status, queue pairs, MTU (5.1.4).
const CONFIG_BYTES: usize = 12;
/// Which of [`Net::host_sources`] is the control queue.
const CONTROL_SOURCE: usize = 1;

/// What is special about one interface.
#[derive(Clone, Debug)]
pub struct Options {
    /// For logs and threads, such as `net0`.
    pub name: String,
    /// Whom it belongs to.
    pub guest: GuestIdentity,
    /// How much it may receive.
    pub receive_limits: Limits,
    /// How much it may send.
    pub transmit_limits: Limits,
    /// Where lines for a person go.
    pub log: Log,
}

/// A virtio network device.
pub struct Net {
    shared: Arc<Shared>,
    places: Vec<Place>,
    failure: Arc<Failure>,
    /// What the guest was told, which a restored one goes on with.
    mtu: u16,
    active: Option<Active>,
    /// From a saved state, for the activation that follows.
    restored: Option<NetState>,
    /// The guest was restored, and the network is to be told when it goes on.
    arrived: bool,
}

/// Where a queue pair is served.
enum Place {
    /// On whatever thread delivers the events.
    Caller(Box<Pair>),
    /// On its own.
    Thread(PairThread),
}

/// What is saved of an interface. Frames on their way are lost, as on any network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    mac: [u8; 6],
    mtu: u16,
    /// Queue pairs that there are, and that the driver uses.
    pairs: u16,
    pairs_in_use: u16,
    /// Bits of [`Offloads`].
    offloads: u32,
}

/// From activation to reset.
struct Active {
    features: u64,
    interrupts: Arc<dyn Interrupts>,
    config_vector: Option<u16>,
    control: Option<ControlQueue>,
    pairs_in_use: u16,
    /// Pairs whose queues the driver enabled, from the first on.
    pairs_enabled: u16,
    offloads: Offloads,
    /// The driver is asked to announce itself.
    announce: bool,
}

impl Place {
    fn with<T: Send + 'static>(&mut self, order: impl FnOnce(&mut Pair) -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Caller(pair) => Ok(order(pair)),
            Self::Thread(thread) => thread.with(order),
        }
    }
}

impl Net {
    /// An interface whose queue pairs have a thread each. `links` are the queues of its tap, 1 to [`PAIRS_MAX`].
    ///
    /// # Errors
    /// When the host refuses threads or descriptors, or a queue of the tap.
    pub fn start(options: Options, links: Vec<Box<dyn Link>>) -> io::Result<Self> {
        let name = options.name.clone();
        Self::new(options, links, |number, pair, failure| {
            let name = format!("{name}-{number}");
            PairThread::start(name, pair, Arc::clone(failure)).map(Place::Thread)
        })
    }

    /// An interface that is served by the thread that delivers its events, where the rate limit is not waited for: for tests and fuzz targets.
    ///
    /// # Errors
    /// When the host refuses descriptors, or a queue of the tap.
    pub fn on_caller(options: Options, links: Vec<Box<dyn Link>>) -> io::Result<Self> {
        Self::new(options, links, |_, pair, _| Ok(Place::Caller(Box::new(pair))))
    }

    fn new(
        options: Options,
        links: Vec<Box<dyn Link>>,
        mut place: impl FnMut(usize, Pair, &Arc<Failure>) -> io::Result<Place>,
    ) -> io::Result<Self> {
        let Options {
            name,
            guest,
            receive_limits,
            transmit_limits,
            log,
        } = options;
        if !(1..=usize::from(PAIRS_MAX)).contains(&links.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let now = Instant::now();
        let mtu = guest.mtu;
        let shared = Arc::new(Shared {
            name,
            responder: Responder::new(guest),
            counters: Counters::default(),
            receive_valve: Valve::new(receive_limits, now),
            transmit_valve: Valve::new(transmit_limits, now),
            log,
        });
        let failure = Arc::new(Failure::new()?);
        let mut places = Vec::with_capacity(links.len());
        for (number, link) in links.into_iter().enumerate() {
            let mut pair = Pair::new(Arc::clone(&shared), link);
            if number > 0 {
                pair.switch(false)?;
            }
            places.push(place(number, pair, &failure)?);
        }
        Ok(Self {
            shared,
            places,
            failure,
            mtu,
            active: None,
            restored: None,
            arrived: false,
        })
    }

    /// Queue pairs.
    pub fn pairs(&self) -> u16 {
        u16::try_from(self.places.len()).unwrap_or(PAIRS_MAX)
    }

    /// Frames of the guest that went nowhere.
    pub fn transmit_drops(&self) -> TransmitDrops {
        self.shared.counters.sent_in_vain()
    }

    /// Frames for the guest that fit into no buffers.
    pub fn receive_drops(&self) -> u64 {
        self.shared.counters.received_in_vain()
    }

    fn host_error(&self, what: &'static str, source: io::Error) -> DeviceError {
        DeviceError::Host {
            device: self.shared.name.clone(),
            what,
            source,
        }
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut status = virtio_net::VIRTIO_NET_S_LINK_UP;
        if self.active.as_ref().is_some_and(|active| active.announce) {
            status |= virtio_net::VIRTIO_NET_S_ANNOUNCE;
        }
        let mut config = [0; CONFIG_BYTES];
        config[..6].copy_from_slice(&self.shared.responder.guest().mac.0);
        config[6..8].copy_from_slice(&u16::try_from(status).unwrap_or(1).to_le_bytes());
        config[8..10].copy_from_slice(&self.pairs().to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }

    /// Takes a pair's queues; `None` where the driver enabled none for a pair that it can do without.
    fn queues(
        &self,
        activation: &mut Activation,
        pair: u16,
        offloads: Offloads,
    ) -> Result<Option<Box<Queues>>, DeviceError> {
        let (receive, transmit) = (2 * pair, 2 * pair + 1);
        let enabled = |index: u16| matches!(activation.queues.get(usize::from(index)), Some(Some(_)));
        if pair > 0 && !(enabled(receive) && enabled(transmit)) {
            return Ok(None);
        }
        let name = &self.shared.name;
        let receive = Ring::take(activation, receive, name)?;
        let transmit = Ring::take(activation, transmit, name)?;
        let kick = |ring: &Ring| ring.kick().map_err(|error| self.host_error("make an eventfd", error));
        let frame_bytes = HEADER_BYTES + ETHERNET_BYTES + usize::from(self.mtu);
        let mergeable = activation.features & FEATURE_MERGEABLE != 0;
        Ok(Some(Box::new(Queues {
            receive_kick: kick(&receive)?,
            transmit_kick: kick(&transmit)?,
            receiver: Receiver::new(receive, mergeable, offloads.are_large(), frame_bytes),
            transmitter: Transmitter::new(transmit, activation.features),
        })))
    }

    fn take_control(&self, activation: &mut Activation, index: u16) -> Result<Option<ControlQueue>, DeviceError> {
        let enabled = matches!(activation.queues.get(usize::from(index)), Some(Some(_)));
        if activation.features & FEATURE_CONTROL == 0 || !enabled {
            return Ok(None);
        }
        let ring = Ring::take(activation, index, &self.shared.name)?;
        let queue = ControlQueue::new(&self.shared.name, ring, index);
        queue
            .map(Some)
            .map_err(|error| self.host_error("make an eventfd", error))
    }

    /// Uses so many pairs, and no others.
    fn use_pairs(&mut self, count: u16) -> io::Result<()> {
        for (number, place) in self.places.iter_mut().enumerate() {
            let on = number < usize::from(count);
            if on || number > 0 {
                place.with(move |pair| pair.switch(on))??;
            }
        }
        Ok(())
    }

    /// Follows a command of the driver. `false` when it is refused.
    fn follow(&mut self, command: Command) -> bool {
        let Some(active) = &mut self.active else { return false };
        match command {
            Command::Filter => true,
            Command::Mac(mac) => mac == self.shared.responder.guest().mac.0,
            Command::Announced => {
                active.announce = false;
                true
            }
            Command::Queues(count) => {
                if !(1..=active.pairs_enabled).contains(&count) {
                    return false;
                }
                active.pairs_in_use = count;
                self.use_pairs(count).is_ok()
            }
            Command::Offloads(offloads) => {
                active.offloads = offloads;
                self.configure(offloads).is_ok()
            }
        }
    }

    fn configure(&mut self, offloads: Offloads) -> io::Result<()> {
        let mut places = self.places.iter_mut();
        if let Some(first) = places.next() {
            // They are the whole tap's.
            first.with(move |pair| pair.configure(offloads))??;
        }
        for place in places {
            place.with(move |pair| pair.set_large(offloads.are_large()))?;
        }
        Ok(())
    }

    fn handle_control(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let features = active.features;
        let Some(mut control) = active.control.take() else {
            return Ok(());
        };
        let result =
            control.pump(|command| Command::parse(command, features).is_some_and(|command| self.follow(command)));
        if let Some(active) = &mut self.active {
            active.control = Some(control);
        }
        result
    }

    /// Tells the network that the guest is here: the guest does, if it can.
    fn announce(&mut self) {
        let Some(active) = &mut self.active else { return };
        if active.features & FEATURE_ANNOUNCE != 0
            && active.control.is_some()
            && let Some(vector) = active.config_vector
        {
            active.announce = true;
            // Full means that it is on its way already.
            let _ = active.interrupts.trigger(vector);
        } else if let Some(first) = self.places.first_mut() {
            // A thread that cannot be told has ended, and the process with it.
            let _ = first.with(|pair| pair.announce());
        }
    }

    fn handle_on_caller(&mut self, event: Event) -> Result<(), DeviceError> {
        let now = Instant::now();
        for (number, place) in (0_u16..).zip(&mut self.places) {
            let Place::Caller(pair) = place else { continue };
            let events = match event {
                Event::Queue(queue) if queue == 2 * number => Events::RECEIVE_KICK,
                Event::Queue(queue) if queue == 2 * number + 1 => Events::TRANSMIT_KICK,
                Event::Queue(_) => Events::empty(),
                Event::Host(_) => Events::READABLE | Events::WRITABLE,
            };
            pair.work(events, now)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn features(&self) -> u64 {
        let control = FEATURE_CONTROL
            | control::FEATURE_RECEIVE_MODE
            | control::FEATURE_MAC
            | FEATURE_ANNOUNCE
            | control::FEATURE_OFFLOADS;
        let multi_queue = if self.places.len() > 1 { FEATURE_MULTI_QUEUE } else { 0 };
        offload::OFFERED | control | multi_queue
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[2 * usize::from(PAIRS_MAX - self.pairs())..]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        let features = activation.features;
        let restored = self.restored.take();
        let pairs = if features & FEATURE_MULTI_QUEUE == 0 {
            1
        } else {
            self.pairs()
        };
        let offloads = restored.map_or_else(
            || Offloads::of_features(features),
            |state| Offloads::from_bits_truncate(state.offloads),
        );
        // It comes after the pairs that the driver knows of (5.1.2).
        let control = self.take_control(&mut activation, 2 * pairs)?;
        let mut pairs_enabled = 0;
        for number in 0..pairs {
            let Some(queues) = self.queues(&mut activation, number, offloads)? else {
                break;
            };
            let place = &mut self.places[usize::from(number)];
            let started = place.with(move |pair| pair.start(queues));
            started.map_err(|error| self.host_error("reach its thread", error))?;
            pairs_enabled = number + 1;
        }
        let pairs_in_use = restored.map_or(1, |state| state.pairs_in_use.clamp(1, pairs_enabled));
        self.active = Some(Active {
            features,
            interrupts: activation.interrupts.clone(),
            config_vector: activation.config_vector,
            control,
            pairs_in_use,
            pairs_enabled,
            offloads,
            announce: false,
        });
        self.configure(offloads)
            .map_err(|error| self.host_error("set the offloads of its tap", error))?;
        let advertise_at = Instant::now() + responder::ADVERTISEMENT_INTERVAL;
        let advertising = self.places[0].with(move |pair| pair.advertise(advertise_at));
        advertising
            .and_then(|()| self.use_pairs(pairs_in_use))
            .map_err(|error| self.host_error("take its queues into use", error))
    }

    fn own_kicks(&self) -> bool {
        matches!(self.places.first(), Some(Place::Thread(_)))
    }

    fn host_sources(&self) -> Vec<HostSource> {
        let mut sources = Vec::new();
        for place in &self.places {
            match place {
                Place::Caller(pair) => sources.push(HostSource {
                    fd: pair.link().as_fd().as_raw_fd(),
                    readable: true,
                    writable: true,
                }),
                Place::Thread(_) if sources.is_empty() => sources.push(self.failure.source()),
                Place::Thread(_) => {}
            }
        }
        if self.own_kicks() {
            let control = self.active.as_ref().and_then(|active| active.control.as_ref());
            sources.extend(control.map(|control| HostSource::readable(control.descriptor())));
        }
        sources
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        if !self.own_kicks() {
            let control = self.active.as_ref().and_then(|active| active.control.as_ref());
            if control.is_some_and(|control| event == Event::Queue(control.index())) {
                return self.handle_control();
            }
            return self.handle_on_caller(event);
        }
        match event {
            Event::Host(CONTROL_SOURCE) => self.handle_control(),
            Event::Host(_) => self.failure.take().map_or(Ok(()), Err),
            // The pairs' threads have them.
            Event::Queue(_) => Ok(()),
        }
    }

    fn reset(&mut self) {
        for (number, place) in self.places.iter_mut().enumerate() {
            // A thread that cannot be told has ended, and a tap that does not let go of a queue keeps the frames for it.
            let _ = place.with(move |pair| {
                pair.stop();
                if number > 0 { pair.switch(false) } else { Ok(()) }
            });
        }
        // Of the device as it was: nobody waits for it any more.
        self.failure.take();
        self.active = None;
        self.arrived = false;
    }

    fn pause(&mut self) -> Result<(), DeviceError> {
        for place in &mut self.places {
            let paused = place.with(Pair::pause);
            paused.map_err(|source| DeviceError::Host {
                device: self.shared.name.clone(),
                what: "reach its thread",
                source,
            })?;
        }
        Ok(())
    }

    fn resume(&mut self) {
        let arrived = std::mem::take(&mut self.arrived);
        for (number, place) in self.places.iter_mut().enumerate() {
            // A thread that cannot be told has ended, and the process with it.
            let _ = place.with(move |pair| {
                pair.resume();
                if arrived && number == 0 {
                    pair.advertise(Instant::now());
                }
            });
        }
        if arrived {
            self.announce();
        }
    }

    fn save(&self) -> SavedDevice {
        let mut queues: Vec<Option<QueuePosition>> = vec![None; self.queue_max_sizes().len()];
        let mut put = |index: usize, position: QueuePosition| {
            if let Some(slot) = queues.get_mut(index) {
                *slot = Some(position);
            }
        };
        for (number, place) in self.places.iter().enumerate() {
            if let Some((receive, transmit)) = place.positions() {
                put(2 * number, receive);
                put(2 * number + 1, transmit);
            }
        }
        let active = self.active.as_ref();
        if let Some(control) = active.and_then(|active| active.control.as_ref()) {
            put(usize::from(control.index()), control.position());
        }
        SavedDevice {
            queues,
            device: DeviceState::Net(NetState {
                mac: self.shared.responder.guest().mac.0,
                mtu: self.mtu,
                pairs: self.pairs(),
                pairs_in_use: active.map_or(1, |active| active.pairs_in_use),
                offloads: active.map_or(0, |active| active.offloads.bits()),
            }),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let name = &self.shared.name;
        let DeviceState::Net(state) = state else {
            return Err(RestoreError::kind(name, state));
        };
        let (mac, pairs) = (self.shared.responder.guest().mac, self.pairs());
        if state.mac != mac.0 {
            return Err(RestoreError::differs(name, "MAC address", &MacAddress(state.mac), &mac));
        }
        if state.pairs != pairs {
            return Err(RestoreError::differs(
                name,
                "number of queue pairs",
                &state.pairs,
                &pairs,
            ));
        }
        if !(1..=pairs).contains(&state.pairs_in_use) || Offloads::from_bits(state.offloads).is_none() {
            return Err(RestoreError::invalid(
                name,
                "queue pairs or offloads that there are not",
            ));
        }
        self.mtu = state.mtu;
        self.restored = Some(*state);
        self.arrived = true;
        Ok(())
    }
}

impl Place {
    fn positions(&self) -> Option<(QueuePosition, QueuePosition)> {
        match self {
            Self::Caller(pair) => pair.positions(),
            Self::Thread(thread) => thread.with(|pair| pair.positions()).ok().flatten(),
        }
    }
}

#[cfg(test)]
mod tests;
