//! Whether VMs can run on this node, from what `node-agent serve` says and whether the node has `/dev/kvm` at all. Pure.

use std::time::{Duration, Instant};

/// How long the last report holds after the connection to `node-agent serve` was lost: as long as its restart may take.
pub(super) const GRACE: Duration = Duration::from_mins(1);

/// What the devices follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was said yet.
    Unknown,
    /// VMs can run.
    Works,
    /// VMs cannot run, and why.
    Broken(String),
    /// The node has no `/dev/kvm`: there is nothing to offer.
    Absent,
}

impl Verdict {
    /// Tells the operator of the node.
    pub(super) fn log(&self) {
        match self {
            Self::Unknown => tracing::info!("KVM: waiting for the node agent's report"),
            Self::Works => tracing::info!("KVM works: tandem.dev/kvm is offered"),
            Self::Broken(reason) => tracing::warn!(%reason, "KVM does not work: tandem.dev/kvm is withdrawn"),
            Self::Absent => tracing::warn!("this node has no /dev/kvm: it offers no tandem.dev/kvm"),
        }
    }
}

/// What is known.
#[derive(Debug)]
pub(super) struct KvmHealth {
    device_exists: bool,
    last_report: Option<Result<(), String>>,
    lost_at: Option<Instant>,
}

impl KvmHealth {
    /// Nothing but whether `/dev/kvm` exists.
    pub(super) fn new(device_exists: bool) -> Self {
        Self {
            device_exists,
            last_report: None,
            lost_at: None,
        }
    }

    /// `/dev/kvm` appeared or disappeared.
    pub(super) fn device_seen(&mut self, exists: bool) {
        self.device_exists = exists;
    }

    /// A report came.
    pub(super) fn said(&mut self, probe: Result<(), String>) {
        self.last_report = Some(probe);
        self.lost_at = None;
    }

    /// The connection on which reports come was lost.
    pub(super) fn lost(&mut self, now: Instant) {
        self.lost_at.get_or_insert(now);
    }

    /// When [`Self::verdict`] will change by itself.
    pub(super) fn grace_ends(&self) -> Option<Instant> {
        match self.last_report {
            Some(Ok(())) => self.lost_at.map(|at| at + GRACE),
            Some(Err(_)) | None => None,
        }
    }

    /// The verdict.
    pub(super) fn verdict(&mut self, now: Instant) -> Verdict {
        if self.grace_ends().is_some_and(|end| end <= now) {
            let reason = format!(
                "node-agent serve has not been connected for {} s: is its pod running?",
                GRACE.as_secs()
            );
            self.last_report = Some(Err(reason));
        }
        if !self.device_exists {
            return Verdict::Absent;
        }
        match &self.last_report {
            None => Verdict::Unknown,
            Some(Ok(())) => Verdict::Works,
            Some(Err(reason)) => Verdict::Broken(reason.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_for_the_grace_and_no_longer() {
        let start = Instant::now();
        let mut health = KvmHealth::new(true);
        assert_eq!(health.verdict(start), Verdict::Unknown);
        health.said(Ok(()));
        assert_eq!(health.verdict(start), Verdict::Works);
        assert_eq!(health.grace_ends(), None);
        health.lost(start);
        health.lost(start + GRACE / 2);
        assert_eq!(health.grace_ends(), Some(start + GRACE));
        assert_eq!(health.verdict(start + GRACE.mul_f32(0.99)), Verdict::Works);
        assert!(matches!(health.verdict(start + GRACE), Verdict::Broken(reason) if reason.contains("60 s")));
        assert_eq!(health.grace_ends(), None);
        health.said(Ok(()));
        assert_eq!(health.verdict(start + 2 * GRACE), Verdict::Works);
    }

    #[test]
    fn a_bad_report_needs_no_grace() {
        let mut health = KvmHealth::new(true);
        health.said(Err("no vmx".into()));
        health.lost(Instant::now());
        assert_eq!(health.grace_ends(), None);
        assert_eq!(
            health.verdict(Instant::now() + 2 * GRACE),
            Verdict::Broken("no vmx".into())
        );
    }

    #[test]
    fn without_the_device_nothing_is_offered() {
        let mut health = KvmHealth::new(false);
        health.said(Ok(()));
        assert_eq!(health.verdict(Instant::now()), Verdict::Absent);
        health.device_seen(true);
        assert_eq!(health.verdict(Instant::now()), Verdict::Works);
    }
}
