//! The STATUS column and the conditions that sum a VM up.

use crds::conditions::Reason;

use super::{Headline, Input, Progress, Verdict};
use crate::virtual_machine::{
    apply::Applied,
    desired::KVM_RESOURCE,
    lifecycle::{Decision, RestCause, StallCause, StopCause, WaitCause},
    live::{self, Live},
    pod_state::Phase,
};

fn line(word: &'static str, ready: bool, reason: Reason, message: impl Into<String>, progress: Progress) -> Headline {
    Headline {
        word,
        ready,
        reason,
        message: message.into(),
        progress,
    }
}

fn under_way(word: &'static str, reason: Reason, message: impl Into<String>) -> Headline {
    line(word, false, reason, message, Progress::Reconciling)
}

fn stalled(word: &'static str, reason: Reason, message: impl Into<String>) -> Headline {
    line(word, false, reason, message, Progress::Stalled)
}

/// The headline of a VM.
pub(super) fn headline(input: &Input<'_>) -> Headline {
    let (decision, applied) = match &input.verdict {
        Verdict::Invalid { reason, message } => return stalled("Invalid", *reason, message),
        Verdict::Done(decision, applied) => (*decision, applied),
    };
    if let Applied::Rejected { message, may_pass } = applied {
        let message = format!("the API server did not admit the VM's pod: {message}");
        return if *may_pass {
            under_way("Pending", Reason::PodRejected, message)
        } else {
            stalled("Failed", Reason::PodRejected, message)
        };
    }
    match decision {
        Decision::Create => under_way("Pending", Reason::Waiting, "the VM's pod is being made"),
        Decision::Keep => living(input),
        Decision::Stop(StopCause::Halted) => under_way(
            "Stopping",
            Reason::Stopping,
            "the guest is being shut down because runPolicy is Halted",
        ),
        Decision::Stop(StopCause::Restart) => under_way(
            "Restarting",
            Reason::Stopping,
            "the guest is being shut down to be started again (restartedAt)",
        ),
        Decision::Remove => under_way("Restarting", Reason::Crashed, last_end(input)),
        Decision::Wait(cause) => waiting(input, cause),
        Decision::Rest(RestCause::Halted) => line(
            "Stopped",
            true,
            Reason::Stopped,
            "the VM is off because runPolicy is Halted",
            Progress::Settled,
        ),
        Decision::Rest(RestCause::Completed) => {
            line("Completed", true, Reason::Completed, last_end(input), Progress::Settled)
        }
        Decision::Rest(RestCause::Failed) => stalled(
            "Failed",
            Reason::Failed,
            format!(
                "{}; to run the VM again, set spec.restartedAt to the present time",
                last_end(input)
            ),
        ),
        Decision::Stall(StallCause::PodNameTaken) => {
            let name = input.vm.metadata.name.as_deref().unwrap_or_default();
            stalled(
                "Failed",
                Reason::PodNameTaken,
                format!(
                    "a pod named {name:?} that is not this VM's has taken its name: delete that pod, or rename the VM"
                ),
            )
        }
        Decision::Stall(StallCause::Hopeless) => stalled(
            "Failed",
            Reason::InvalidConfiguration,
            format!("{}; it is started again when its spec changes", last_end(input)),
        ),
        Decision::Leave => under_way("Stopping", Reason::Stopping, "the VM is being deleted"),
    }
}

fn waiting(input: &Input<'_>, cause: WaitCause) -> Headline {
    let node = input.pod.own().and_then(|pod| pod.node.clone()).unwrap_or_default();
    match cause {
        WaitCause::OwnPodGone { lost: true, .. } => under_way(
            "NodeLost",
            Reason::NodeLost,
            format!(
                "node {node:?} has not confirmed that the VM's pod has ended, so the VM may still run there: bring the node \
                 back, or delete the Node object once it is certain that the machine is off"
            ),
        ),
        WaitCause::OwnPodGone {
            halted: true,
            lost: false,
        } => under_way(
            "Stopping",
            Reason::Stopping,
            "the guest is being shut down because runPolicy is Halted",
        ),
        WaitCause::OwnPodGone {
            halted: false,
            lost: false,
        } => match input.pod.own().map(|pod| &pod.phase) {
            Some(Phase::Ended(_)) if input.history.last_termination().is_some() => {
                under_way("Restarting", Reason::Crashed, last_end(input))
            }
            Some(
                Phase::Unscheduled { .. }
                | Phase::Starting { .. }
                | Phase::Running { .. }
                | Phase::Ended(_)
                | Phase::Unknown,
            )
            | None => under_way(
                "Restarting",
                Reason::Stopping,
                "the guest is being shut down to be started again",
            ),
        },
        WaitCause::VolumePodsGone => under_way(
            "Restarting",
            Reason::WaitingForOldPod,
            "the volume pods of the VM's last run have not gone yet, and the next pod opens their disks itself; where their node is lost, bring it back, or \
             delete the Node object once it is certain that the machine is off",
        ),
        WaitCause::OtherPodGone => under_way(
            "Pending",
            Reason::WaitingForOldPod,
            "the pod of a deleted VM of the same name has not gone yet",
        ),
        WaitCause::Backoff { until } => {
            let runs = input.history.failures();
            let message = format!(
                "{}; started again at {until} after {runs} short runs in a row",
                last_end(input)
            );
            under_way("Restarting", Reason::Crashed, message)
        }
    }
}

fn living(input: &Input<'_>) -> Headline {
    let Some(pod) = input.pod.own() else {
        return under_way("Starting", Reason::Starting, "the VM is starting");
    };
    match &pod.phase {
        Phase::Unscheduled { message: None } => {
            under_way("Pending", Reason::Waiting, "the VM's pod waits for the scheduler")
        }
        Phase::Unscheduled { message: Some(message) } => {
            let (reason, message) = unschedulable(message);
            under_way("Pending", reason, message)
        }
        Phase::Starting { .. } => match input.trouble {
            Some(trouble) if trouble.may_pass => under_way("Starting", trouble.part.reason(), &trouble.message),
            Some(trouble) => stalled("Failed", trouble.part.reason(), &trouble.message),
            None => under_way("Starting", Reason::Starting, "the VM is starting"),
        },
        Phase::Running { ready: true } => {
            let progress = match input.live.map(Live::progress) {
                Some(live::Progress::UnderWay) => Progress::Reconciling,
                _ if input.live.is_some_and(Live::plugs) => Progress::Reconciling,
                Some(live::Progress::Settled | live::Progress::Impossible) | None => Progress::Settled,
            };
            line("Running", true, Reason::Running, "the VM runs", progress)
        }
        Phase::Running { ready: false } => {
            let message = match input.vm.spec.readiness_probe {
                Some(_) => "the VM runs, but its readiness probe does not succeed (yet)",
                None => "the VM runs, but its pod is not ready",
            };
            under_way("Running", Reason::NotReady, message)
        }
        Phase::Ended(_) => under_way("Restarting", Reason::Crashed, last_end(input)),
        Phase::Unknown => under_way("NodeLost", Reason::NodeLost, "the VM's node does not answer"),
    }
}

/// Reason and message of a pod that found no node.
pub(super) fn unschedulable(scheduler: &str) -> (Reason, String) {
    if lacks_kvm(scheduler) {
        let message = format!(
            "no node offers KVM to this VM: {scheduler} Each node with a working /dev/kvm and the DaemonSet tandem-device-plugin \
             offers {KVM_RESOURCE}; see `kubectl -n tandem-system logs ds/tandem-device-plugin` for why one does not."
        );
        return (Reason::NoKvm, message);
    }
    (Reason::Unschedulable, scheduler.to_owned())
}

/// Whether KVM is what is missing: no node has it free, or nothing else is short where it is. The scheduler writes
/// `0/3 nodes are available: 1 Insufficient memory, 2 Insufficient tandem.dev/kvm. preemption: ...`.
fn lacks_kvm(scheduler: &str) -> bool {
    let words: Vec<&str> = scheduler.split_whitespace().collect();
    let all = words
        .first()
        .and_then(|share| share.split_once('/'))
        .and_then(|(_, all)| all.parse().ok());
    let short: Vec<(Option<u32>, &str)> = words
        .windows(3)
        .filter(|window| window[1] == "Insufficient")
        .map(|window| (window[0].parse().ok(), window[2].trim_end_matches(['.', ','])))
        .collect();
    let kvm = short.iter().find(|(_, resource)| *resource == KVM_RESOURCE);
    let alone = short.iter().all(|(_, resource)| *resource == KVM_RESOURCE);
    kvm.is_some_and(|(nodes, _)| alone || *nodes == all)
}

/// How the last run ended, in a sentence.
fn last_end(input: &Input<'_>) -> String {
    let Some(last) = input.history.last_termination() else {
        return "the VM's pod was deleted while it ran".to_owned();
    };
    match last.message.as_deref().filter(|message| !message.is_empty()) {
        Some(message) => format!("{}: {message}", last.reason),
        None => last.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_is_missing_where_nothing_else_is_short_on_the_nodes_that_have_it() {
        for (scheduler, lacks) in [
            ("0/2 nodes are available: 2 Insufficient tandem.dev/kvm.", true),
            (
                "0/2 nodes are available: 1 Insufficient tandem.dev/kvm, 1 node(s) had untolerated taint(s).",
                true,
            ),
            (
                "0/2 nodes are available: 2 Insufficient memory, 2 Insufficient tandem.dev/kvm. preemption: 0/2 nodes are available: \
                 2 Preemption is not helpful for scheduling.",
                true,
            ),
            (
                "0/2 nodes are available: 1 Insufficient tandem.dev/kvm, 2 Insufficient hugepages-2Mi. preemption: 0/2 nodes are available: \
                 2 Preemption is not helpful for scheduling.",
                false,
            ),
            (
                "0/2 nodes are available: 1 Insufficient memory, 1 Insufficient tandem.dev/kvm.",
                false,
            ),
            ("0/2 nodes are available: 2 Insufficient memory.", false),
            ("something else", false),
            ("", false),
        ] {
            assert_eq!(lacks_kvm(scheduler), lacks, "{scheduler}");
        }
    }
}
