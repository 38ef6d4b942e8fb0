//! Reports of guests and what is written of them. Sizes: [`super::resize_tests`].

use crds::guest;
use serde_json::json;

use super::*;

const GIB: u64 = 1 << 30;

pub(super) fn pod(uid: &str) -> PodId {
    PodId {
        name: PodName {
            namespace: "shop".into(),
            name: "web".into(),
        },
        uid: uid.into(),
    }
}

pub(super) fn vm(uid: &str, pod_uid: &str) -> VirtualMachine {
    serde_json::from_value(json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": { "namespace": "shop", "name": "web", "uid": uid },
        "spec": {
            "cpu": { "cores": 1 },
            "memory": { "size": "1Gi" },
            "boot": { "kernel": { "image": "example.com/kernel:1", "kernelPath": "/vmlinuz" } },
        },
        "status": { "nodeName": "n1", "podName": "web", "podUID": pod_uid },
    }))
    .unwrap()
}

pub(super) fn status(state: GuestState) -> GuestStatus {
    GuestStatus {
        state,
        boot_time_ms: 1_700_000_000_123,
        vcpus: 2,
        memory_bytes: GIB,
        resets: 0,
        kernel: None,
        hindrance: None,
        disks: Vec::new(),
    }
}

pub(super) fn report(connection: u64, pod_uid: &str, what: What) -> Report {
    Report {
        pod: pod(pod_uid),
        connection: ConnectionId(connection),
        what,
    }
}

pub(super) fn connected(connection: u64, pod_uid: &str) -> Report {
    connected_with(connection, pod_uid, node_shim_protocol::agent::VERSION)
}

/// Of a shim that speaks this version.
pub(super) fn connected_with(connection: u64, pod_uid: &str, version: u32) -> Report {
    let link = crate::serve::report::ShimLink {
        version,
        sizes: tokio::sync::watch::channel(None).0,
        disks: tokio::sync::watch::channel(None).0,
    };
    report(connection, pod_uid, What::Connected(link))
}

fn says(connection: u64, state: GuestState) -> Report {
    report(connection, "p1", What::Guest(status(state)))
}

/// A board with this VM and a conversation of its pod.
pub(super) fn board(now: Instant) -> Board {
    let mut board = Board::default();
    board.observe(&vm("u1", "p1"));
    board.report(connected(1, "p1"), now);
    board
}

/// The writes that are due, and when the next one is; there must be no orders.
fn due(board: &mut Board, now: Instant) -> (Vec<Write>, Option<Instant>) {
    let Due {
        writes,
        orders,
        disks,
        returned,
        next,
    } = board.due(now, 8);
    assert_eq!((orders, disks, returned), (vec![], vec![], vec![]));
    (writes, next)
}

fn states(writes: &[Write]) -> Vec<guest::GuestState> {
    writes
        .iter()
        .filter_map(|write| write.fields.guest.as_ref()?.state)
        .collect()
}

pub(super) fn finish(board: &mut Board, write: &Write, outcome: Outcome, now: Instant) {
    board.ended(&write.vm, &write.uid, outcome, now);
}

#[test]
fn a_quick_boot_is_one_write() {
    let start = Instant::now();
    let mut board = board(start);
    board.report(says(1, GuestState::Booting), start);
    assert_eq!(due(&mut board, start), (vec![], Some(start + BOOTING_HOLD)));
    let running = start + BOOTING_HOLD / 2;
    board.report(says(1, GuestState::Running), running);
    let (writes, next) = due(&mut board, running);
    assert_eq!((states(&writes), next), (vec![guest::GuestState::Running], None));
    let expected = json!({
        "podUID": "p1", "state": "Running", "bootTime": "2023-11-14T22:13:20Z", "vcpus": 2, "memory": "1Gi", "resets": 0,
    });
    assert_eq!(serde_json::to_value(&writes[0].fields.guest).unwrap(), expected);
    // In flight: not again.
    assert_eq!(due(&mut board, running), (vec![], None));
    finish(&mut board, &writes[0], Outcome::Done, running);
    assert_eq!(due(&mut board, running + INTERVAL), (vec![], None));
}

#[test]
fn a_slow_boot_is_two_writes() {
    let start = Instant::now();
    let mut board = board(start);
    board.report(says(1, GuestState::Booting), start);
    let (booting, _) = due(&mut board, start + BOOTING_HOLD);
    assert_eq!(states(&booting), [guest::GuestState::Booting]);
    finish(&mut board, &booting[0], Outcome::Done, start + BOOTING_HOLD);
    board.report(says(1, GuestState::Running), start + BOOTING_HOLD);
    assert_eq!(
        due(&mut board, start + BOOTING_HOLD),
        (vec![], Some(start + BOOTING_HOLD + INTERVAL))
    );
    assert_eq!(
        states(&due(&mut board, start + BOOTING_HOLD + INTERVAL).0),
        [guest::GuestState::Running]
    );
}

#[test]
fn failed_writes_are_tried_again_ever_more_slowly() {
    let mut now = Instant::now();
    let mut board = board(now);
    board.report(says(1, GuestState::Running), now);
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        let (writes, _) = due(&mut board, now);
        finish(&mut board, &writes[0], Outcome::Failed, now);
        let next = now + Duration::from_secs(seconds);
        assert_eq!(due(&mut board, now), (vec![], Some(next)));
        now = next;
    }
}

#[test]
fn a_new_pod_of_the_vm_is_reported_anew() {
    let start = Instant::now();
    let mut board = board(start);
    board.report(says(1, GuestState::Running), start);
    let (writes, _) = due(&mut board, start);
    finish(&mut board, &writes[0], Outcome::Done, start);
    // The old one still talks, as one does whose deletion was forced.
    board.observe(&vm("u1", "p2"));
    board.report(says(1, GuestState::PoweringOff), start);
    assert_eq!(due(&mut board, start + INTERVAL), (vec![], None));
    board.report(connected(2, "p2"), start);
    assert_eq!(due(&mut board, start + INTERVAL), (vec![], None));
    board.report(report(2, "p2", What::Guest(status(GuestState::Booting))), start);
    board.report(report(1, "p1", What::HungUp), start);
    let (writes, _) = due(&mut board, start + INTERVAL);
    let guest = writes[0].fields.guest.as_ref().unwrap();
    assert_eq!(
        (guest.pod_uid.as_deref(), guest.state),
        (Some("p2"), Some(guest::GuestState::Booting))
    );
}

#[test]
fn the_end_of_an_old_conversation_does_not_hide_a_newer_one() {
    let start = Instant::now();
    let mut board = board(start);
    board.report(connected(2, "p1"), start);
    board.report(says(2, GuestState::Running), start);
    board.report(connected(1, "p1"), start);
    board.report(report(1, "p1", What::HungUp), start);
    board.report(says(1, GuestState::PoweringOff), start);
    assert_eq!(states(&due(&mut board, start).0), [guest::GuestState::Running]);
}

#[test]
fn after_a_restart_of_the_agent_what_is_already_written_is_not_written_again() {
    let start = Instant::now();
    let mut before = board(start);
    before.report(says(1, GuestState::Running), start);
    let written = due(&mut before, start).0[0].fields.guest.clone();

    let mut known = vm("u1", "p1");
    // As the API server gives it back.
    let stored: guest::GuestStatus = serde_json::from_value(serde_json::to_value(written).unwrap()).unwrap();
    known.status.as_mut().unwrap().guest = Some(stored);
    let mut after = Board::default();
    after.report(connected(9, "p1"), start);
    after.report(says(9, GuestState::Running), start);
    after.observe(&known);
    assert_eq!(due(&mut after, start), (vec![], None));
}

#[test]
fn what_the_predecessor_writes_last_is_heard() {
    let start = Instant::now();
    let mut board = board(start);
    let mut behind = vm("u1", "p1");
    behind.status.as_mut().unwrap().guest = Some(guest::GuestStatus {
        pod_uid: Some("p1".into()),
        state: Some(guest::GuestState::Booting),
        ..guest::GuestStatus::default()
    });
    board.report(says(1, GuestState::Running), start);
    let wanted = {
        let mut other = self::board(start);
        other.report(says(1, GuestState::Running), start);
        due(&mut other, start).0[0].fields.guest.clone()
    };
    let mut newer = behind.clone();
    newer.status.as_mut().unwrap().guest = wanted;
    board.observe(&behind);
    board.observe(&newer);
    assert_eq!(due(&mut board, start), (vec![], None));
    board.observe(&behind);
    assert_eq!(due(&mut board, start).0.len(), 1);
}

#[test]
fn another_vm_of_the_same_name_is_not_mistaken_for_the_old_one() {
    let start = Instant::now();
    let mut board = board(start);
    board.report(says(1, GuestState::Running), start);
    let (writes, _) = due(&mut board, start);
    board.observe(&vm("u2", "p2"));
    board.report(connected(2, "p2"), start);
    board.report(report(2, "p2", What::Guest(status(GuestState::Running))), start);
    finish(&mut board, &writes[0], Outcome::Done, start);
    let (writes, _) = due(&mut board, start);
    assert_eq!(
        (
            writes[0].uid.as_str(),
            writes[0].fields.guest.as_ref().unwrap().pod_uid.as_deref()
        ),
        ("u2", Some("p2"))
    );
}

#[test]
fn vms_that_are_gone_or_have_no_pod_are_not_written_to() {
    let start = Instant::now();
    let mut board = board(start);
    board.report(says(1, GuestState::Running), start);
    board.forget(&vm("u1", "p1"));
    assert_eq!(due(&mut board, start), (vec![], None));
    board.observe(&vm("u1", "p1"));
    board.retain(&std::collections::BTreeSet::new());
    assert_eq!(due(&mut board, start), (vec![], None));
    board.observe(&vm("u1", "p1"));
    let mut without_pod = vm("u1", "p1");
    without_pod.status.as_mut().unwrap().pod_uid = None;
    board.observe(&without_pod);
    assert_eq!(due(&mut board, start), (vec![], None));
    board.observe(&vm("u1", "p1"));
    let (writes, _) = due(&mut board, start);
    finish(&mut board, &writes[0], Outcome::Gone, start);
    assert_eq!(due(&mut board, start + INTERVAL), (vec![], None));
}
