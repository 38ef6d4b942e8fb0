//! The volume pods that lend disks, and when one may end: once no guest has its disk. Pure: it is told the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use node_shim_protocol::agent::PluggedDisk;

use crate::serve::report::{ConnectionId, PodId};

/// How long a shim may take to connect again after it has lost the agent, five seconds at most, and to say what its guest has.
pub(super) const RESUME_PATIENCE: Duration = Duration::from_secs(10);

/// A volume pod that is connected.
#[derive(Debug)]
struct Lender {
    connection: ConnectionId,
    /// It is to end.
    withdraws: bool,
}

/// Every volume pod of the node.
#[derive(Debug, Default)]
pub(super) struct Lenders {
    pods: BTreeMap<PodId, Lender>,
    /// Disks of guests that hung up: they may have them still, and be back in a moment. By the namespace and the lender's UID, until when that is believed.
    in_doubt: BTreeMap<(String, String), Instant>,
    /// Until then every disk is in doubt.
    begun_until: Option<Instant>,
}

impl Lenders {
    /// Of an agent that has just started.
    pub(super) fn begin(now: Instant) -> Self {
        Self {
            begun_until: Some(now + RESUME_PATIENCE),
            ..Self::default()
        }
    }

    /// A pod lends its disk. An older conversation of it counts no more.
    pub(super) fn lend(&mut self, pod: PodId, connection: ConnectionId) {
        let is_older = self.pods.get(&pod).is_some_and(|known| known.connection > connection);
        if !is_older {
            let withdraws = false;
            self.pods.insert(pod, Lender { connection, withdraws });
        }
    }

    /// It wants its disk back.
    pub(super) fn withdraw(&mut self, pod: &PodId, connection: ConnectionId) {
        let known = self.pods.get_mut(pod).filter(|known| known.connection == connection);
        if let Some(known) = known {
            known.withdraws = true;
        }
    }

    /// Its conversation is over.
    pub(super) fn hang_up(&mut self, pod: &PodId, connection: ConnectionId) {
        if self.pods.get(pod).is_some_and(|known| known.connection == connection) {
            self.pods.remove(pod);
        }
    }

    /// A guest hung up that had these disks.
    pub(super) fn guest_left(&mut self, namespace: &str, disks: impl Iterator<Item = PluggedDisk>, now: Instant) {
        for disk in disks {
            let key = (namespace.to_owned(), disk.lender);
            self.in_doubt.insert(key, now + RESUME_PATIENCE);
        }
    }

    /// Whether a pod lends its disk.
    pub(super) fn lends(&self, pod: &PodId) -> bool {
        self.pods.get(pod).is_some_and(|lender| !lender.withdraws)
    }

    /// The conversations of pods whose disk is back, where `has` says whether a guest has what a pod lends; and when there may be more.
    pub(super) fn returned(
        &mut self,
        has: impl Fn(&PodId) -> bool,
        now: Instant,
    ) -> (Vec<ConnectionId>, Option<Instant>) {
        self.in_doubt.retain(|_, until| *until > now);
        self.begun_until = self.begun_until.filter(|until| *until > now);
        let (in_doubt, begun_until) = (&self.in_doubt, self.begun_until);
        let mut next: Option<Instant> = None;
        let back = self.pods.extract_if(.., |pod, lender| {
            if !lender.withdraws || has(pod) {
                return false;
            }
            let key = (pod.name.namespace.clone(), pod.uid.clone());
            let until = begun_until.into_iter().chain(in_doubt.get(&key).copied()).max();
            next = next.into_iter().chain(until).min();
            until.is_none()
        });
        let back = back.map(|(_, lender)| lender.connection).collect();
        (back, next)
    }
}
