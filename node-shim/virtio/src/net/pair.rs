//! A receive queue and a transmit queue with the link's queue that they belong to (virtio 1.2, 5.1.2): all that happens to frames. On
//! one thread, which is the pair's own or, in tests, its caller's.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bitflags::bitflags;
use vmm_sys_util::eventfd::EventFd;

use super::link::Link;
use super::offload::Offloads;
use super::receive::Receiver;
use super::responder::{ADVERTISEMENT_INTERVAL, Responder};
use super::traffic::{Counters, DropLog, Log, Valve};
use super::transmit::Transmitter;
use crate::device::DeviceError;
use crate::state::QueuePosition;

/// What all pairs of an interface share.
pub(super) struct Shared {
    /// For logs.
    pub(super) name: String,
    pub(super) responder: Responder,
    pub(super) counters: Counters,
    pub(super) receive_valve: Valve,
    pub(super) transmit_valve: Valve,
    pub(super) log: Log,
}

/// The queues of a pair, activated.
pub(super) struct Queues {
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) receive_kick: EventFd,
    pub(super) transmit_kick: EventFd,
}

bitflags! {
    /// What a pair waits for, or what of it has come.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Events: u8 {
        /// The link has frames.
        const READABLE = 1;
        /// The link takes frames again.
        const WRITABLE = 2;
        /// The driver has new receive buffers.
        const RECEIVE_KICK = 4;
        /// The driver has frames.
        const TRANSMIT_KICK = 8;
    }
}

/// See the [module](self).
pub(super) struct Pair {
    shared: Arc<Shared>,
    link: Box<dyn Link>,
    queues: Option<Box<Queues>>,
    /// The driver uses it.
    on: bool,
    paused: bool,
    /// The link's queue is one of those that frames come from.
    attached: bool,
    /// When the router advertises itself unasked; only the first pair does.
    advertise_at: Option<Instant>,
    drop_log: DropLog,
}

impl Pair {
    /// A pair that is not in use.
    pub(super) fn new(shared: Arc<Shared>, link: Box<dyn Link>) -> Self {
        Self {
            shared,
            link,
            queues: None,
            on: false,
            paused: false,
            attached: true,
            advertise_at: None,
            drop_log: DropLog::default(),
        }
    }

    /// Its driver is ready. The pair is not in use until it is [switched on](Self::switch).
    pub(super) fn start(&mut self, queues: Box<Queues>) {
        self.queues = Some(queues);
        self.paused = false;
    }

    /// Lets go of guest memory.
    pub(super) fn stop(&mut self) {
        self.queues = None;
        (self.on, self.paused, self.advertise_at) = (false, false, None);
    }

    /// Comes to rest.
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    /// Goes on. Its queues are kicked by whoever resumes.
    pub(super) fn resume(&mut self) {
        self.paused = false;
    }

    /// Takes the pair into use, or out of it.
    ///
    /// # Errors
    /// When the host refuses.
    pub(super) fn switch(&mut self, on: bool) -> io::Result<()> {
        if self.attached != on {
            self.link.attach(on)?;
            self.attached = on;
        }
        self.on = on;
        if on && let Some(queues) = &mut self.queues {
            queues.receiver.set_readable();
            for kick in [&queues.receive_kick, &queues.transmit_kick] {
                // Full means that there is a kick already.
                let _ = kick.write(1);
            }
        }
        Ok(())
    }

    /// The driver takes these offloads from now on.
    ///
    /// # Errors
    /// When the host refuses.
    pub(super) fn configure(&mut self, offloads: Offloads) -> io::Result<()> {
        self.link.configure(offloads)?;
        if let Some(queues) = &mut self.queues {
            queues.receiver.set_large(offloads.are_large());
        }
        Ok(())
    }

    /// Frames of any size may come, or only small ones: what [`Self::configure`] of another pair means for this one.
    pub(super) fn set_large(&mut self, large: bool) {
        if let Some(queues) = &mut self.queues {
            queues.receiver.set_large(large);
        }
    }

    /// The router advertises itself unasked, from `first` on.
    pub(super) fn advertise(&mut self, first: Instant) {
        if self.shared.responder.guest().ipv6.is_some() {
            self.advertise_at = Some(first);
        }
    }

    /// Tells the network that the guest is here, for a guest that does not do it itself.
    pub(super) fn announce(&self) {
        for frame in self.shared.responder.announcements() {
            let with_header = [&[0; super::HEADER_BYTES], frame.as_slice()].concat();
            // A network that is full forgets it, as it would the guest's.
            let _ = rustix::io::write(self.link.as_fd(), &with_header);
        }
    }

    /// Where the queues stand.
    pub(super) fn positions(&self) -> Option<(QueuePosition, QueuePosition)> {
        let queues = self.queues.as_ref()?;
        Some((queues.receiver.position(), queues.transmitter.position()))
    }

    /// The queues, while they are to be served.
    pub(super) fn live(&self) -> Option<&Queues> {
        self.queues.as_deref().filter(|_| self.on && !self.paused)
    }

    /// The link, to wait for.
    pub(super) fn link(&self) -> &dyn Link {
        self.link.as_ref()
    }

    /// What it waits for.
    pub(super) fn wants(&self) -> Events {
        let Some(Queues {
            receiver, transmitter, ..
        }) = self.live()
        else {
            return Events::empty();
        };
        let (blocked, held) = (transmitter.is_blocked(), transmitter.held_until().is_some());
        let mut wants = Events::empty();
        wants.set(Events::READABLE, receiver.wants_link());
        wants.set(Events::WRITABLE, blocked);
        wants.set(Events::RECEIVE_KICK, receiver.held_until().is_none());
        wants.set(Events::TRANSMIT_KICK, !blocked && !held);
        wants
    }

    /// When it has something to do whether or not anything happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let queues = self.live()?;
        let held = [queues.receiver.held_until(), queues.transmitter.held_until()];
        held.into_iter().chain([self.advertise_at]).flatten().min()
    }

    /// Does what there is to do.
    ///
    /// # Errors
    /// When the driver broke a queue or the link failed.
    pub(super) fn work(&mut self, events: Events, now: Instant) -> Result<(), DeviceError> {
        let Some(queues) = self.queues.as_deref_mut().filter(|_| self.on && !self.paused) else {
            return Ok(());
        };
        let Queues {
            receiver, transmitter, ..
        } = queues;
        let due = |held: Option<Instant>| held.is_some_and(|until| until <= now);
        let mut receive = events.intersects(Events::RECEIVE_KICK | Events::READABLE) || due(receiver.held_until());
        if events.contains(Events::READABLE) {
            receiver.set_readable();
        }
        if due(self.advertise_at) {
            self.advertise_at = Some(now + ADVERTISEMENT_INTERVAL);
            if let Some(frame) = self.shared.responder.advertisement() {
                receiver.push(&frame, &self.shared);
                receive = true;
            }
        }
        let unblocked = events.contains(Events::WRITABLE) && transmitter.unblock();
        if unblocked || events.contains(Events::TRANSMIT_KICK) || due(transmitter.held_until()) {
            transmitter.pump(&self.shared, self.link.as_ref(), now, |frame| {
                receiver.push(frame, &self.shared);
                receive = true;
            })?;
            let Shared {
                log, name, counters, ..
            } = self.shared.as_ref();
            self.drop_log.tell(*log, name, counters.sent_in_vain(), now);
        }
        if receive {
            receiver.pump(&self.shared, self.link.as_ref(), now)?;
        }
        Ok(())
    }
}
