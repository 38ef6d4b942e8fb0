//! Pure: the status of a VM, from what was observed, decided and done.

mod details;
mod headline;
mod pending;

use crds::{
    VirtualMachine, VirtualMachineStatus,
    conditions::{Claim, ConditionStatus, ConditionType, Reason, set_condition},
};
use jiff::Timestamp;

use super::{
    apply::Applied,
    desired::identity,
    eviction::{self, Protection},
    lifecycle::{Decision, RestCause},
    live::{Live, target_disks},
    pod_state::{Phase, PodState},
    run_history::History,
    trouble::Trouble,
};

/// What a status is made from.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) vm: &'a VirtualMachine,
    pub(crate) verdict: Verdict,
    pub(crate) pod: &'a PodState,
    /// Whether evictions of the pod are refused.
    pub(crate) protection: &'a Protection,
    pub(crate) history: &'a History,
    pub(crate) trouble: Option<&'a Trouble>,
    /// What is to become of the pod that lives.
    pub(crate) live: Option<&'a Live>,
    pub(crate) now: Timestamp,
}

/// What was decided, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The spec makes no sense.
    Invalid { reason: Reason, message: String },
    /// The decision was carried out.
    Done(Decision, Applied),
}

/// Whether anything more is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The VM is as it should be.
    Settled,
    /// Something is under way.
    Reconciling,
    /// Somebody must change something.
    Stalled,
}

/// What a person wants to know first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Headline {
    /// The STATUS column.
    word: &'static str,
    ready: bool,
    reason: Reason,
    message: String,
    progress: Progress,
}

/// The status that a VM should have now. `status.guest` and `status.acknowledgedTarget` are left out: they are the node agent's.
pub(crate) fn compute(input: &Input<'_>) -> VirtualMachineStatus {
    let old = input.vm.status.clone().unwrap_or_default();
    let headline = headline::headline(input);
    let mut claims = summary(&headline);
    claims.extend(details::details(input, &headline));
    let node = input.pod.own().and_then(|pod| pod.node.as_deref());
    claims.extend(eviction::claim(input.protection, input.vm, node));
    let mut conditions = Vec::with_capacity(claims.len());
    for claim in &claims {
        if let Some(condition) = crds::conditions::find(&old.conditions, claim.condition) {
            conditions.push(condition.clone());
        }
        set_condition(&mut conditions, claim, input.vm.metadata.generation, input.now);
    }
    let own = input.pod.own();
    let addresses = match own.map(|pod| &pod.phase) {
        // An address that nothing answers on yet only invites mistakes; and each early one would be a write of its own.
        Some(Phase::Running { .. }) => own.map(|pod| pod.addresses.clone()).unwrap_or_default(),
        Some(Phase::Unscheduled { .. } | Phase::Starting { .. } | Phase::Ended(_) | Phase::Unknown) | None => {
            Vec::new()
        }
    };
    let uid = input.vm.metadata.uid.clone().unwrap_or_default();
    VirtualMachineStatus {
        observed_generation: input.vm.metadata.generation,
        status: Some(headline.word.to_owned()),
        conditions,
        pending_changes: pending::changes(input.live),
        target: own.and_then(|pod| match input.live {
            Some(live) => live.target_status(&pod.uid),
            // Nobody decided anew what the guest should have: what it was asked for stays, whatever has become of the spec.
            None => old.target.clone().filter(|target| target.pod_uid == pod.uid),
        }),
        target_disks: own.and_then(|pod| match input.live.map(|live| &live.disks) {
            Some(Some(plan)) => plan.target.clone(),
            // As above: what a guest has is not taken from it because of what became of its spec, or while it shuts down.
            Some(None) | None => target_disks(input.vm, &pod.uid).cloned(),
        }),
        node_name: own.and_then(|pod| pod.node.clone()),
        pod_name: own.and(input.vm.metadata.name.clone()),
        pod_uid: own.map(|pod| pod.uid.clone()),
        pod_ip: addresses.first().cloned(),
        pod_ips: addresses,
        mac_address: input
            .vm
            .spec
            .interfaces
            .first()
            // With a bridge the network decides.
            .filter(|interface| interface.bridge.is_none())
            .map(|interface| identity::mac(&uid, &interface.name)),
        uuid: Some(identity::uuid(&uid).to_string()),
        restarts: remembered(input),
        acknowledged_target: None,
        guest: None,
    }
}

/// A VM that was Halted starts with a clean slate; and so does the bookkeeping of its one run.
fn remembered(input: &Input<'_>) -> Option<crds::status::Restarts> {
    match &input.verdict {
        Verdict::Done(Decision::Rest(RestCause::Halted), _) => None,
        Verdict::Done(..) | Verdict::Invalid { .. } => input.history.clone().into_status(),
    }
}

/// `Ready`, `Reconciling` and `Stalled`, which kstatus and Argo CD read.
fn summary(headline: &Headline) -> Vec<Claim> {
    let claim = |condition, holds: bool| Claim {
        condition,
        status: if holds {
            ConditionStatus::True
        } else {
            ConditionStatus::False
        },
        reason: headline.reason,
        message: headline.message.clone(),
    };
    let progress = headline.progress;
    vec![
        claim(ConditionType::Ready, headline.ready),
        claim(ConditionType::Reconciling, progress == Progress::Reconciling),
        claim(ConditionType::Stalled, progress == Progress::Stalled),
    ]
}

/// What a merge patch says in the status of an object that cannot be read. Its old status is not known either: what else is in it stays.
pub(crate) fn unreadable(generation: Option<i64>, message: &str, now: Timestamp) -> serde_json::Value {
    let headline = Headline {
        word: "Invalid",
        ready: false,
        reason: Reason::InvalidSpec,
        message: message.to_owned(),
        progress: Progress::Stalled,
    };
    let mut conditions = Vec::new();
    for claim in summary(&headline) {
        set_condition(&mut conditions, &claim, generation, now);
    }
    serde_json::json!({ "observedGeneration": generation, "status": headline.word, "conditions": conditions })
}
