//! The decision table: run policy and pod state, and what follows.

use crds::RunPolicy;

use super::fixtures::{POD_UID, at};
use crate::virtual_machine::{
    lifecycle::{Decision, Facts, RestCause, StallCause, StopCause, WaitCause, decide},
    pod_state::{Ended, Outcome, OwnPod, Phase, PodState},
    run_history::History,
};

use RunPolicy::{Always, Halted, Once, RerunOnFailure};

const POLICIES: [RunPolicy; 4] = RunPolicy::ALL;

fn own(phase: Phase) -> OwnPod {
    OwnPod {
        uid: POD_UID.to_owned(),
        created: at(0),
        generation: Some(1),
        restarted_at: None,
        deletion: None,
        node: Some("node-a".to_owned()),
        addresses: Vec::new(),
        phase,
    }
}

fn ended(outcome: Outcome) -> Phase {
    let reason = match outcome {
        Outcome::PoweredOff => "PoweredOff",
        Outcome::Failed => "GuestCrashed",
        Outcome::Hopeless => "InvalidDisk",
    };
    Phase::Ended(Ended {
        outcome,
        reason: reason.to_owned(),
        message: String::new(),
        exit_code: None,
        started: Some(at(2)),
        finished: Some(at(9)),
    })
}

fn boxed_own(phase: Phase) -> Box<OwnPod> {
    Box::new(own(phase))
}

/// Decides about a VM of generation 1 whose history knows nothing but its present pod.
fn decision(run_policy: RunPolicy, pod: &PodState) -> Decision {
    after(run_policy, pod, &History::default().with_pod(pod, at(10)))
}

fn after(run_policy: RunPolicy, pod: &PodState, history: &History) -> Decision {
    decide(&Facts {
        vm_is_deleted: false,
        run_policy,
        generation: Some(1),
        restarted_at: None,
        pod,
        volume_pods: false,
        history,
        now: at(10),
    })
}

#[test]
fn living_pods_are_kept_or_stopped() {
    for phase in [
        Phase::Unscheduled { message: None },
        Phase::Starting { waiting: None },
        Phase::Running { ready: false },
        Phase::Running { ready: true },
        Phase::Unknown,
    ] {
        let pod = PodState::Own(boxed_own(phase));
        let decisions = POLICIES.map(|policy| decision(policy, &pod));
        assert_eq!(
            decisions,
            [
                Decision::Keep,
                Decision::Keep,
                Decision::Keep,
                Decision::Stop(StopCause::Halted)
            ],
            "{pod:?}"
        );
    }
}

#[test]
fn ended_pods() {
    let completed = Decision::Rest(RestCause::Completed);
    let failed = Decision::Rest(RestCause::Failed);
    let stalled = Decision::Stall(StallCause::Hopeless);
    let table = [
        (
            Outcome::PoweredOff,
            [Decision::Remove, completed, completed, Decision::Remove],
        ),
        (
            Outcome::Failed,
            [Decision::Remove, Decision::Remove, failed, Decision::Remove],
        ),
        (Outcome::Hopeless, [stalled, stalled, stalled, Decision::Remove]),
    ];
    for (outcome, expected) in table {
        let pod = PodState::Own(boxed_own(ended(outcome)));
        assert_eq!(POLICIES.map(|policy| decision(policy, &pod)), expected, "{outcome:?}");
    }
}

#[test]
fn a_pod_that_was_removed_after_its_end_leaves_the_same_verdict() {
    let completed = Decision::Rest(RestCause::Completed);
    let failed = Decision::Rest(RestCause::Failed);
    let stalled = Decision::Stall(StallCause::Hopeless);
    let halted = Decision::Rest(RestCause::Halted);
    let table = [
        (Outcome::PoweredOff, [Decision::Create, completed, completed, halted]),
        (Outcome::Failed, [Decision::Create, Decision::Create, failed, halted]),
        (Outcome::Hopeless, [stalled, stalled, stalled, halted]),
    ];
    for (outcome, expected) in table {
        let history = History::default().with_pod(&PodState::Own(boxed_own(ended(outcome))), at(10));
        assert_eq!(
            POLICIES.map(|policy| after(policy, &PodState::Absent, &history)),
            expected,
            "{outcome:?}"
        );
    }
}

#[test]
fn no_pod_yet() {
    let decisions = POLICIES.map(|policy| decision(policy, &PodState::Absent));
    assert_eq!(
        decisions,
        [
            Decision::Create,
            Decision::Create,
            Decision::Create,
            Decision::Rest(RestCause::Halted)
        ]
    );
}

#[test]
fn a_pod_deleted_under_its_vm() {
    let history = History::default().with_pod(&PodState::Own(boxed_own(Phase::Running { ready: true })), at(10));
    let decisions = POLICIES.map(|policy| after(policy, &PodState::Absent, &history));
    let over = Decision::Rest(RestCause::Failed);
    assert_eq!(
        decisions,
        [
            Decision::Create,
            Decision::Create,
            over,
            Decision::Rest(RestCause::Halted)
        ]
    );
}

#[test]
fn other_pods_of_that_name() {
    let halted = Decision::Rest(RestCause::Halted);
    let wait = Decision::Wait(WaitCause::OtherPodGone);
    assert_eq!(
        POLICIES.map(|policy| decision(policy, &PodState::OfAnotherVm)),
        [wait, wait, wait, halted]
    );
    let taken = Decision::Stall(StallCause::PodNameTaken);
    assert_eq!(
        POLICIES.map(|policy| decision(policy, &PodState::Foreign)),
        [taken, taken, taken, halted]
    );
}

#[test]
fn terminating_pods_are_waited_for() {
    for (grace_end, lost) in [(60, false), (-19, false), (-100, true)] {
        let mut pod = own(Phase::Running { ready: true });
        pod.deletion = Some(at(grace_end));
        let pod = PodState::Own(Box::new(pod));
        for policy in POLICIES {
            let halted = policy == Halted;
            assert_eq!(
                decision(policy, &pod),
                Decision::Wait(WaitCause::OwnPodGone { halted, lost })
            );
        }
    }
}

#[test]
fn a_newer_restarted_at_restarts() {
    let decide_at = |policy, phase: Phase, served: Option<&str>, wanted| {
        let mut pod = own(phase);
        pod.restarted_at = served.map(str::to_owned);
        let pod = PodState::Own(Box::new(pod));
        let history = History::default().with_pod(&pod, at(10));
        decide(&Facts {
            vm_is_deleted: false,
            run_policy: policy,
            generation: Some(1),
            restarted_at: Some(at(wanted)),
            pod: &pod,
            volume_pods: false,
            history: &history,
            now: at(10),
        })
    };
    let served = at(5).to_string();
    let run = || Phase::Running { ready: true };
    assert_eq!(
        decide_at(Always, run(), None, 1),
        Decision::Stop(StopCause::Restart),
        "newer than the pod"
    );
    assert_eq!(decide_at(Always, run(), None, -1), Decision::Keep, "older than the pod");
    assert_eq!(
        decide_at(Always, run(), Some(&served), 5),
        Decision::Keep,
        "already served"
    );
    assert_eq!(
        decide_at(Always, run(), Some(&served), 1_000_000),
        Decision::Stop(StopCause::Restart),
        "in the future"
    );
    assert_eq!(
        decide_at(Once, ended(Outcome::Failed), Some(&served), 6),
        Decision::Remove
    );
    assert_eq!(
        decide_at(RerunOnFailure, ended(Outcome::PoweredOff), Some(&served), 6),
        Decision::Remove
    );
    assert_eq!(
        decide_at(Always, ended(Outcome::Hopeless), Some(&served), 6),
        Decision::Remove
    );
}

#[test]
fn a_changed_spec_ends_a_stall_and_a_backoff() {
    let facts = |pod, history| Facts {
        vm_is_deleted: false,
        run_policy: Always,
        generation: Some(2),
        restarted_at: None,
        pod,
        volume_pods: false,
        history,
        now: at(10),
    };
    let hopeless = PodState::Own(boxed_own(ended(Outcome::Hopeless)));
    let history = History::default().with_pod(&hopeless, at(10));
    assert_eq!(decide(&facts(&hopeless, &history)), Decision::Remove);
    assert_eq!(decide(&facts(&PodState::Absent, &history)), Decision::Create);
}

#[test]
fn a_deleted_vm_is_left_to_the_garbage_collector() {
    for pod in [
        PodState::Absent,
        PodState::Foreign,
        PodState::Own(boxed_own(Phase::Running { ready: true })),
    ] {
        let facts = Facts {
            vm_is_deleted: true,
            run_policy: Always,
            generation: Some(1),
            restarted_at: None,
            pod: &pod,
            volume_pods: false,
            history: &History::default(),
            now: at(10),
        };
        assert_eq!(decide(&facts), Decision::Leave);
    }
}

#[test]
fn a_pod_that_does_not_start_is_looked_at_more_and_more_seldom() {
    let after = |seconds: i64| crate::virtual_machine::starting_period(at(0), at(seconds)).as_secs();
    assert_eq!([0, 60, 120, 3600, 86400].map(after), [10, 10, 20, 600, 600]);
    assert_eq!(
        crate::virtual_machine::starting_period(at(60), at(0)).as_secs(),
        10,
        "a clock that goes wrong"
    );
}

#[test]
fn no_pod_is_made_beside_the_volume_pods_of_the_last_run() {
    let history = History::default();
    let decide_with = |volume_pods| {
        decide(&Facts {
            vm_is_deleted: false,
            run_policy: Always,
            generation: Some(1),
            restarted_at: None,
            pod: &PodState::Absent,
            volume_pods,
            history: &history,
            now: at(10),
        })
    };
    assert_eq!(decide_with(false), Decision::Create);
    assert_eq!(decide_with(true), Decision::Wait(WaitCause::VolumePodsGone));
}
