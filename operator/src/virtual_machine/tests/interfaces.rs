//! Interfaces that come and go while their VM runs: which, with which number, and what is said.

use crds::{
    VirtualMachine,
    guest::{GuestStatus, PluggedInterface, RefusedInterface},
    status::{TargetInterface, TargetInterfaces},
};
use serde_json::{Value, json};

use super::fixtures::{POD_UID, at, bound, pod, running, valid, with_spec};
use crate::virtual_machine::{
    interfaces::{self, Facts, Plan},
    live::Live,
    pod_state::PodState,
};

fn target(interfaces: &[(&str, i32)]) -> TargetInterfaces {
    let interface = |(name, number): &(&str, i32)| TargetInterface {
        name: (*name).to_owned(),
        number: *number,
        mac: crate::virtual_machine::desired::identity::mac("vm", name),
    };
    TargetInterfaces {
        pod_uid: POD_UID.to_owned(),
        interfaces: interfaces.iter().map(interface).collect(),
    }
}

fn guest(interfaces: &[(&str, i32)], refused: &[(&str, i32)]) -> GuestStatus {
    let has = |(name, number): &(&str, i32)| PluggedInterface {
        name: (*name).to_owned(),
        number: *number,
    };
    let refused_one = |(name, number): &(&str, i32)| RefusedInterface {
        name: (*name).to_owned(),
        number: *number,
        message: "no room".to_owned(),
    };
    GuestStatus {
        interfaces: interfaces.iter().map(has).collect(),
        refused_interfaces: refused.iter().map(refused_one).collect(),
        ..GuestStatus::default()
    }
}

fn plan(wanted: &[&str], target: Option<&TargetInterfaces>, guest: &GuestStatus) -> Plan {
    let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    interfaces::plan(&Facts {
        vm: "vm",
        run: POD_UID,
        configured: 1,
        wanted: &wanted,
        target,
        guest: Some(guest),
    })
}

#[test]
fn numbers_are_the_interfaces_own() {
    type Named<'a> = &'a [(&'a str, i32)];
    type Row<'a> = (&'a str, &'a [&'a str], Named<'a>, Named<'a>, Named<'a>, &'a [&'a str]);
    let none: Named<'_> = &[];
    let table: [Row<'_>; 7] = [
        ("the first", &["a"], none, none, &[("a", 1)], &["a"]),
        ("asked for", &["a"], &[("a", 1)], none, &[("a", 1)], &["a"]),
        ("there", &["a"], &[("a", 1)], &[("a", 1)], &[("a", 1)], &[]),
        (
            "its number stays",
            &["a", "b"],
            &[("b", 1)],
            &[("b", 1)],
            &[("a", 2), ("b", 1)],
            &["a"],
        ),
        (
            "one on its way out has its own",
            &["b"],
            none,
            &[("a", 1)],
            &[("b", 2)],
            &["a", "b"],
        ),
        (
            "one that was just asked for, too",
            &["b"],
            &[("a", 1)],
            none,
            &[("b", 2)],
            &["b"],
        ),
        (
            "what the guest has counts",
            &["a"],
            &[("a", 2)],
            &[("a", 1)],
            &[("a", 1)],
            &[],
        ),
    ];
    for (name, wanted, asked, has, expected, pending) in table {
        let asked = (!asked.is_empty()).then(|| target(asked));
        let plan = plan(wanted, asked.as_ref(), &guest(has, &[]));
        assert_eq!(plan.target, Some(target(expected)), "{name}");
        let told: Vec<_> = plan.pending.iter().map(|pending| pending.name.as_str()).collect();
        assert_eq!(told, pending, "{name}");
        assert!(plan.pending.iter().all(|pending| !pending.failed), "{name}");
    }
}

#[test]
fn what_cannot_be_given_is_said() {
    let refused = plan(&["a"], None, &guest(&[], &[("a", 1)]));
    assert_eq!(
        (refused.pending[0].failed, refused.pending[0].message.as_str()),
        (true, "no room")
    );
    let full: Vec<(&str, i32)> = ["b", "c", "d", "e", "f", "g", "h"].into_iter().zip(1..).collect();
    let plan = plan(&["a"], None, &guest(&full, &[]));
    assert_eq!(plan.target, Some(target(&[])));
    assert!(plan.pending[0].failed && plan.pending[0].message.contains("as many"));
    assert_eq!(self::plan(&[], None, &guest(&[], &[])), Plan::default());
}

fn with_interfaces(interfaces: &Value) -> VirtualMachine {
    with_spec(&json!({ "interfaces": interfaces }))
}

/// Of a VM that was started with `before`.
fn live(before: &Value, after: &Value) -> Live {
    let vm = with_interfaces(after);
    let pod = bound(pod(&with_interfaces(before), &running(true)));
    let state = PodState::read(&vm, Some(&pod));
    Live::of(&vm, &valid(&vm), &state, Some(&pod), &[], at(100)).expect("it runs")
}

#[test]
fn what_can_be_plugged_needs_no_restart() {
    let default = json!({ "name": "default", "masquerade": {} });
    let lan = json!({ "name": "lan", "masquerade": {}, "multus": { "networkName": "lan" } });
    let bridge = json!({ "name": "default", "bridge": {} });
    let more = json!({ "name": "more", "masquerade": {} });
    let limited = json!({ "name": "more", "masquerade": {}, "transmitLimits": { "bytesPerSecond": "1M" } });
    let plugged: &[&str] = &["more"];
    let none: &[&str] = &[];
    for (before, after, live_ones, restart) in [
        (json!([default]), json!([default, more]), plugged, none),
        (json!([default]), json!([more, default]), plugged, none),
        (
            json!([default, lan]),
            json!([default, more]),
            plugged,
            &["interfaces[lan]"],
        ),
        (json!([default]), json!([default, limited]), none, &["interfaces[more]"]),
        (json!([default]), json!([default, lan]), none, &["interfaces[lan]"]),
        (json!([]), json!([more]), none, &["interfaces[more]"]),
        (json!([lan]), json!([lan, more]), none, &["interfaces[more]"]),
        (
            json!([bridge]),
            json!([more]),
            none,
            &["interfaces[default]", "interfaces[more]"],
        ),
    ] {
        let changes = live(&before, &after).changes;
        assert_eq!(changes.plugged_interfaces, live_ones, "{before} {after}");
        assert_eq!(changes.by_restart, restart, "{before} {after}");
    }
}
