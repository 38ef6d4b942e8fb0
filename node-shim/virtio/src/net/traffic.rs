//! What the queue pairs of one interface share: counters, and how much may pass.

use std::fmt::Arguments;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::guard::DropReason;
use crate::lock::lock;
use crate::rate_limit::{Limiter, Limits};

/// Where lines for a person go.
pub type Log = fn(Arguments<'_>);

/// How often a queue pair says at most that it dropped something.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// Frames of the guest that went nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitDrops {
    /// Shorter than their own headers, longer than a frame can be, or with an impossible `virtio_net_hdr`.
    pub malformed: u64,
    /// From a MAC address that is not the guest's.
    pub spoofed_mac: u64,
    /// ARP for an address that is not the guest's.
    pub spoofed_arp: u64,
    /// From an IP address that is not the guest's.
    pub spoofed_ip: u64,
    /// Neighbour discovery of what is not the guest's.
    pub spoofed_neighbour: u64,
    /// Of a protocol that is not carried.
    pub foreign: u64,
    /// Refused by the host.
    pub refused: u64,
}

/// The counters of one interface since its VMM started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    malformed: AtomicU64,
    spoofed_mac: AtomicU64,
    spoofed_arp: AtomicU64,
    spoofed_ip: AtomicU64,
    spoofed_neighbour: AtomicU64,
    foreign: AtomicU64,
    refused: AtomicU64,
    received_in_vain: AtomicU64,
}

impl Counters {
    /// A frame of the guest was dropped.
    pub(super) fn drop_sent(&self, reason: DropReason) {
        let counter = match reason {
            DropReason::Malformed => &self.malformed,
            DropReason::SpoofedMac => &self.spoofed_mac,
            DropReason::SpoofedArp => &self.spoofed_arp,
            DropReason::SpoofedIp => &self.spoofed_ip,
            DropReason::SpoofedNeighbour => &self.spoofed_neighbour,
            DropReason::Foreign => &self.foreign,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The host refused a frame.
    pub(super) fn refuse_sent(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A frame for the guest fitted nowhere.
    pub(super) fn drop_received(&self) {
        self.received_in_vain.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames of the guest that went nowhere.
    pub(super) fn sent_in_vain(&self) -> TransmitDrops {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TransmitDrops {
            malformed: value(&self.malformed),
            spoofed_mac: value(&self.spoofed_mac),
            spoofed_arp: value(&self.spoofed_arp),
            spoofed_ip: value(&self.spoofed_ip),
            spoofed_neighbour: value(&self.spoofed_neighbour),
            foreign: value(&self.foreign),
            refused: value(&self.refused),
        }
    }

    /// Frames for the guest that fitted nowhere.
    pub(super) fn received_in_vain(&self) -> u64 {
        self.received_in_vain.load(Ordering::Relaxed)
    }
}

/// Says that something was dropped, but not often.
#[derive(Debug, Default)]
pub(super) struct DropLog {
    told: TransmitDrops,
    at: Option<Instant>,
}

impl DropLog {
    /// Says what was dropped since it was said last, if there is anything and it is time.
    pub(super) fn tell(&mut self, log: Log, device: &str, drops: TransmitDrops, now: Instant) {
        let early = self
            .at
            .is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL);
        if early || drops == self.told {
            return;
        }
        (self.told, self.at) = (drops, Some(now));
        let TransmitDrops {
            malformed,
            spoofed_mac,
            spoofed_arp,
            spoofed_ip,
            spoofed_neighbour,
            foreign,
            refused,
        } = drops;
        log(format_args!(
            "{device}: dropped frames that the guest may not send, since the start: {spoofed_mac} from a foreign MAC address, \
             {spoofed_ip} from a foreign IP address, {spoofed_arp} ARP and {spoofed_neighbour} neighbour discovery of others' addresses, \
             {foreign} of other protocols, {malformed} malformed, {refused} refused by the host"
        ));
    }
}

/// How much may pass in one direction, of all queue pairs together.
pub(super) struct Valve {
    limiter: Option<Mutex<Limiter>>,
}

impl Valve {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let limiter = Limiter::new(limits, now);
        Self {
            limiter: (!limiter.is_unlimited()).then(|| Mutex::new(limiter)),
        }
    }

    /// Whether a frame may pass now.
    ///
    /// # Errors
    /// The time from which on it may.
    pub(super) fn ready(&self, now: Instant) -> Result<(), Instant> {
        self.limiter.as_ref().map_or(Ok(()), |limiter| lock(limiter).ready(now))
    }

    /// A frame of so many bytes has passed.
    pub(super) fn charge(&self, bytes: usize) {
        if let Some(limiter) = &self.limiter {
            lock(limiter).charge(u64::try_from(bytes).unwrap_or(u64::MAX));
        }
    }
}
