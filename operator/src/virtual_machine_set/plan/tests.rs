//! The table of a rolling update, and a set that is scaled, rolled and hurt at random.

use proptest::prelude::*;

use super::*;

/// In a set that asks for some seconds.
const READY_SINCE_NOW: Readiness = Readiness::Ready {
    available_in: Duration::from_secs(5),
};

fn wanted(replicas: usize, revision: &str, naming: Naming, replacement: Replacement) -> Wanted {
    Wanted {
        name: "web".to_owned(),
        uid: "1111".to_owned(),
        replicas,
        revision: revision.to_owned(),
        naming,
        replacement,
    }
}

const fn rolling(max_surge: usize, max_unavailable: usize) -> Replacement {
    Replacement::Rolling {
        max_surge,
        max_unavailable,
    }
}

/// Members from `name:revision`, with `!` for one that is not ready, `~` for one that is not for long enough, and `x` for one that is being deleted.
fn members(text: &str) -> Vec<Member> {
    text.split_whitespace()
        .map(|word| {
            let (name, rest) = word.split_once(':').expect("name:revision");
            Member {
                name: name.to_owned(),
                revision: rest[..1].to_owned(),
                readiness: match rest.chars().nth(1) {
                    None => Readiness::Available,
                    Some('~') => READY_SINCE_NOW,
                    Some(_) => Readiness::NotReady,
                },
                deleted: rest.contains('x'),
            }
        })
        .collect()
}

#[test]
fn sets_without_stable_names() {
    // Replicas, replacement, members of revision a (old) or b; how many are made, who is deleted.
    let table = [
        ("an empty set is filled", 3, rolling(0, 1), "", 3, ""),
        ("a full one is left alone", 2, rolling(0, 1), "p:b q:b!", 0, ""),
        (
            "one that is being deleted is replaced",
            2,
            rolling(0, 1),
            "p:b q:bx",
            1,
            "",
        ),
        (
            "fewer: those that are not ready go first",
            1,
            rolling(0, 1),
            "p:b! q:b",
            0,
            "p",
        ),
        ("none", 0, rolling(0, 1), "p:b q:b", 0, "q p"),
        (
            "a roll begins with as many as may be missing",
            3,
            rolling(0, 1),
            "p:a q:a r:a",
            1,
            "r",
        ),
        (
            "or with as many as may be too many",
            3,
            rolling(1, 0),
            "p:a q:a r:a",
            1,
            "",
        ),
        ("and waits for the new one", 3, rolling(0, 1), "p:a q:a s:b!", 0, ""),
        (
            "also where that is not ready for long enough",
            3,
            rolling(0, 1),
            "p:a q:a s:b~",
            0,
            "",
        ),
        ("also with one too many", 3, rolling(1, 0), "p:a q:a r:a s:b!", 0, ""),
        ("before it goes on", 3, rolling(1, 0), "p:a q:a r:a s:b", 1, "r"),
        (
            "old ones that are not ready are no loss",
            3,
            rolling(0, 1),
            "p:a! q:a! r:a",
            2,
            "q p",
        ),
        (
            "on delete nothing is rolled",
            3,
            Replacement::OnDelete,
            "p:a q:a r:a",
            0,
            "",
        ),
        (
            "but what is missing is made",
            3,
            Replacement::OnDelete,
            "p:a q:a r:ax",
            1,
            "",
        ),
        (
            "scaled down in the middle of a roll, the old ones go",
            2,
            rolling(1, 0),
            "p:a q:a r:b s:b",
            0,
            "q p",
        ),
    ];
    for (name, replicas, replacement, present, made, deleted) in table {
        let plan = plan(&wanted(replicas, "b", Naming::Own, replacement), &members(present));
        assert_eq!(
            (plan.create.len(), plan.delete.join(" ").as_str()),
            (made, deleted),
            "{name}: {plan:?}"
        );
    }
}

#[test]
fn sets_with_stable_names() {
    let table = [
        ("an empty set is filled", 2, rolling(0, 1), "", "web-0 web-1", ""),
        ("a gap is filled", 3, rolling(0, 1), "web-0:b web-2:b", "web-1", ""),
        (
            "a name is used again when its VM is gone",
            2,
            rolling(0, 1),
            "web-0:b web-1:bx",
            "",
            "",
        ),
        (
            "fewer: the last ones go",
            1,
            rolling(0, 1),
            "web-0:b web-1:b web-2:b",
            "",
            "web-1 web-2",
        ),
        (
            "a roll begins at the end",
            3,
            rolling(0, 1),
            "web-0:a web-1:a web-2:a",
            "",
            "web-2",
        ),
        ("and waits", 3, rolling(0, 1), "web-0:a web-1:a web-2:b!", "", ""),
        (
            "two at a time",
            3,
            rolling(0, 2),
            "web-0:a web-1:a web-2:a",
            "",
            "web-2 web-1",
        ),
        (
            "on delete nothing is rolled",
            2,
            Replacement::OnDelete,
            "web-0:a web-1:a",
            "",
            "",
        ),
    ];
    for (name, replicas, replacement, present, made, deleted) in table {
        let plan = plan(&wanted(replicas, "b", Naming::Stable, replacement), &members(present));
        assert_eq!(
            (plan.create.join(" ").as_str(), plan.delete.join(" ").as_str()),
            (made, deleted),
            "{name}"
        );
    }
}

#[test]
fn names_are_the_same_whoever_plans() {
    let set = wanted(3, "b", Naming::Own, rolling(0, 1));
    let names = plan(&set, &[]).create;
    assert_eq!(names, plan(&set, &[]).create);
    assert!(
        names.iter().all(|name| name.len() == "web-".len() + SUFFIX_LETTERS),
        "{names:?}"
    );
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3);
}

#[derive(Clone, Debug)]
enum Happening {
    Scale(usize),
    NewTemplate,
    Ready(usize),
    Fails(usize),
    Gone,
    Reconcile,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => (0_usize..8).prop_map(Happening::Scale),
        1 => Just(Happening::NewTemplate),
        4 => (0_usize..8).prop_map(Happening::Ready),
        1 => (0_usize..8).prop_map(Happening::Fails),
        2 => Just(Happening::Gone),
        6 => Just(Happening::Reconcile),
    ]
}

/// One step; returns what was planned.
fn reconcile(set: &Wanted, present: &mut Vec<Member>) -> Plan {
    let plan = plan(set, present);
    for name in &plan.delete {
        let member = present
            .iter_mut()
            .find(|member| member.name == *name)
            .expect("only members are deleted");
        assert!(!member.deleted, "deleted twice");
        member.deleted = true;
        member.readiness = Readiness::NotReady;
    }
    for name in &plan.create {
        assert!(present.iter().all(|member| member.name != *name), "{name} is taken");
        present.push(Member {
            name: name.clone(),
            revision: set.revision.clone(),
            readiness: Readiness::NotReady,
            deleted: false,
        });
    }
    plan
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_set_becomes_what_it_should_be_and_never_gives_up_too_much(
        stable in any::<bool>(), surge in 0_usize..3, unavailable in 0_usize..3,
        happenings in prop::collection::vec(happening(), 0..80),
    ) {
        let (surge, unavailable) = if stable { (0, unavailable.max(1)) } else { (surge, unavailable.max(usize::from(surge == 0))) };
        let naming = if stable { Naming::Stable } else { Naming::Own };
        let mut set = wanted(3, "a", naming, rolling(surge, unavailable));
        let (mut present, mut templates) = (Vec::new(), 0_u32);
        for happening in &happenings {
            match happening {
                Happening::Scale(replicas) => set.replicas = *replicas,
                Happening::NewTemplate => {
                    templates += 1;
                    set.revision = templates.to_string();
                }
                Happening::Ready(index) => if let Some(member) = present.get_mut(*index) {
                    let member: &mut Member = member;
                    member.readiness = match member.readiness {
                        Readiness::NotReady if member.deleted => Readiness::NotReady,
                        Readiness::NotReady => READY_SINCE_NOW,
                        Readiness::Ready { .. } | Readiness::Available => Readiness::Available,
                    };
                },
                Happening::Fails(index) => if let Some(member) = present.get_mut(*index) { member.readiness = Readiness::NotReady; },
                Happening::Gone => present.retain(|member| !member.deleted),
                Happening::Reconcile => {
                    // With stable names those beyond the last number go, ready or not.
                    let names: Vec<String> = (0..set.replicas).map(|number| format!("web-{number}")).collect();
                    let counts = |present: &[Member]| {
                        present.iter().filter(|member| member.is_available() && (!stable || names.contains(&member.name))).count()
                    };
                    let available = counts(&present);
                    reconcile(&set, &mut present);
                    let left = counts(&present);
                    let living = present.iter().filter(|member| !member.deleted).count();
                    // What a roll gives up is never more than it may; what a smaller set gives up is not a loss.
                    prop_assert!(left >= available.min(set.replicas.saturating_sub(unavailable)), "{set:?} {present:?}");
                    prop_assert!(living <= set.replicas + surge, "{set:?} {present:?}");
                }
            }
        }
        for _ in 0..40 {
            present.retain(|member| !member.deleted);
            for member in &mut present {
                member.readiness = Readiness::Available;
            }
            reconcile(&set, &mut present);
        }
        prop_assert_eq!(present.len(), set.replicas);
        prop_assert!(present.iter().all(|member| member.revision == set.revision && member.is_available()));
        prop_assert_eq!(reconcile(&set, &mut present), Plan::default());
    }
}
