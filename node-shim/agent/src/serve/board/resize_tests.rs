//! A target from `status.target` to the shim, and its answer to `status.acknowledgedTarget`.

use crds::status::{AcknowledgedTarget, GuestTarget};
use node_shim_protocol::agent::Resized;
use node_shim_protocol::control::{Failure, FailureKind};

use super::tests::{board, connected, finish, report, status, vm};
use super::*;

const GIB: u64 = 1 << 30;

/// The VM with a target for the guest of `pod_uid`.
fn with_target(pod_uid: &str, sequence: i64, gibibytes: u64) -> VirtualMachine {
    let mut vm = vm("u1", "p1");
    vm.status.as_mut().unwrap().target = Some(GuestTarget {
        pod_uid: pod_uid.into(),
        sequence,
        vcpus: 2,
        memory_bytes: i64::try_from(gibibytes * GIB).unwrap(),
    });
    vm
}

fn has(bytes: u64) -> GuestStatus {
    GuestStatus {
        memory_bytes: bytes,
        ..status(GuestState::Running)
    }
}

fn says(bytes: u64) -> Report {
    report(1, "p1", What::Guest(has(bytes)))
}

fn answers(sequence: u64, bytes: u64, failure: Option<FailureKind>) -> Report {
    let failure = failure.map(|kind| Failure {
        kind,
        message: "too much".into(),
    });
    let status = has(bytes);
    report(
        1,
        "p1",
        What::Resized(Resized {
            sequence,
            failure,
            status,
        }),
    )
}

/// Sequences of the orders that are due.
fn orders(board: &mut Board, now: Instant) -> Vec<u64> {
    let orders = board.due(now, 8).orders;
    orders.into_iter().map(|(_, resize)| resize.sequence).collect()
}

/// Memory and acknowledgement of the one write that is due.
fn written(board: &mut Board, now: Instant) -> (String, Option<AcknowledgedTarget>) {
    let due = board.due(now, 8);
    assert_eq!((due.writes.len(), due.orders.len()), (1, 0), "{due:?}");
    finish(board, &due.writes[0], Outcome::Done, now);
    let Fields { guest, acknowledged } = due.writes[0].fields.clone();
    (guest.unwrap().memory.unwrap(), acknowledged)
}

fn taken(sequence: i64) -> AcknowledgedTarget {
    AcknowledgedTarget {
        pod_uid: "p1".into(),
        sequence,
        refusal: None,
    }
}

/// A guest of 1 GiB whose status is written.
fn settled(start: Instant) -> Board {
    let mut board = board(start);
    board.report(says(GIB), start);
    assert_eq!(written(&mut board, start), ("1Gi".into(), None));
    board
}

#[test]
fn a_guest_that_is_quick_costs_one_write() {
    let start = Instant::now();
    let later = start + Duration::from_mins(1);
    let mut board = settled(start);
    board.observe(&with_target("p1", 1, 4));
    let due = board.due(later, 8);
    let resize = Resize {
        sequence: 1,
        vcpus: 2,
        memory_bytes: 4 * GIB,
    };
    assert_eq!((due.orders, due.writes), (vec![(ConnectionId(1), resize)], vec![]));
    assert_eq!(board.due(later, 8), Due::default(), "once");
    board.report(answers(1, GIB, None), later);
    let hold = Due {
        next: Some(later + RESIZE_HOLD),
        ..Due::default()
    };
    assert_eq!(board.due(later, 8), hold);
    board.report(says(2 * GIB), later + RESIZE_HOLD / 4);
    assert_eq!(board.due(later + RESIZE_HOLD / 4, 8), hold);
    let there = later + RESIZE_HOLD / 2;
    board.report(says(4 * GIB), there);
    assert_eq!(written(&mut board, there), ("4Gi".into(), Some(taken(1))));
    // Nothing more, for as long as nothing happens.
    assert_eq!(board.due(there + Duration::from_hours(1), 8), Due::default());
    board.observe(&with_target("p1", 1, 4));
    assert_eq!(board.due(there + Duration::from_hours(1), 8), Due::default());
}

#[test]
fn a_guest_that_is_slow_is_written_of_now_and_then_and_when_it_is_there() {
    let start = Instant::now();
    let mut board = settled(start);
    board.observe(&with_target("p1", 1, 4));
    let asked = start + INTERVAL;
    assert_eq!(orders(&mut board, asked), [1]);
    board.report(answers(1, GIB, None), asked);
    let first = asked + RESIZE_HOLD;
    assert_eq!(written(&mut board, first), ("1Gi".into(), Some(taken(1))));
    board.report(says(GIB + GIB / 2), first);
    board.report(says(2 * GIB), first + INTERVAL);
    assert_eq!(
        board.due(first + INTERVAL, 8),
        Due {
            next: Some(first + PROGRESS_INTERVAL),
            ..Due::default()
        }
    );
    assert_eq!(
        written(&mut board, first + PROGRESS_INTERVAL),
        ("2Gi".into(), Some(taken(1)))
    );
    let there = first + PROGRESS_INTERVAL + INTERVAL;
    board.report(says(4 * GIB), there);
    assert_eq!(written(&mut board, there), ("4Gi".into(), Some(taken(1))));
}

/// What keeps a guest back is for its owner to know at once, not with the next progress.
#[test]
fn a_hindrance_is_written_at_once() {
    let start = Instant::now();
    let mut board = settled(start);
    board.observe(&with_target("p1", 1, 4));
    let asked = start + INTERVAL;
    assert_eq!(orders(&mut board, asked), [1]);
    let mut stuck = has(GIB);
    stuck.hindrance = Some("no driver".into());
    board.report(
        report(
            1,
            "p1",
            What::Resized(Resized {
                sequence: 1,
                failure: None,
                status: stuck,
            }),
        ),
        asked,
    );
    assert_eq!(written(&mut board, asked), ("1Gi".into(), Some(taken(1))));
}

/// The pod is made smaller by what is written: a size from before the answer must never stand beside it.
#[test]
fn an_answer_is_written_with_what_the_guest_had_then() {
    let start = Instant::now();
    let mut board = settled(start);
    board.observe(&with_target("p1", 1, 4));
    let asked = start + INTERVAL;
    assert_eq!(orders(&mut board, asked), [1]);
    board.observe(&with_target("p1", 2, 1));
    assert_eq!(orders(&mut board, asked), [2]);
    // The guest took 3 GiB in between, and nobody had said so.
    board.report(answers(1, 3 * GIB, None), asked);
    board.report(answers(2, 3 * GIB, None), asked);
    assert_eq!(written(&mut board, asked + RESIZE_HOLD), ("3Gi".into(), Some(taken(2))));
}

#[test]
fn only_the_newest_target_of_the_present_pod_is_asked_for() {
    let start = Instant::now();
    let mut board = settled(start);
    board.observe(&with_target("p0", 9, 4));
    assert_eq!(orders(&mut board, start), [0; 0], "another pod's");
    board.observe(&with_target("p1", 3, 4));
    board.observe(&with_target("p1", 2, 2));
    assert_eq!(orders(&mut board, start), [3], "the watch went back");
    board.observe(&with_target("p1", 2, 2));
    assert_eq!(orders(&mut board, start), [0; 0]);
}

#[test]
fn a_conversation_of_another_run_of_the_vm_is_not_asked() {
    let start = Instant::now();
    let mut board = Board::default();
    board.observe(&with_target("p1", 1, 4));
    board.report(connected(1, "p0"), start);
    board.report(report(1, "p0", What::Guest(has(GIB))), start);
    assert_eq!(board.due(start + INTERVAL, 8), Due::default());
    board.report(connected(2, "p1"), start);
    assert_eq!(orders(&mut board, start), [1]);
}

#[test]
fn a_refusal_is_written_and_asked_again_only_where_that_may_help() {
    let start = Instant::now();
    for (kind, again) in [(FailureKind::Invalid, false), (FailureKind::Failed, true)] {
        let mut board = settled(start);
        board.observe(&with_target("p1", 1, 4));
        let asked = start + INTERVAL;
        assert_eq!(orders(&mut board, asked), [1]);
        board.report(answers(1, GIB, Some(kind)), asked);
        let refused = AcknowledgedTarget {
            refusal: Some("too much".into()),
            ..taken(1)
        };
        assert_eq!(written(&mut board, asked), ("1Gi".into(), Some(refused)));
        let retry = asked + orders::RETRY_FIRST;
        let next = board.due(asked + INTERVAL, 8).next;
        assert_eq!(next, again.then_some(retry), "{kind:?}");
        assert_eq!(orders(&mut board, retry), if again { vec![1] } else { vec![] });
        // The same answer again is no news.
        board.report(answers(1, GIB, Some(kind)), retry);
        assert_eq!(board.due(retry, 8).writes, []);
        // Another target is another matter.
        board.observe(&with_target("p1", 2, 2));
        assert_eq!(orders(&mut board, retry), [2]);
        board.report(answers(2, 2 * GIB, None), retry);
        assert_eq!(written(&mut board, retry), ("2Gi".into(), Some(taken(2))));
    }
}

#[test]
fn a_restarted_agent_asks_only_for_what_was_not_taken() {
    let start = Instant::now();
    let refused = AcknowledgedTarget {
        refusal: Some("too much".into()),
        ..taken(2)
    };
    let other = AcknowledgedTarget {
        pod_uid: "p0".into(),
        ..taken(7)
    };
    let none: [u64; 0] = [];
    for (known, expected) in [
        (Some(taken(2)), &none[..]),
        (Some(taken(1)), &[2]),
        (None, &[2]),
        (Some(refused), &[2]),
        (Some(other), &[2]),
    ] {
        let mut vm = with_target("p1", 2, 4);
        vm.status.as_mut().unwrap().acknowledged_target = known.clone();
        let mut board = Board::default();
        board.observe(&vm);
        board.report(connected(1, "p1"), start);
        assert_eq!(orders(&mut board, start), expected, "{known:?}");
    }
}

/// A conversation that breaks off may have lost what was asked in it.
#[test]
fn the_next_conversation_is_asked_what_the_last_one_did_not_answer() {
    let start = Instant::now();
    let mut board = settled(start);
    board.observe(&with_target("p1", 1, 4));
    assert_eq!(orders(&mut board, start), [1]);
    board.report(report(1, "p1", What::HungUp), start);
    assert_eq!(orders(&mut board, start), [0; 0]);
    board.report(connected(2, "p1"), start);
    assert_eq!(orders(&mut board, start), [1]);
    // The same where the old one's end is heard of later.
    board.report(connected(3, "p1"), start);
    board.report(report(2, "p1", What::HungUp), start);
    assert_eq!(orders(&mut board, start), [1]);
}

#[test]
fn an_acknowledgement_goes_with_the_run_that_it_is_of() {
    let start = Instant::now();
    let mut board = settled(start);
    board.observe(&with_target("p1", 1, 4));
    assert_eq!(orders(&mut board, start), [1]);
    board.report(answers(1, 4 * GIB, None), start);
    let next = start + INTERVAL;
    assert_eq!(written(&mut board, next), ("4Gi".into(), Some(taken(1))));
    // It stays beside whatever else is written of this run.
    board.report(
        report(
            1,
            "p1",
            What::Guest(GuestStatus {
                resets: 1,
                ..has(4 * GIB)
            }),
        ),
        next,
    );
    let next = next + INTERVAL;
    assert_eq!(written(&mut board, next), ("4Gi".into(), Some(taken(1))));
    board.observe(&vm("u1", "p2"));
    board.report(connected(2, "p2"), next);
    board.report(report(2, "p2", What::Guest(has(GIB))), next);
    let next = next + INTERVAL;
    assert_eq!(written(&mut board, next), ("1Gi".into(), None));
}

#[test]
fn targets_that_no_guest_can_have_are_left_alone() {
    let start = Instant::now();
    let mut board = settled(start);
    for (sequence, vcpus, memory_bytes) in [(-1, 2, 1 << 30), (1, -2, 1 << 30), (1, 2, -1)] {
        let mut vm = with_target("p1", 1, 1);
        vm.status.as_mut().unwrap().target = Some(GuestTarget {
            pod_uid: "p1".into(),
            sequence,
            vcpus,
            memory_bytes,
        });
        board.observe(&vm);
        assert_eq!(orders(&mut board, start), [0; 0]);
    }
}
