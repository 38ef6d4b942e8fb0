//! Which disk a shim is asked about next. Pure: it is told the time.
//!
//! ```text
//! had, not wanted (any more, or of this lender) ──Detach──► the guest is asked ──its status lacks it──► done
//!                                                             └──again a while later, for as long as it has it
//! wanted, lent, not had ──Attach──► had
//!                            └──refused──► again a while later, where it may work another time
//! ```
//!
//! One question at a time, so none is lost. Nothing is remembered beyond a conversation: what a guest has, with the pod that lends it, its shim says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crds::guest::RefusedDisk;
use node_shim_protocol::agent::{Plugged, PluggedDisk};
use node_shim_protocol::control::FailureKind;

use crate::serve::report::PodId;

/// First and longest pause before a question is asked again; it doubles.
pub(super) const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_mins(10);
/// Why a shim of an earlier release gets no disk.
const TOO_OLD: &str = "the VM runs in a node-shim of an earlier release, which cannot be given disks: restart the VM";

/// A disk that a guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) struct Wanted {
    /// Its name in the VM's spec.
    pub(in crate::serve) name: String,
    /// The volume pod that lends it.
    pub(in crate::serve) lender: PodId,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) enum DiskOrder {
    /// That the guest gets a disk.
    Attach(Wanted),
    /// That it gives one up.
    Detach(String),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    Ask(DiskOrder),
    AskAt(Instant),
}

/// What was said in one conversation about disks.
#[derive(Debug, Default)]
pub(super) struct Disks {
    asked: Option<DiskOrder>,
    /// By the disks' names.
    tried: BTreeMap<String, Tried>,
}

/// What the last question about a disk has led to.
#[derive(Debug, Default)]
struct Tried {
    attach: bool,
    /// UID of the lender.
    lender: String,
    refusal: Option<String>,
    again_at: Option<Instant>,
    /// Questions in a row.
    times: u32,
}

/// The facts that a decision is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// What the guest was given and has.
    pub(super) has: &'a [PluggedDisk],
    /// What it is to have; `None` where nobody says.
    pub(super) wanted: Option<&'a [Wanted]>,
    /// Whether its shim knows these questions.
    pub(super) can: bool,
}

fn is(disk: &PluggedDisk, wanted: &Wanted) -> bool {
    disk.name == wanted.name && disk.lender == wanted.lender.uid
}

impl Disks {
    /// What to do, where `is_lent` says whether a pod lends its disk.
    pub(super) fn next(&self, facts: Facts<'_>, is_lent: impl Fn(&PodId) -> bool, now: Instant) -> Next {
        let (Some(wanted), None, true) = (facts.wanted, &self.asked, facts.can) else {
            return Next::Nothing;
        };
        let surplus = facts.has.iter().filter(|disk| !wanted.iter().any(|it| is(disk, it)));
        let detach = surplus.map(|disk| (&disk.name, false, &disk.lender, DiskOrder::Detach(disk.name.clone())));
        // One of this name has to go first.
        let missing = wanted
            .iter()
            .filter(|wanted| !facts.has.iter().any(|disk| disk.name == wanted.name) && is_lent(&wanted.lender));
        let attach = missing.map(|it| (&it.name, true, &it.lender.uid, DiskOrder::Attach(it.clone())));
        let mut earliest = None;
        for (name, attach, lender, order) in detach.chain(attach) {
            let tried = self.tried.get(name);
            match tried.filter(|tried| tried.attach == attach && tried.lender == *lender) {
                None => return Next::Ask(order),
                Some(Tried { again_at: None, .. }) => {}
                Some(Tried { again_at: Some(at), .. }) if *at <= now => return Next::Ask(order),
                Some(Tried { again_at: Some(at), .. }) => {
                    earliest = Some(earliest.map_or(*at, |earliest: Instant| earliest.min(*at)));
                }
            }
        }
        earliest.map_or(Next::Nothing, Next::AskAt)
    }

    /// It is asked.
    pub(super) fn ask(&mut self, order: DiskOrder) {
        self.asked = Some(order);
    }

    /// Whether a pod's disk was asked for, and may be with the shim by now.
    pub(super) fn may_have(&self, lender: &PodId) -> bool {
        matches!(&self.asked, Some(DiskOrder::Attach(wanted)) if wanted.lender == *lender)
    }

    /// The disk that the shim was asked to give its guest and may have by now.
    pub(super) fn asked(&self) -> Option<PluggedDisk> {
        match &self.asked {
            Some(DiskOrder::Attach(wanted)) => Some(PluggedDisk {
                name: wanted.name.clone(),
                lender: wanted.lender.uid.clone(),
            }),
            Some(DiskOrder::Detach(_)) | None => None,
        }
    }

    /// It was answered.
    pub(super) fn answered(&mut self, plugged: &Plugged, now: Instant) {
        let name = &plugged.name;
        let (attach, lender) = match self.asked.take() {
            Some(DiskOrder::Attach(wanted)) if wanted.name == *name => (true, wanted.lender.uid),
            Some(DiskOrder::Detach(asked)) if asked == *name => {
                let held = plugged.status.disks.iter().find(|disk| disk.name == *name);
                (false, held.map(|disk| disk.lender.clone()).unwrap_or_default())
            }
            // Nobody asked: the conversation sees to that.
            other => {
                self.asked = other;
                return;
            }
        };
        if attach && plugged.failure.is_none() {
            self.tried.remove(name);
            return;
        }
        let before = self.tried.remove(name);
        let times = before
            .filter(|tried| tried.attach == attach && tried.lender == lender)
            .map_or(0, |tried| tried.times);
        let pause = RETRY_FIRST * 2u32.saturating_pow(times.min(16));
        let for_good = plugged
            .failure
            .as_ref()
            .is_some_and(|failure| failure.kind == FailureKind::Invalid);
        let tried = Tried {
            attach,
            lender,
            refusal: plugged.failure.as_ref().map(|failure| failure.message.clone()),
            again_at: (!for_good).then(|| now + pause.min(RETRY_MAX)),
            times: times.saturating_add(1),
        };
        self.tried.insert(name.clone(), tried);
    }

    /// Forgets what was said of disks that are neither had nor wanted.
    pub(super) fn forget(&mut self, facts: Facts<'_>) {
        let wanted = facts.wanted.unwrap_or_default();
        self.tried.retain(|name, _| {
            facts.has.iter().any(|disk| disk.name == *name) || wanted.iter().any(|disk| disk.name == *name)
        });
    }

    /// The disks that are wanted and that the guest could not be given.
    pub(super) fn refused(&self, facts: Facts<'_>) -> Vec<RefusedDisk> {
        let wanted = facts.wanted.unwrap_or_default().iter();
        let missing = wanted.filter(|wanted| !facts.has.iter().any(|disk| is(disk, wanted)));
        let refused = missing.filter_map(|wanted| {
            let tried = self.tried.get(&wanted.name);
            let tried = tried.filter(|tried| !tried.attach || tried.lender == wanted.lender.uid);
            let message = if facts.can {
                tried?.refusal.clone()?
            } else {
                TOO_OLD.to_owned()
            };
            Some(RefusedDisk {
                name: wanted.name.clone(),
                pod_uid: wanted.lender.uid.clone(),
                message,
            })
        });
        refused.collect()
    }
}

#[cfg(test)]
mod tests {
    use node_shim_protocol::agent::{GuestState, GuestStatus};
    use node_shim_protocol::control::Failure;

    use super::*;
    use crate::serve::identity::PodName;

    fn wanted(name: &str, uid: &str) -> Wanted {
        Wanted {
            name: name.into(),
            lender: PodId {
                name: PodName {
                    namespace: "shop".into(),
                    name: format!("web.{name}"),
                },
                uid: uid.into(),
            },
        }
    }

    fn has(disks: &[(&str, &str)]) -> Vec<PluggedDisk> {
        let disk = |(name, lender): &(&str, &str)| PluggedDisk {
            name: (*name).into(),
            lender: (*lender).into(),
        };
        disks.iter().map(disk).collect()
    }

    fn plugged(name: &str, failure: Option<FailureKind>, disks: Vec<PluggedDisk>) -> Plugged {
        Plugged {
            name: name.into(),
            failure: failure.map(|kind| Failure {
                kind,
                message: "no room".into(),
            }),
            status: GuestStatus {
                state: GuestState::Running,
                boot_time_ms: 0,
                vcpus: 1,
                memory_bytes: 0,
                resets: 0,
                kernel: None,
                hindrance: None,
                disks,
            },
        }
    }

    #[test]
    fn what_is_wrong_goes_first_and_what_is_missing_comes_when_it_is_lent() {
        let attach = |name, uid| Next::Ask(DiskOrder::Attach(wanted(name, uid)));
        let detach = |name: &str| Next::Ask(DiskOrder::Detach(name.into()));
        let want = |list: &[(&str, &str)]| Some(list.iter().map(|(name, uid)| wanted(name, uid)).collect::<Vec<_>>());
        let table = [
            (
                "nobody says what is wanted",
                has(&[("a", "v1")]),
                None,
                true,
                Next::Nothing,
            ),
            ("nothing is wanted", has(&[("a", "v1")]), want(&[]), true, detach("a")),
            (
                "as it should be",
                has(&[("a", "v1")]),
                want(&[("a", "v1")]),
                true,
                Next::Nothing,
            ),
            ("missing", has(&[]), want(&[("a", "v1")]), true, attach("a", "v1")),
            (
                "missing and not lent",
                has(&[]),
                want(&[("a", "absent")]),
                true,
                Next::Nothing,
            ),
            (
                "of another lender",
                has(&[("a", "v0")]),
                want(&[("a", "v1")]),
                true,
                detach("a"),
            ),
            (
                "one of each",
                has(&[("b", "v2")]),
                want(&[("a", "v1")]),
                true,
                detach("b"),
            ),
            ("an old shim", has(&[]), want(&[("a", "v1")]), false, Next::Nothing),
        ];
        for (name, has, wanted, can, expected) in table {
            let facts = Facts {
                has: &has,
                wanted: wanted.as_deref(),
                can,
            };
            let next = Disks::default().next(facts, |lender| lender.uid != "absent", Instant::now());
            assert_eq!(next, expected, "{name}");
        }
    }

    #[test]
    fn one_question_at_a_time_and_refusals_are_said() {
        let start = Instant::now();
        let mut disks = Disks::default();
        let list = [wanted("a", "v1"), wanted("b", "v2")];
        let facts = Facts {
            has: &[],
            wanted: Some(&list),
            can: true,
        };
        let lent = |_: &PodId| true;
        disks.ask(DiskOrder::Attach(list[0].clone()));
        assert!(disks.may_have(&list[0].lender) && !disks.may_have(&list[1].lender));
        assert_eq!(disks.next(facts, lent, start), Next::Nothing);
        disks.answered(&plugged("b", None, has(&[])), start);
        assert_eq!(disks.next(facts, lent, start), Next::Nothing, "that was not asked");
        disks.answered(&plugged("a", Some(FailureKind::Failed), has(&[])), start);
        assert_eq!(disks.refused(facts)[0].message, "no room");
        assert_eq!(
            disks.next(facts, lent, start),
            Next::Ask(DiskOrder::Attach(list[1].clone()))
        );
        disks.ask(DiskOrder::Attach(list[1].clone()));
        disks.answered(&plugged("b", Some(FailureKind::Invalid), has(&[])), start);
        assert_eq!(disks.next(facts, lent, start), Next::AskAt(start + RETRY_FIRST));
        let again = Next::Ask(DiskOrder::Attach(list[0].clone()));
        assert_eq!(disks.next(facts, lent, start + RETRY_FIRST), again);
        // Another lender of the same disk is another try.
        let other = [wanted("b", "v3")];
        let facts = Facts {
            wanted: Some(&other),
            ..facts
        };
        assert_eq!(
            disks.next(facts, lent, start),
            Next::Ask(DiskOrder::Attach(other[0].clone()))
        );
        assert!(disks.refused(facts).is_empty());
        disks.forget(facts);
        assert!(disks.tried.contains_key("b") && !disks.tried.contains_key("a"));
        let old = Facts { can: false, ..facts };
        assert_eq!(disks.refused(old)[0].message, TOO_OLD);
    }

    #[test]
    fn a_guest_that_keeps_a_disk_is_asked_again_and_more_and_more_seldom() {
        let mut disks = Disks::default();
        let held = has(&[("a", "v1")]);
        let facts = Facts {
            has: &held,
            wanted: Some(&[]),
            can: true,
        };
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..3 {
            assert_eq!(
                disks.next(facts, |_| true, now),
                Next::Ask(DiskOrder::Detach("a".into()))
            );
            disks.ask(DiskOrder::Detach("a".into()));
            disks.answered(&plugged("a", None, held.clone()), now);
            let Next::AskAt(at) = disks.next(facts, |_| true, now) else {
                panic!("asked at once")
            };
            pauses.push((at - now) / RETRY_FIRST.as_secs().try_into().unwrap());
            now = at;
        }
        assert_eq!(pauses, [1, 2, 4].map(Duration::from_secs));
    }
}
