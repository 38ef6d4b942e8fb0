use serde_json::json;

use super::*;

const GIB: u64 = 1 << 30;

fn pod() -> PodName {
    PodName {
        namespace: "shop".into(),
        name: "web".into(),
    }
}

fn vm(uid: &str, pod_uid: &str) -> VirtualMachine {
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

fn status(state: GuestState) -> GuestStatus {
    GuestStatus {
        state,
        boot_time_ms: 1_700_000_000_123,
        vcpus: 2,
        memory_bytes: GIB,
        resets: 0,
        kernel: None,
    }
}

fn says(connection: u64, state: GuestState) -> Report {
    Report::Guest {
        pod: pod(),
        connection: ConnectionId(connection),
        status: status(state),
    }
}

fn states(writes: &[Write]) -> Vec<guest::GuestState> {
    writes.iter().filter_map(|write| write.guest.state).collect()
}

fn finish(board: &mut Board, write: &Write, outcome: Outcome, now: Instant) {
    board.ended(&write.vm, &write.uid, outcome, now);
}

#[test]
fn a_quick_boot_is_one_write() {
    let start = Instant::now();
    let mut board = Board::default();
    board.observe(&vm("u1", "p1"));
    board.report(says(1, GuestState::Booting), start);
    assert_eq!(board.due(start, 8), (vec![], Some(start + BOOTING_HOLD)));
    let running = start + BOOTING_HOLD / 2;
    board.report(says(1, GuestState::Running), running);
    let (writes, next) = board.due(running, 8);
    assert_eq!((states(&writes), next), (vec![guest::GuestState::Running], None));
    let expected = json!({
        "podUID": "p1", "state": "Running", "bootTime": "2023-11-14T22:13:20Z", "vcpus": 2, "memory": "1Gi", "resets": 0,
    });
    assert_eq!(serde_json::to_value(&writes[0].guest).unwrap(), expected);
    // In flight: not again.
    assert_eq!(board.due(running, 8), (vec![], None));
    finish(&mut board, &writes[0], Outcome::Done, running);
    assert_eq!(board.due(running + INTERVAL, 8), (vec![], None));
}

#[test]
fn a_slow_boot_is_two_writes() {
    let start = Instant::now();
    let mut board = Board::default();
    board.observe(&vm("u1", "p1"));
    board.report(says(1, GuestState::Booting), start);
    let (booting, _) = board.due(start + BOOTING_HOLD, 8);
    assert_eq!(states(&booting), [guest::GuestState::Booting]);
    finish(&mut board, &booting[0], Outcome::Done, start + BOOTING_HOLD);
    board.report(says(1, GuestState::Running), start + BOOTING_HOLD);
    assert_eq!(
        board.due(start + BOOTING_HOLD, 8),
        (vec![], Some(start + BOOTING_HOLD + INTERVAL))
    );
    assert_eq!(
        states(&board.due(start + BOOTING_HOLD + INTERVAL, 8).0),
        [guest::GuestState::Running]
    );
}

#[test]
fn failed_writes_are_tried_again_ever_more_slowly() {
    let mut now = Instant::now();
    let mut board = Board::default();
    board.observe(&vm("u1", "p1"));
    board.report(says(1, GuestState::Running), now);
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        let (writes, _) = board.due(now, 8);
        finish(&mut board, &writes[0], Outcome::Failed, now);
        let next = now + Duration::from_secs(seconds);
        assert_eq!(board.due(now, 8), (vec![], Some(next)));
        now = next;
    }
}

#[test]
fn a_new_pod_of_the_vm_is_reported_anew() {
    let start = Instant::now();
    let mut board = Board::default();
    board.observe(&vm("u1", "p1"));
    board.report(says(1, GuestState::Running), start);
    let (writes, _) = board.due(start, 8);
    finish(&mut board, &writes[0], Outcome::Done, start);
    board.report(
        Report::HungUp {
            pod: pod(),
            connection: ConnectionId(1),
        },
        start,
    );
    board.observe(&vm("u1", "p2"));
    assert_eq!(board.due(start + INTERVAL, 8), (vec![], None));
    board.report(says(2, GuestState::Running), start);
    let (writes, _) = board.due(start + INTERVAL, 8);
    assert_eq!(writes[0].guest.pod_uid.as_deref(), Some("p2"));
}

#[test]
fn the_end_of_an_old_conversation_does_not_hide_a_newer_one() {
    let start = Instant::now();
    let mut board = Board::default();
    board.observe(&vm("u1", "p1"));
    board.report(says(2, GuestState::Running), start);
    board.report(
        Report::HungUp {
            pod: pod(),
            connection: ConnectionId(1),
        },
        start,
    );
    board.report(says(1, GuestState::PoweringOff), start);
    assert_eq!(states(&board.due(start, 8).0), [guest::GuestState::Running]);
}

#[test]
fn after_a_restart_of_the_agent_what_is_already_written_is_not_written_again() {
    let start = Instant::now();
    let mut before = Board::default();
    before.observe(&vm("u1", "p1"));
    before.report(says(1, GuestState::Running), start);
    let written = before.due(start, 8).0[0].guest.clone();

    let mut known = vm("u1", "p1");
    // As the API server gives it back.
    let stored: guest::GuestStatus = serde_json::from_value(serde_json::to_value(written).unwrap()).unwrap();
    known.status.as_mut().unwrap().guest = Some(stored);
    let mut after = Board::default();
    after.report(says(9, GuestState::Running), start);
    after.observe(&known);
    assert_eq!(after.due(start, 8), (vec![], None));
}

#[test]
fn another_vm_of_the_same_name_is_not_mistaken_for_the_old_one() {
    let start = Instant::now();
    let mut board = Board::default();
    board.observe(&vm("u1", "p1"));
    board.report(says(1, GuestState::Running), start);
    let (writes, _) = board.due(start, 8);
    board.observe(&vm("u2", "p2"));
    finish(&mut board, &writes[0], Outcome::Done, start);
    let (writes, _) = board.due(start, 8);
    assert_eq!(
        (writes[0].uid.as_str(), writes[0].guest.pod_uid.as_deref()),
        ("u2", Some("p2"))
    );
}

#[test]
fn vms_that_are_gone_or_have_no_pod_are_not_written_to() {
    let start = Instant::now();
    let mut board = Board::default();
    board.report(says(1, GuestState::Running), start);
    board.observe(&vm("u1", "p1"));
    board.forget(&vm("u1", "p1"));
    assert_eq!(board.due(start, 8), (vec![], None));
    board.observe(&vm("u1", "p1"));
    board.retain(&std::collections::BTreeSet::new());
    assert_eq!(board.due(start, 8), (vec![], None));
    board.observe(&vm("u1", "p1"));
    let mut without_pod = vm("u1", "p1");
    without_pod.status.as_mut().unwrap().pod_uid = None;
    board.observe(&without_pod);
    assert_eq!(board.due(start, 8), (vec![], None));
    board.observe(&vm("u1", "p1"));
    let (writes, _) = board.due(start, 8);
    finish(&mut board, &writes[0], Outcome::Gone, start);
    assert_eq!(board.due(start + INTERVAL, 8), (vec![], None));
}

#[test]
fn numbers_that_the_api_has_no_room_for_are_refused() {
    let good = status(GuestState::Running);
    assert!(is_plausible(&good));
    assert!(!is_plausible(&GuestStatus {
        boot_time_ms: u64::MAX,
        ..good.clone()
    }));
    assert!(!is_plausible(&GuestStatus {
        vcpus: u32::MAX,
        ..good.clone()
    }));
    assert!(!is_plausible(&GuestStatus {
        memory_bytes: u64::MAX,
        ..good.clone()
    }));
    assert!(!is_plausible(&GuestStatus {
        resets: u64::MAX,
        ..good.clone()
    }));
    assert!(!is_plausible(&GuestStatus {
        kernel: Some("x".repeat(KERNEL_MAX_BYTES + 1)),
        ..good.clone()
    }));
    assert!(!is_plausible(&GuestStatus {
        kernel: Some("two\nlines".to_owned()),
        ..good
    }));
}

#[test]
fn memory_is_written_as_people_write_it() {
    let cases = [
        (0, "0"),
        (1000, "1000"),
        (1 << 10, "1Ki"),
        (512 << 20, "512Mi"),
        (GIB + (GIB / 2), "1536Mi"),
        (3 << 40, "3Ti"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(quantity(bytes), expected);
    }
}
