//! The steps of a resize: a table, and a world in which everything is heard of late and out of order.

use std::sync::LazyLock;

use node_shim_protocol::VmConfig;
use proptest::prelude::*;
use serde_json::json;

use super::fixtures::{valid, with_spec};
use crate::virtual_machine::{
    desired::{
        resources::{Frame, GuestSize, PodSize},
        vm_config::vm_config,
    },
    resize::{Answer, Facts, Kubelet, PodResources, Report, Step, Target, step},
};

const MIB: u64 = 1 << 20;

/// A VM with 2 to 8 CPUs and 1 to 4 GiB, started with the least.
fn config() -> VmConfig {
    vm_config(&valid(&with_spec(&json!({
        "cpu": { "cores": 2, "maxCores": 8 }, "memory": { "size": "1Gi", "maxSize": "4Gi" },
    }))))
}

fn frame() -> Frame {
    static FRAME: LazyLock<Frame> = LazyLock::new(|| Frame::new(&config(), false, None));
    *FRAME
}

fn size(vcpus: u32, mebibytes: u64) -> GuestSize {
    GuestSize {
        vcpus,
        memory_bytes: mebibytes * MIB,
    }
}

/// What is known, and the step that follows.
struct Row {
    wanted: GuestSize,
    /// Sizes of the guests that the pod's spec, and what the kubelet put into effect, are enough for.
    pod: (GuestSize, GuestSize),
    kubelet: Kubelet,
    target: Option<(i64, GuestSize)>,
    guest: Option<(GuestSize, Option<i64>)>,
}

fn decided(row: &Row) -> Step {
    let frame = frame();
    step(&Facts {
        frame: &frame,
        wanted: row.wanted,
        pod: &PodResources {
            spec: frame.pod_size(row.pod.0),
            actual: Some(frame.pod_size(row.pod.1)),
            kubelet: row.kubelet.clone(),
        },
        target: row.target.map(|(sequence, size)| Target { sequence, size }),
        guest: row.guest.map(|(has, sequence)| report(has, sequence)),
    })
}

fn report(has: GuestSize, sequence: Option<i64>) -> Report {
    Report {
        has,
        answer: sequence.map(|sequence| Answer {
            sequence,
            refusal: None,
        }),
        hindrance: None,
    }
}

fn await_guest(has: Option<GuestSize>, target: GuestSize) -> Step {
    Step::AwaitGuest {
        has,
        target,
        hindrance: None,
    }
}

fn row(
    wanted: GuestSize,
    pod: (GuestSize, GuestSize),
    target: Option<(i64, GuestSize)>,
    guest: (GuestSize, Option<i64>),
) -> Row {
    Row {
        wanted,
        pod,
        kubelet: Kubelet::Quiet,
        target,
        guest: Some(guest),
    }
}

#[test]
fn steps_of_growing_and_shrinking() {
    let (small, large) = (size(2, 1024), size(4, 4096));
    let pod = |guest| Step::ResizePod(frame().pod_size(guest));
    let deferred = Kubelet::Deferred {
        message: "full".to_owned(),
    };
    let table = [
        (
            "nothing to do",
            row(small, (small, small), None, (small, None)),
            Step::Settled,
        ),
        (
            "growing begins with the pod",
            row(large, (small, small), None, (small, None)),
            pod(large),
        ),
        (
            "then the kubelet",
            row(large, (large, small), None, (small, None)),
            Step::AwaitKubelet(Kubelet::Quiet),
        ),
        (
            "which may have no room",
            Row {
                kubelet: deferred.clone(),
                ..row(large, (large, small), None, (small, None))
            },
            Step::AwaitKubelet(deferred.clone()),
        ),
        (
            "the owner may give up then",
            Row {
                kubelet: deferred,
                ..row(small, (large, small), None, (small, None))
            },
            pod(small),
        ),
        (
            "then the guest",
            row(large, (large, large), None, (small, None)),
            Step::AskGuest(large),
        ),
        (
            "which may take its time",
            row(large, (large, large), Some((1, large)), (size(4, 2048), Some(1))),
            await_guest(Some(size(4, 2048)), large),
        ),
        (
            "until it has it",
            row(large, (large, large), Some((1, large)), (large, Some(1))),
            Step::Settled,
        ),
        (
            "shrinking begins with the guest",
            row(small, (large, large), Some((1, large)), (large, Some(1))),
            Step::AskGuest(small),
        ),
        (
            "and the pod keeps the memory that the guest still has",
            row(small, (large, large), Some((2, small)), (size(2, 1026), Some(2))),
            Step::ResizePod(PodSize {
                cpu_millis: frame().pod_size(small).cpu_millis,
                memory_bytes: frame().pod_size(large).memory_bytes,
            }),
        ),
        (
            "nor while the VMM has not been told",
            row(small, (large, large), Some((2, small)), (small, Some(1))),
            await_guest(Some(small), small),
        ),
        (
            "then comes the pod",
            row(small, (large, large), Some((2, small)), (small, Some(2))),
            pod(small),
        ),
        (
            "and the kubelet",
            row(small, (small, large), Some((2, small)), (small, Some(2))),
            Step::AwaitKubelet(Kubelet::Quiet),
        ),
        (
            "a guest that is to have more CPUs and less memory gives up first",
            row(
                size(4, 1024),
                (size(2, 2048), size(2, 2048)),
                Some((1, size(2, 2048))),
                (size(2, 2048), Some(1)),
            ),
            Step::AskGuest(size(2, 1024)),
        ),
    ];
    for (name, row, expected) in table {
        assert_eq!(decided(&row), expected, "{name}");
    }
}

#[test]
fn without_a_report_the_pod_stays_as_large_as_it_is() {
    let (small, large) = (size(2, 1024), size(4, 4096));
    let unheard = Row {
        guest: None,
        ..row(small, (large, large), Some((2, small)), (small, None))
    };
    assert_eq!(decided(&unheard), await_guest(None, small));
}

/// The step where the VMM's answer is a refusal of the target with this sequence, and the guest has so much.
fn after_a_refusal(row: &Row, sequence: i64, has: GuestSize) -> Step {
    let frame = frame();
    let answer = Answer {
        sequence,
        refusal: Some("no".to_owned()),
    };
    step(&Facts {
        frame: &frame,
        wanted: row.wanted,
        pod: &PodResources {
            spec: frame.pod_size(row.pod.0),
            actual: Some(frame.pod_size(row.pod.1)),
            kubelet: Kubelet::Quiet,
        },
        target: row.target.map(|(sequence, size)| Target { sequence, size }),
        guest: Some(Report {
            answer: Some(answer),
            ..report(has, None)
        }),
    })
}

#[test]
fn a_target_that_the_vmm_refuses_takes_nothing_from_the_pod() {
    let (small, large) = (size(2, 1024), size(4, 4096));
    let refused = |target| Step::Refused {
        target,
        why: "no".to_owned(),
    };
    let grown = row(large, (large, large), Some((1, large)), (small, None));
    assert_eq!(after_a_refusal(&grown, 1, small), refused(large));
    // Even where the guest has no more than that: it may still take what it was allowed before.
    let shrunk = row(small, (large, large), Some((2, small)), (small, None));
    assert_eq!(after_a_refusal(&shrunk, 2, small), refused(small));
    // An answer to an older target says nothing of this one.
    assert_eq!(after_a_refusal(&shrunk, 1, small), await_guest(Some(small), small));
    // The owner may ask for something else.
    let given_up = row(small, (large, large), Some((1, large)), (small, None));
    assert_eq!(after_a_refusal(&given_up, 1, small), Step::AskGuest(small));
}

#[test]
fn a_guest_on_huge_pages_grows_within_the_pod_that_it_has() {
    let vm = valid(&with_spec(
        &json!({ "memory": { "size": "1Gi", "maxSize": "4Gi", "hugePages": "2Mi" } }),
    ));
    let frame = Frame::new(&vm_config(&vm), false, None);
    let pod = frame.pod_size(size(2, 1024));
    assert_eq!(pod, frame.pod_size(size(2, 4096)));
    let facts = Facts {
        frame: &frame,
        wanted: size(2, 4096),
        pod: &PodResources {
            spec: pod,
            actual: Some(pod),
            kubelet: Kubelet::Quiet,
        },
        target: None,
        guest: None,
    };
    assert_eq!(step(&facts), Step::AskGuest(size(2, 4096)));
}

/// Something that happens, and is not the operator's doing.
#[derive(Clone, Debug)]
enum Happening {
    Edit(u32, u64),
    /// The kubelet acts on what it has heard: it has room for this much, and can never have more than that.
    Kubelet {
        room_mebibytes: u64,
    },
    AgentHears,
    AgentTellsTheVmm,
    /// The VMM does not take what the agent has heard, and goes on with what it had.
    VmmRefuses,
    AgentReports,
    /// The guest plugs or unplugs so many MiB towards what the VMM allows.
    GuestMoves(u64),
    Reconcile,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => (1_u32..=8, 512_u64..=2048).prop_map(|(vcpus, blocks)| Happening::Edit(vcpus, blocks * 2)),
        2 => (500_u64..6000).prop_map(|room_mebibytes| Happening::Kubelet { room_mebibytes }),
        2 => Just(Happening::AgentHears),
        2 => Just(Happening::AgentTellsTheVmm),
        1 => Just(Happening::VmmRefuses),
        2 => Just(Happening::AgentReports),
        3 => (0_u64..3000).prop_map(Happening::GuestMoves),
        6 => Just(Happening::Reconcile),
    ]
}

/// The API server, a kubelet, a node agent, a VMM and its guest.
#[derive(Clone, Debug)]
struct World {
    wanted: GuestSize,
    spec: PodSize,
    actual: PodSize,
    kubelet: Kubelet,
    target: Option<Target>,
    /// Targets that the agent's watch has not delivered yet are those after this one.
    heard: Option<Target>,
    told: Option<Target>,
    refused: Option<i64>,
    has: GuestSize,
    report: Report,
}

impl World {
    fn new() -> Self {
        let start = frame().start;
        let pod = frame().pod_size(start);
        Self {
            wanted: start,
            spec: pod,
            actual: pod,
            kubelet: Kubelet::Quiet,
            target: None,
            heard: None,
            told: None,
            refused: None,
            has: start,
            report: report(start, None),
        }
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Edit(vcpus, mebibytes) => self.wanted = size(*vcpus, *mebibytes),
            Happening::Kubelet { room_mebibytes } => {
                let message = String::new();
                self.kubelet = if self.spec.memory_bytes > 5000 * MIB {
                    Kubelet::Infeasible { message }
                } else if self.spec.memory_bytes > self.actual.memory_bytes.max(room_mebibytes * MIB) {
                    Kubelet::Deferred { message }
                } else {
                    self.actual = self.spec;
                    Kubelet::Quiet
                };
            }
            Happening::AgentHears => self.heard = self.target,
            Happening::AgentTellsTheVmm => (self.told, self.refused) = (self.heard, None),
            Happening::VmmRefuses => self.refused = self.heard.map(|heard| heard.sequence),
            Happening::AgentReports => {
                let refused = self.refused.map(|sequence| Answer {
                    sequence,
                    refusal: Some("no".to_owned()),
                });
                let told = report(self.has, self.told.map(|told| told.sequence));
                self.report = Report {
                    answer: refused.or(told.answer),
                    ..told
                };
            }
            Happening::GuestMoves(mebibytes) => {
                let goal = self.told.map_or(frame().start, |told| told.size);
                self.has.vcpus = goal.vcpus;
                let towards = goal
                    .memory_bytes
                    .abs_diff(self.has.memory_bytes)
                    .min(mebibytes / 2 * 2 * MIB);
                if goal.memory_bytes > self.has.memory_bytes {
                    self.has.memory_bytes += towards;
                } else {
                    self.has.memory_bytes -= towards;
                }
            }
            Happening::Reconcile => {
                self.reconcile();
            }
        }
        let enough = frame().pod_size(self.has).memory_bytes;
        assert!(
            enough <= self.actual.memory_bytes,
            "the guest has more than its pod: {self:?}"
        );
        assert!(
            enough <= self.spec.memory_bytes,
            "the guest has more than its pod will have: {self:?}"
        );
    }

    fn reconcile(&mut self) -> Step {
        let frame = frame();
        let step = step(&Facts {
            frame: &frame,
            wanted: self.wanted,
            pod: &PodResources {
                spec: self.spec,
                actual: Some(self.actual),
                kubelet: self.kubelet.clone(),
            },
            target: self.target,
            guest: Some(self.report.clone()),
        });
        match &step {
            Step::ResizePod(size) => self.spec = *size,
            Step::AskGuest(size) => {
                self.target = Some(Target {
                    sequence: self.target.map_or(0, |target| target.sequence) + 1,
                    size: *size,
                });
            }
            Step::Settled | Step::AwaitKubelet(_) | Step::AwaitGuest { .. } | Step::Refused { .. } => {}
        }
        step
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_guest_never_has_more_than_its_pod_and_gets_what_the_spec_says(happenings in prop::collection::vec(happening(), 0..120)) {
        let mut world = World::new();
        for happening in &happenings {
            world.happen(happening);
        }
        // Everybody answers now, and the node has room.
        for _ in 0..12 {
            for happening in [
                Happening::Reconcile,
                Happening::Kubelet { room_mebibytes: 5000 },
                Happening::AgentHears,
                Happening::AgentTellsTheVmm,
                Happening::GuestMoves(5000),
                Happening::AgentReports,
            ] {
                world.happen(&happening);
            }
        }
        prop_assert_eq!(world.has, world.wanted);
        prop_assert_eq!(world.actual, frame().pod_size(world.wanted));
        prop_assert_eq!(world.reconcile(), Step::Settled);
    }
}
