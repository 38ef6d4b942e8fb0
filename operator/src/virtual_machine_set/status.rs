//! Pure: the status of a set.

use crds::{
    VirtualMachineSet, VirtualMachineSetStatus,
    conditions::{Claim, ConditionStatus, ConditionType, Reason, set_condition},
};
use jiff::Timestamp;

use super::{
    Applied,
    plan::{Member, Plan, Wanted},
};

/// The status that a set should have now.
pub(super) fn compute(
    set: &VirtualMachineSet,
    wanted: &Wanted,
    members: &[Member],
    plan: &Plan,
    applied: &Applied,
    now: Timestamp,
) -> VirtualMachineSetStatus {
    let count = |counts: &dyn Fn(&Member) -> bool| {
        i32::try_from(members.iter().filter(|member| counts(member)).count()).unwrap_or(i32::MAX)
    };
    let replicas = count(&|member| !member.deleted);
    let ready_replicas = count(&Member::is_ready);
    let available_replicas = count(&Member::is_available);
    let updated_replicas = count(&|member| !member.deleted && member.revision == wanted.revision);
    let complete = *plan == Plan::default()
        && applied.rejected.is_none()
        && [replicas, available_replicas, updated_replicas]
            .iter()
            .all(|number| usize::try_from(*number) == Ok(wanted.replicas));
    let (reason, message) = match &applied.rejected {
        Some(message) => (Reason::VmRejected, message.clone()),
        None if complete => (Reason::Succeeded, String::new()),
        None => {
            let waits = applied.waits.as_ref().map(|waits| format!("; {waits}"));
            let message = format!(
                "{ready_replicas} of {} VMs are ready{}, {updated_replicas} are of the present template{}",
                wanted.replicas,
                if available_replicas < ready_replicas {
                    format!(", {available_replicas} of them for minReadySeconds")
                } else {
                    String::new()
                },
                waits.unwrap_or_default()
            );
            (Reason::Scaling, message)
        }
    };
    let mut conditions = set
        .status
        .as_ref()
        .map(|status| status.conditions.clone())
        .unwrap_or_default();
    let states = [
        (ConditionType::Ready, complete),
        (ConditionType::Reconciling, !complete && applied.rejected.is_none()),
        (ConditionType::Stalled, applied.rejected.is_some()),
    ];
    for (condition, holds) in states {
        let claim = Claim {
            condition,
            status: if holds {
                ConditionStatus::True
            } else {
                ConditionStatus::False
            },
            reason,
            message: message.clone(),
        };
        set_condition(&mut conditions, &claim, set.metadata.generation, now);
    }
    let labels = set.spec.selector.match_labels.iter();
    let selector: Vec<String> = labels.map(|(key, value)| format!("{key}={value}")).collect();
    VirtualMachineSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas,
        available_replicas: Some(available_replicas),
        updated_replicas,
        selector: Some(selector.join(",")),
        revision: Some(wanted.revision.clone()),
        conditions,
    }
}
