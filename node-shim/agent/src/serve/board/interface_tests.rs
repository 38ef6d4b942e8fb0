//! Interfaces from `status.targetInterfaces` to the shim, and what is written of them.

use std::time::Instant;

use crds::VirtualMachine;
use crds::status::{TargetInterface, TargetInterfaces};
use node_shim_protocol::agent::{GuestState, GuestStatus, PluggedInterface};
use node_shim_protocol::control::{Failure, FailureKind};

use super::plugs::{Order, RETRY_FIRST};
use super::tests::{board, report, status, vm};
use super::{Board, InterfaceOrder};
use crate::serve::report::{InterfaceAnswer, WantedInterface, What};

fn target(interfaces: &[(&str, i32)]) -> VirtualMachine {
    let mut vm = vm("u1", "p1");
    let interface = |(name, number): &(&str, i32)| TargetInterface {
        name: (*name).into(),
        number: *number,
        mac: "02:00:00:00:00:01".into(),
    };
    vm.status.as_mut().unwrap().target_interfaces = Some(TargetInterfaces {
        pod_uid: "p1".into(),
        interfaces: interfaces.iter().map(interface).collect(),
    });
    vm
}

fn has(interfaces: &[(&str, u8)]) -> GuestStatus {
    let interface = |(name, number): &(&str, u8)| PluggedInterface {
        name: (*name).into(),
        number: *number,
    };
    GuestStatus {
        interfaces: interfaces.iter().map(interface).collect(),
        ..status(GuestState::Running)
    }
}

fn attach(name: &str, number: u8) -> InterfaceOrder {
    Order::Attach(WantedInterface {
        name: name.into(),
        number,
        mac: "02:00:00:00:00:01".into(),
    })
}

fn asked(board: &mut Board, now: Instant) -> Vec<InterfaceOrder> {
    board
        .due(now, 0)
        .interfaces
        .into_iter()
        .map(|(_, order)| order)
        .collect()
}

fn answer(board: &mut Board, name: &str, failure: Option<&str>, status: Option<GuestStatus>, now: Instant) {
    let failure = failure.map(|message| Failure {
        kind: FailureKind::Failed,
        message: message.into(),
    });
    let name = name.into();
    let answer = InterfaceAnswer { name, failure, status };
    board.report(report(1, "p1", What::Interface(answer)), now);
}

#[test]
fn an_interface_is_asked_for_once_and_given_up_when_it_is_wanted_no_more() {
    let now = Instant::now();
    let mut board = board(now);
    board.report(report(1, "p1", What::Guest(has(&[]))), now);
    // Nobody can have a number like this.
    board.observe(&target(&[("a", 1), ("far", 8)]));
    assert_eq!(asked(&mut board, now), [attach("a", 1)]);
    assert_eq!(asked(&mut board, now), []);
    answer(&mut board, "a", None, Some(has(&[("a", 1)])), now);
    assert_eq!(asked(&mut board, now), []);
    let guest = board.due(now, 1).writes.remove(0).fields.guest.unwrap();
    assert_eq!(
        (guest.interfaces[0].name.as_str(), guest.interfaces[0].number),
        ("a", 1)
    );
    // Another number is another interface.
    board.observe(&target(&[("a", 2)]));
    assert_eq!(asked(&mut board, now), [Order::Detach("a".into())]);
    answer(&mut board, "a", None, Some(has(&[])), now);
    assert_eq!(asked(&mut board, now), [attach("a", 2)]);
}

#[test]
fn a_tap_that_cannot_be_made_is_said_and_tried_again() {
    let now = Instant::now();
    let mut board = board(now);
    board.report(report(1, "p1", What::Guest(has(&[]))), now);
    board.observe(&target(&[("a", 1)]));
    assert_eq!(asked(&mut board, now), [attach("a", 1)]);
    answer(&mut board, "a", Some("no nft_nat"), None, now);
    let due = board.due(now, 1);
    let guest = due.writes[0].fields.guest.clone().unwrap();
    assert_eq!(guest.refused_interfaces[0].message, "no nft_nat");
    assert_eq!((due.interfaces, due.next), (vec![], Some(now + RETRY_FIRST)));
    assert_eq!(asked(&mut board, now + RETRY_FIRST), [attach("a", 1)]);
}
