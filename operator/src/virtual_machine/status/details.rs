//! The conditions that say how far a VM has come: node, images, volumes, network, guest.

use crds::{
    conditions::{Claim, ConditionStatus, ConditionType, Reason},
    guest::GuestState,
};

use super::{Headline, Input, headline::unschedulable, pending};
use crate::virtual_machine::{
    pod_state::{OwnPod, Phase},
    trouble::{self, Part},
};

fn claim(condition: ConditionType, status: ConditionStatus, reason: Reason, message: impl Into<String>) -> Claim {
    Claim {
        condition,
        status,
        reason,
        message: message.into(),
    }
}

/// The detailed conditions, in the order in which a VM starts.
pub(super) fn details(input: &Input<'_>, headline: &Headline) -> Vec<Claim> {
    let living = input.pod.own().filter(|pod| !matches!(pod.phase, Phase::Ended(_)));
    let Some(pod) = living else {
        let nothing = |condition| {
            claim(
                condition,
                ConditionStatus::False,
                headline.reason,
                "the VM has no running pod",
            )
        };
        return PARTS
            .into_iter()
            .map(|(condition, _)| nothing(condition))
            .chain([nothing(GUEST), pending::not_resizing(), pending::up_to_date()])
            .collect();
    };
    let mut claims: Vec<Claim> = PARTS
        .into_iter()
        .map(|(condition, part)| of_part(condition, part, input, pod))
        .collect();
    if let Some(failed) = pending::disks_not_ready(input.live)
        && let Some(disks) = claims
            .iter_mut()
            .find(|claim| claim.condition == failed.condition && claim.status == ConditionStatus::True)
    {
        *disks = failed;
    }
    claims.push(guest(input, pod));
    claims.push(pending::resizing(input.live));
    claims.push(pending::restart_required(input.live));
    claims
}

const GUEST: ConditionType = ConditionType::GuestReady;
const PARTS: [(ConditionType, Option<Part>); 4] = [
    (ConditionType::Scheduled, None),
    (ConditionType::ImageReady, Some(Part::Image)),
    (ConditionType::DisksReady, Some(Part::Volumes)),
    (ConditionType::NetworkReady, Some(Part::Network)),
];

fn of_part(condition: ConditionType, part: Option<Part>, input: &Input<'_>, pod: &OwnPod) -> Claim {
    if pod.is_lost(input.now) {
        return claim(
            condition,
            ConditionStatus::Unknown,
            Reason::NodeLost,
            "the VM's node does not answer",
        );
    }
    match &pod.phase {
        Phase::Unscheduled { message } => match (part, message) {
            (None, Some(message)) => {
                let (reason, message) = unschedulable(message);
                claim(condition, ConditionStatus::False, reason, message)
            }
            (Some(Part::Volumes), Some(message)) if trouble::is_of_claims(message) => claim(
                condition,
                ConditionStatus::False,
                Reason::ClaimNotReady,
                message.as_str(),
            ),
            (None, None) | (Some(_), _) => waiting(condition, "the VM's pod has no node yet"),
        },
        Phase::Starting { .. } => {
            let trouble = input.trouble.filter(|trouble| part == Some(trouble.part));
            match (part, trouble) {
                (None, _) => fine(condition),
                (Some(_), Some(trouble)) => claim(
                    condition,
                    ConditionStatus::False,
                    trouble.part.reason(),
                    stable_message(input, condition, &trouble.message),
                ),
                (Some(_), None) => waiting(condition, "under way"),
            }
        }
        Phase::Running { .. } | Phase::Ended(_) => fine(condition),
        Phase::Unknown => claim(
            condition,
            ConditionStatus::Unknown,
            Reason::NodeLost,
            "the VM's node does not answer",
        ),
    }
}

/// The kubelet reports a failed pull and its back-off in turns. The failure says more, so it stays while the back-off lasts.
fn stable_message(input: &Input<'_>, condition: ConditionType, message: &str) -> String {
    let old = input
        .vm
        .status
        .as_ref()
        .and_then(|status| crds::conditions::find(&status.conditions, condition));
    let kept = old.filter(|old| {
        message.starts_with("ImagePullBackOff")
            && old.reason == Reason::ImagePullFailed.as_str()
            && !old.message.is_empty()
    });
    kept.map_or_else(|| message.to_owned(), |old| old.message.clone())
}

fn guest(input: &Input<'_>, pod: &OwnPod) -> Claim {
    if pod.is_lost(input.now) {
        return claim(
            GUEST,
            ConditionStatus::Unknown,
            Reason::NodeLost,
            "the VM's node does not answer",
        );
    }
    let ready = match pod.phase {
        Phase::Running { ready } => ready,
        Phase::Unscheduled { .. } | Phase::Starting { .. } | Phase::Ended(_) => {
            return waiting_false(GUEST, "the guest has not started yet");
        }
        Phase::Unknown => {
            return claim(
                GUEST,
                ConditionStatus::Unknown,
                Reason::NodeLost,
                "the VM's node does not answer",
            );
        }
    };
    if input.vm.spec.readiness_probe.is_some() {
        return if ready {
            claim(
                GUEST,
                ConditionStatus::True,
                Reason::Succeeded,
                "the readiness probe succeeds",
            )
        } else {
            claim(
                GUEST,
                ConditionStatus::False,
                Reason::NotReady,
                "the readiness probe does not succeed (yet)",
            )
        };
    }
    let report = input.vm.status.as_ref().and_then(|status| status.guest.as_ref());
    // A report of an earlier pod says nothing about this one.
    let state = report
        .filter(|guest| guest.pod_uid.as_ref() == Some(&pod.uid))
        .and_then(|guest| guest.state);
    match state {
        Some(GuestState::Running) => claim(
            GUEST,
            ConditionStatus::True,
            Reason::Succeeded,
            "the guest's kernel runs",
        ),
        Some(GuestState::Booting) => waiting_false(GUEST, "the guest boots"),
        Some(GuestState::PoweringOff) => claim(GUEST, ConditionStatus::False, Reason::Stopping, "the guest powers off"),
        None => waiting(GUEST, "the node agent has not reported the guest yet"),
    }
}

fn fine(condition: ConditionType) -> Claim {
    claim(condition, ConditionStatus::True, Reason::Succeeded, "")
}

fn waiting(condition: ConditionType, message: &str) -> Claim {
    claim(condition, ConditionStatus::Unknown, Reason::Waiting, message)
}

fn waiting_false(condition: ConditionType, message: &str) -> Claim {
    claim(condition, ConditionStatus::False, Reason::Starting, message)
}
