//! Whatever happens, and in whatever order: never two pods, never a hot loop, and in the end what the spec says.

use crds::RunPolicy;
use jiff::Timestamp;
use proptest::prelude::*;

use super::fixtures::at;
use crate::virtual_machine::{
    lifecycle::{Decision, Facts, decide},
    pod_state::{Ended, Outcome, OwnPod, Phase, PodState},
    run_history::History,
};

/// Something that happens to a VM, and is not the operator's doing.
#[derive(Clone, Debug)]
enum Happening {
    Policy(RunPolicy),
    RestartNow,
    EditSpec,
    PodRuns,
    PodEnds(Outcome),
    SomebodyDeletesThePod,
    KubeletConfirmsDeletion,
    SomebodyElseTakesTheName,
    SomebodyElseGivesTheNameBack,
    Seconds(u16),
    /// The operator starts anew: it knows only what the API holds. Its last status write may have been lost.
    OperatorRestarts {
        status_lost: bool,
    },
    Reconcile,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => prop::sample::select(RunPolicy::ALL.as_slice()).prop_map(Happening::Policy),
        1 => Just(Happening::RestartNow),
        1 => Just(Happening::EditSpec),
        3 => Just(Happening::PodRuns),
        3 => prop::sample::select([Outcome::PoweredOff, Outcome::Failed, Outcome::Hopeless].as_slice())
            .prop_map(Happening::PodEnds),
        1 => Just(Happening::SomebodyDeletesThePod),
        3 => Just(Happening::KubeletConfirmsDeletion),
        1 => Just(Happening::SomebodyElseTakesTheName),
        1 => Just(Happening::SomebodyElseGivesTheNameBack),
        2 => (1_u16..900).prop_map(Happening::Seconds),
        1 => any::<bool>().prop_map(|status_lost| Happening::OperatorRestarts { status_lost }),
        8 => Just(Happening::Reconcile),
    ]
}

/// The API server and one node.
#[derive(Clone, Debug)]
struct World {
    policy: RunPolicy,
    generation: i64,
    restarted_at: Option<Timestamp>,
    pod: PodState,
    history: History,
    earlier_history: History,
    seconds: i64,
    pods_made: u32,
    /// When the operator made pods since somebody last asked for something.
    made_at_seconds: Vec<i64>,
}

impl World {
    fn new() -> Self {
        Self {
            policy: RunPolicy::Always,
            generation: 1,
            restarted_at: None,
            pod: PodState::Absent,
            history: History::default(),
            earlier_history: History::default(),
            seconds: 0,
            pods_made: 0,
            made_at_seconds: Vec::new(),
        }
    }

    fn own(&mut self) -> Option<&mut OwnPod> {
        match &mut self.pod {
            PodState::Own(pod) => Some(pod),
            PodState::Absent | PodState::OfAnotherVm | PodState::Foreign => None,
        }
    }

    fn happen(&mut self, happening: &Happening) {
        let now = at(self.seconds);
        match happening {
            Happening::Policy(policy) => self.edit(|world| world.policy = *policy),
            Happening::RestartNow => self.edit(|world| world.restarted_at = Some(now)),
            Happening::EditSpec => self.edit(|_| {}),
            Happening::PodRuns => {
                if let Some(pod) = self.own().filter(|pod| !matches!(pod.phase, Phase::Ended(_))) {
                    pod.phase = Phase::Running { ready: true };
                }
            }
            Happening::PodEnds(outcome) => self.end_pod(*outcome),
            Happening::SomebodyDeletesThePod => {
                self.made_at_seconds.clear();
                if let Some(pod) = self.own() {
                    pod.deletion.get_or_insert(now);
                }
            }
            Happening::KubeletConfirmsDeletion => {
                if self.own().is_some_and(|pod| pod.deletion.is_some()) {
                    self.pod = PodState::Absent;
                }
            }
            Happening::SomebodyElseTakesTheName => {
                if self.pod == PodState::Absent {
                    self.pod = PodState::Foreign;
                }
            }
            Happening::SomebodyElseGivesTheNameBack => {
                if self.pod == PodState::Foreign {
                    self.pod = PodState::Absent;
                }
            }
            Happening::Seconds(seconds) => self.seconds += i64::from(*seconds),
            Happening::OperatorRestarts { status_lost } => {
                if *status_lost {
                    self.history = self.earlier_history.clone();
                }
            }
            Happening::Reconcile => {
                self.reconcile();
            }
        }
    }

    fn edit(&mut self, change: impl FnOnce(&mut Self)) {
        change(self);
        self.generation += 1;
        self.made_at_seconds.clear();
    }

    fn end_pod(&mut self, outcome: Outcome) {
        let now = at(self.seconds);
        let Some(pod) = self.own().filter(|pod| !matches!(pod.phase, Phase::Ended(_))) else {
            return;
        };
        let reason = match outcome {
            Outcome::PoweredOff => "PoweredOff",
            Outcome::Failed => "GuestCrashed",
            Outcome::Hopeless => "InvalidDisk",
        };
        pod.phase = Phase::Ended(Ended {
            outcome,
            reason: reason.to_owned(),
            message: String::new(),
            exit_code: None,
            started: Some(pod.created),
            finished: Some(now),
        });
    }

    /// One reconciliation: the same pure steps as the controller's.
    fn reconcile(&mut self) -> Decision {
        let now = at(self.seconds);
        let history = self.history.with_pod(&self.pod, now);
        let decision = decide(&Facts {
            vm_is_deleted: false,
            run_policy: self.policy,
            generation: Some(self.generation),
            restarted_at: self.restarted_at,
            pod: &self.pod,
            volume_pods: false,
            history: &history,
            now,
        });
        self.earlier_history = std::mem::replace(&mut self.history, history);
        match decision {
            Decision::Create => {
                assert_eq!(self.pod, PodState::Absent, "a second pod");
                self.pods_made += 1;
                self.made_at_seconds.push(self.seconds);
                self.pod = PodState::Own(Box::new(OwnPod {
                    uid: self.pods_made.to_string(),
                    created: now,
                    generation: Some(self.generation),
                    restarted_at: self.restarted_at.map(|time| time.to_string()),
                    deletion: None,
                    node: None,
                    addresses: Vec::new(),
                    phase: Phase::Starting { waiting: None },
                }));
            }
            Decision::Stop(_) | Decision::Remove => {
                let pod = self.own().expect("only the VM's own pod is ever deleted");
                assert!(pod.deletion.is_none(), "deleted twice");
                pod.deletion = Some(now);
            }
            Decision::Rest(crate::virtual_machine::lifecycle::RestCause::Halted) => self.history = History::default(),
            Decision::Keep | Decision::Wait(_) | Decision::Rest(_) | Decision::Stall(_) | Decision::Leave => {}
        }
        decision
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn never_two_pods_and_the_spec_wins(happenings in prop::collection::vec(happening(), 0..60)) {
        let mut world = World::new();
        for happening in &happenings {
            world.happen(happening);
        }
        // The world calms down: guests that run go on running, kubelets answer, and time passes.
        for _ in 0..12 {
            world.happen(&Happening::SomebodyElseGivesTheNameBack);
            world.happen(&Happening::PodRuns);
            world.happen(&Happening::KubeletConfirmsDeletion);
            world.happen(&Happening::Seconds(400));
            world.reconcile();
        }
        let alive = world.pod.own().is_some_and(|pod| matches!(pod.phase, Phase::Running { .. }) && pod.deletion.is_none());
        let hopeless = world.history.last_outcome() == Some(Outcome::Hopeless);
        match world.policy {
            RunPolicy::Always => prop_assert!(alive || hopeless, "{world:?}"),
            RunPolicy::Halted => prop_assert!(world.pod == PodState::Absent, "{world:?}"),
            RunPolicy::RerunOnFailure => {
                prop_assert!(alive || hopeless || world.history.last_outcome() == Some(Outcome::PoweredOff), "{world:?}");
            }
            RunPolicy::Once => prop_assert!(alive || world.history.has_started(), "{world:?}"),
        }
        // And stays so: nothing more is decided.
        let before = (world.pod.clone(), world.pods_made);
        world.reconcile();
        prop_assert_eq!((world.pod.clone(), world.pods_made), before);
    }

    #[test]
    fn never_a_hot_loop(policy in prop::sample::select(RunPolicy::ALL.as_slice()),
                        outcomes in prop::collection::vec(prop::sample::select([Outcome::PoweredOff, Outcome::Failed].as_slice()), 1..8),
                        steps in prop::collection::vec(1_u16..5, 200..400)) {
        let mut world = World::new();
        world.policy = policy;
        // Guests that end as soon as they start, and an operator that is always awake.
        for (index, seconds) in steps.iter().enumerate() {
            world.happen(&Happening::Seconds(*seconds));
            world.reconcile();
            world.happen(&Happening::PodEnds(outcomes[index % outcomes.len()]));
            world.happen(&Happening::KubeletConfirmsDeletion);
        }
        // 0, 10, 20, 40, 80, 160, 300, 300... seconds between starts.
        let within = |seconds: i64| {
            world.made_at_seconds.iter().map(|start| {
                world.made_at_seconds.iter().filter(|other| (*start..start + seconds).contains(other)).count()
            }).max().unwrap_or(0)
        };
        prop_assert!(within(10) <= 3, "{:?}", world.made_at_seconds);
        prop_assert!(within(600) <= 9, "{:?}", world.made_at_seconds);
    }
}
