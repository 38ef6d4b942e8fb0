//! Disks from `status.targetDisks` and volume pods to the shim, and what is written of them.

use std::sync::Arc;

use crds::status::{TargetDisk, TargetDisks};
use node_shim_protocol::agent::{DiskOptions, Plugged, PluggedDisk};
use node_shim_protocol::control::{Failure, FailureKind};

use super::lenders::RESUME_PATIENCE;
use super::tests::{board, connected, connected_with, finish, report, status, vm};
use super::*;
use crate::serve::report::LenderLink;

/// The VM whose guest shall have these disks, each of the pod `web.DISK` with this UID.
fn with_disks(disks: &[(&str, &str)]) -> VirtualMachine {
    let mut vm = vm("u1", "p1");
    let disk = |(name, uid): &(&str, &str)| TargetDisk {
        name: (*name).into(),
        pod_name: format!("web.{name}"),
        pod_uid: (*uid).into(),
    };
    vm.status.as_mut().unwrap().target_disks = Some(TargetDisks {
        pod_uid: "p1".into(),
        disks: disks.iter().map(disk).collect(),
    });
    vm
}

fn lender(namespace: &str, disk: &str, uid: &str) -> PodId {
    PodId {
        name: PodName {
            namespace: namespace.into(),
            name: format!("web.{disk}"),
        },
        uid: uid.into(),
    }
}

fn lender_says(pod: PodId, connection: u64, what: What) -> Report {
    Report {
        pod,
        connection: ConnectionId(connection),
        what,
    }
}

fn lent() -> What {
    What::Lent(LenderLink {
        options: DiskOptions::default(),
        disk: Arc::new(std::fs::File::open("/dev/null").unwrap().into()),
        returned: tokio::sync::watch::channel(false).0,
    })
}

fn has(disks: &[(&str, &str)]) -> GuestStatus {
    let disk = |(name, lender): &(&str, &str)| PluggedDisk {
        name: (*name).into(),
        lender: (*lender).into(),
    };
    GuestStatus {
        disks: disks.iter().map(disk).collect(),
        ..status(GuestState::Running)
    }
}

fn says(disks: &[(&str, &str)]) -> Report {
    report(1, "p1", What::Guest(has(disks)))
}

fn answers(name: &str, failure: Option<FailureKind>, disks: &[(&str, &str)]) -> Report {
    let failure = failure.map(|kind| Failure {
        kind,
        message: "all slots are taken".into(),
    });
    let name = name.into();
    let status = has(disks);
    report(1, "p1", What::Plugged(Plugged { name, failure, status }))
}

/// The questions that are due, in words.
fn asked(board: &mut Board, now: Instant) -> Vec<String> {
    let due = board.due(now, 0);
    let shown = |(connection, order): (ConnectionId, DiskOrder)| match order {
        DiskOrder::Attach(disk) => format!("{} attach {} of {}", connection.0, disk.name, disk.lender),
        DiskOrder::Detach(name) => format!("{} detach {name}", connection.0),
    };
    due.disks.into_iter().map(shown).collect()
}

/// A guest without disks whose status is written.
fn settled(start: Instant) -> Board {
    let mut board = board(start);
    board.report(says(&[]), start);
    let due = board.due(start, 8);
    finish(&mut board, &due.writes[0], Outcome::Done, start);
    board
}

#[test]
fn a_disk_goes_from_its_lender_to_its_guest_and_back() {
    let start = Instant::now();
    let mut board = settled(start);
    let pod = lender("shop", "data", "v1");
    board.observe(&with_disks(&[("data", "v1")]));
    assert!(asked(&mut board, start).is_empty(), "nobody lends it yet");
    board.report(lender_says(pod.clone(), 7, lent()), start);
    assert_eq!(asked(&mut board, start), ["1 attach data of shop/web.data (v1)"]);
    board.report(answers("data", None, &[("data", "v1")]), start);
    let now = start + INTERVAL;
    let due = board.due(now, 8);
    let guest = due.writes[0].fields.guest.clone().unwrap();
    assert_eq!(
        (guest.disks[0].name.as_str(), guest.disks[0].pod_uid.as_str()),
        ("data", "v1")
    );
    finish(&mut board, &due.writes[0], Outcome::Done, now);

    // Its pod is to end: not before the guest has given the disk up.
    board.report(lender_says(pod, 7, What::Withdrawn), now);
    assert_eq!(board.due(now, 8).returned, []);
    board.observe(&with_disks(&[]));
    assert_eq!(asked(&mut board, now), ["1 detach data"]);
    board.report(answers("data", None, &[("data", "v1")]), now);
    assert_eq!(board.due(now, 8).returned, []);
    board.report(says(&[]), now);
    assert_eq!(board.due(now, 8).returned, [ConnectionId(7)]);
    assert_eq!(board.due(now, 8).returned, [], "once");
}

#[test]
fn a_disk_is_plugged_only_from_the_pod_that_is_named() {
    let start = Instant::now();
    for (what, pod) in [
        ("another namespace", lender("other", "data", "v1")),
        ("another pod", lender("shop", "other", "v1")),
        ("another run of the pod", lender("shop", "data", "v0")),
    ] {
        let mut board = settled(start);
        board.observe(&with_disks(&[("data", "v1")]));
        board.report(lender_says(pod, 7, lent()), start);
        assert!(asked(&mut board, start).is_empty(), "{what}");
    }
    // Nor into another run of the VM.
    let mut board = settled(start);
    let mut vm = with_disks(&[("data", "v1")]);
    vm.status.as_mut().unwrap().target_disks.as_mut().unwrap().pod_uid = "p0".into();
    board.observe(&vm);
    board.report(lender_says(lender("shop", "data", "v1"), 7, lent()), start);
    assert!(asked(&mut board, start).is_empty());
}

#[test]
fn a_shim_of_an_earlier_release_is_never_asked_and_that_is_said() {
    let start = Instant::now();
    let mut board = Board::default();
    board.observe(&with_disks(&[("data", "v1")]));
    board.report(connected_with(1, "p1", 3), start);
    board.report(says(&[]), start);
    board.report(lender_says(lender("shop", "data", "v1"), 7, lent()), start);
    let due = board.due(start, 8);
    assert!(due.disks.is_empty());
    let refused = &due.writes[0].fields.guest.as_ref().unwrap().refused_disks[0];
    assert!(refused.message.contains("restart the VM"), "{refused:?}");
}

#[test]
fn what_a_guest_cannot_have_is_written_and_tried_again() {
    let start = Instant::now();
    let mut board = settled(start);
    board.observe(&with_disks(&[("data", "v1")]));
    board.report(lender_says(lender("shop", "data", "v1"), 7, lent()), start);
    assert_eq!(asked(&mut board, start).len(), 1);
    board.report(answers("data", Some(FailureKind::Failed), &[]), start);
    let now = start + INTERVAL;
    let due = board.due(now, 8);
    let refused = &due.writes[0].fields.guest.as_ref().unwrap().refused_disks;
    assert_eq!(
        (refused[0].name.as_str(), refused[0].message.as_str()),
        ("data", "all slots are taken")
    );
    assert_eq!(due.next, Some(start + disks::RETRY_FIRST));
    assert_eq!(asked(&mut board, start + disks::RETRY_FIRST).len(), 1);
}

/// After a restart everything follows from what the API, the shims and the lenders say.
#[test]
fn another_agent_goes_on_where_the_last_one_was() {
    let start = Instant::now();
    let mut board = Board::begin(start);
    board.observe(&with_disks(&[("data", "v1"), ("more", "v2")]));
    board.report(lender_says(lender("shop", "data", "v1"), 7, lent()), start);
    board.report(lender_says(lender("shop", "more", "v2"), 8, lent()), start);
    board.report(lender_says(lender("shop", "old", "v3"), 9, lent()), start);
    board.report(lender_says(lender("shop", "old", "v3"), 9, What::Withdrawn), start);
    let due = board.due(start, 8);
    assert_eq!(
        (due.returned, due.next),
        (vec![], Some(start + RESUME_PATIENCE)),
        "a shim may have it"
    );
    board.report(connected(1, "p1"), start);
    board.report(says(&[("data", "v1"), ("old", "v3")]), start);
    assert_eq!(asked(&mut board, start), ["1 detach old"]);
    board.report(answers("old", None, &[("data", "v1")]), start);
    assert_eq!(asked(&mut board, start), ["1 attach more of shop/web.more (v2)"]);
    assert_eq!(board.due(start + RESUME_PATIENCE, 8).returned, [ConnectionId(9)]);
}

#[test]
fn a_guest_that_hangs_up_may_be_back_with_its_disks() {
    let start = Instant::now();
    let mut board = settled(start);
    let pod = lender("shop", "data", "v1");
    board.report(lender_says(pod.clone(), 7, lent()), start);
    board.report(says(&[("data", "v1")]), start);
    board.report(lender_says(pod, 7, What::Withdrawn), start);
    board.report(report(1, "p1", What::HungUp), start);
    assert_eq!(board.due(start, 8).returned, []);
    // It was gone for a moment only.
    board.report(connected(2, "p1"), start);
    board.report(report(2, "p1", What::Guest(has(&[("data", "v1")]))), start);
    assert_eq!(board.due(start + RESUME_PATIENCE, 8).returned, []);
    board.report(report(2, "p1", What::HungUp), start + RESUME_PATIENCE);
    assert_eq!(board.due(start + 2 * RESUME_PATIENCE, 8).returned, [ConnectionId(7)]);
}
