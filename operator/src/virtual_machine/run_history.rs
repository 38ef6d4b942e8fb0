//! Pure: what `status.restarts` remembers about the runs of a VM, and the back-off that follows from it.

use crds::status::{LastTermination, Restarts};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::pod_state::{Ended, Outcome, OwnPod, Phase, PodState, outcome};

/// A run of this many seconds ends a row of short ones.
const LONG_RUN_SECONDS: i64 = 600;
/// Back-off before the second restart in a row, in seconds; it doubles from there.
const FIRST_BACKOFF_SECONDS: i64 = 10;
/// Longest back-off in seconds.
const MAX_BACKOFF_SECONDS: i64 = 300;
/// Longest message that is kept, in bytes: the kubelet's own limit of a termination message.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Longest reason that is kept, in bytes.
const MAX_REASON_BYTES: usize = 64;

/// The runs of a VM so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History(Restarts);

impl History {
    /// The history that a status remembers.
    pub(crate) fn from_status(restarts: Option<&Restarts>) -> Self {
        Self(restarts.cloned().unwrap_or_default())
    }

    /// The history as the status remembers it.
    pub(crate) fn into_status(self) -> Option<Restarts> {
        (self.0 != Restarts::default()).then_some(self.0)
    }

    /// The history with what the present pod adds to it. The same pod adds the same, however often it is seen.
    pub(crate) fn with_pod(&self, pod: &PodState, now: Timestamp) -> Self {
        let Some(pod) = pod.own() else { return self.clone() };
        let mut history = self.clone();
        if history.0.started_pod_uid.as_ref() != Some(&pod.uid) {
            history.0.started_pod_uid = Some(pod.uid.clone());
            history.0.started_restarted_at.clone_from(&pod.restarted_at);
            history.0.next_start_time = None;
        }
        match &pod.phase {
            Phase::Ended(ended) if pod.deletion.is_none() => history.record(pod, ended, now),
            // A pod that is being deleted ends because somebody wanted it to.
            Phase::Ended(_)
            | Phase::Unscheduled { .. }
            | Phase::Starting { .. }
            | Phase::Running { .. }
            | Phase::Unknown => {}
        }
        history
    }

    fn record(&mut self, pod: &OwnPod, ended: &Ended, now: Timestamp) {
        if self
            .0
            .last_termination
            .as_ref()
            .is_some_and(|last| last.pod_uid == pod.uid)
        {
            return;
        }
        let finished = ended.finished.unwrap_or(now);
        let ran_seconds = ended
            .started
            .map_or(0, |started| finished.as_second() - started.as_second());
        let earlier = if ran_seconds >= LONG_RUN_SECONDS {
            0
        } else {
            self.0.failures.unwrap_or(0)
        };
        let failures = earlier.saturating_add(1);
        self.0.failures = Some(failures);
        self.0.next_start_time = Some(Time(finished + SignedDuration::from_secs(backoff_seconds(failures))));
        self.0.last_termination = Some(LastTermination {
            pod_uid: pod.uid.clone(),
            generation: pod.generation,
            reason: crds::conditions::truncated(&ended.reason, MAX_REASON_BYTES).to_owned(),
            message: Some(crds::conditions::truncated(&ended.message, MAX_MESSAGE_BYTES).to_owned()),
            exit_code: ended.exit_code,
            finished_at: Some(Time(finished)),
        });
    }

    /// Whether the VM was ever started, since it was last Halted.
    pub(crate) fn has_started(&self) -> bool {
        self.0.started_pod_uid.is_some()
    }

    /// `spec.restartedAt` at the last start.
    pub(crate) fn started_restarted_at(&self) -> Option<&str> {
        self.0.started_restarted_at.as_deref()
    }

    /// How the last started pod ended, if it is known.
    pub(crate) fn last_outcome(&self) -> Option<Outcome> {
        self.last_termination().map(|last| outcome(&last.reason))
    }

    /// The end of the last started pod, if it is known.
    pub(crate) fn last_termination(&self) -> Option<&LastTermination> {
        let last = self.0.last_termination.as_ref()?;
        (self.0.started_pod_uid.as_ref() == Some(&last.pod_uid)).then_some(last)
    }

    /// The generation of the VM that ended last.
    pub(crate) fn ended_generation(&self) -> Option<i64> {
        self.last_termination().and_then(|last| last.generation)
    }

    /// When the VM may be started again.
    pub(crate) fn next_start(&self) -> Option<Timestamp> {
        self.0.next_start_time.as_ref().map(|time| time.0)
    }

    /// Short runs in a row.
    pub(crate) fn failures(&self) -> i32 {
        self.0.failures.unwrap_or(0)
    }
}

/// Seconds to wait after so many short runs in a row: the first restart comes at once.
fn backoff_seconds(failures: i32) -> i64 {
    match failures {
        ..=1 => 0,
        2..=6 => (FIRST_BACKOFF_SECONDS << (failures - 2)).min(MAX_BACKOFF_SECONDS),
        7.. => MAX_BACKOFF_SECONDS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_starts_at_once_and_ends_at_five_minutes() {
        let seconds: Vec<i64> = (0..=8).map(backoff_seconds).collect();
        assert_eq!(seconds, [0, 0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff_seconds(i32::MAX), MAX_BACKOFF_SECONDS);
    }
}
