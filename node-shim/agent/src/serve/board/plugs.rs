//! Which disk or interface a shim is asked about next. Pure: it is told the time.
//!
//! ```text
//! had, not wanted (any more, or of this key) ──Detach──► the guest is asked ──its status lacks it──► done
//!                                                             └──again a while later, for as long as it has it
//! wanted, there, not had ──Attach──► had
//!                            └──refused──► again a while later, where it may work another time
//! ```
//!
//! One question of each kind at a time, so none is lost. Nothing is remembered beyond a conversation: what a guest has, its shim says, each with its key: the
//! volume pod that lends a disk, the number of an interface.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use node_shim_protocol::agent::{GuestStatus, PluggedDisk};
use node_shim_protocol::control::{Failure, FailureKind};

use crate::serve::report::{PodId, WantedInterface};

/// First and longest pause before a question is asked again; it doubles.
pub(super) const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_mins(10);
/// Why a shim of an earlier release gets nothing.
const TOO_OLD: &str =
    "the VM runs in a node-shim of an earlier release, which cannot be given disks or interfaces: restart the VM";

/// A disk that a guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) struct WantedDisk {
    /// Its name in the VM's spec.
    pub(in crate::serve) name: String,
    /// The volume pod that lends it.
    pub(in crate::serve) lender: PodId,
}

/// What a guest can be given while it runs.
pub(in crate::serve) trait Wanted: Clone {
    /// Its name in the VM's spec.
    fn name(&self) -> &str;
    /// What tells it from another of its name.
    fn key(&self) -> String;
}

impl Wanted for WantedDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn key(&self) -> String {
        self.lender.uid.clone()
    }
}

impl Wanted for WantedInterface {
    fn name(&self) -> &str {
        &self.name
    }

    fn key(&self) -> String {
        self.number.to_string()
    }
}

/// What a guest was given and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    name: String,
    key: String,
}

impl Held {
    /// The disks.
    pub(super) fn disks(status: &GuestStatus) -> Vec<Self> {
        let held = |disk: &PluggedDisk| Self {
            name: disk.name.clone(),
            key: disk.lender.clone(),
        };
        status.disks.iter().map(held).collect()
    }

    /// The interfaces.
    pub(super) fn interfaces(status: &GuestStatus) -> Vec<Self> {
        let interfaces = status.interfaces.iter();
        interfaces
            .map(|interface| Self {
                name: interface.name.clone(),
                key: interface.number.to_string(),
            })
            .collect()
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) enum Order<W> {
    /// That the guest gets something.
    Attach(W),
    /// That it gives something up.
    Detach(String),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<W> {
    Nothing,
    Ask(Order<W>),
    AskAt(Instant),
}

/// What was said in one conversation about disks, or about interfaces.
#[derive(Debug)]
pub(super) struct Plugs<W> {
    asked: Option<Order<W>>,
    /// By the names.
    tried: BTreeMap<String, Tried>,
}

impl<W> Default for Plugs<W> {
    fn default() -> Self {
        Self {
            asked: None,
            tried: BTreeMap::new(),
        }
    }
}

/// What the last question about something has led to.
#[derive(Debug, Default)]
struct Tried {
    attach: bool,
    key: String,
    refusal: Option<String>,
    again_at: Option<Instant>,
    /// Questions in a row.
    times: u32,
}

/// The facts that a decision is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a, W> {
    /// What the guest was given and has.
    pub(super) has: &'a [Held],
    /// What it is to have; `None` where nobody says.
    pub(super) wanted: Option<&'a [W]>,
    /// Whether its shim knows these questions.
    pub(super) can: bool,
}

fn is(held: &Held, wanted: &impl Wanted) -> bool {
    held.name == wanted.name() && held.key == wanted.key()
}

impl<W: Wanted> Plugs<W> {
    /// What to do, where `is_there` says whether there is something to give.
    pub(super) fn next(&self, facts: &Facts<'_, W>, is_there: impl Fn(&W) -> bool, now: Instant) -> Next<W> {
        let (Some(wanted), None, true) = (facts.wanted, &self.asked, facts.can) else {
            return Next::Nothing;
        };
        let surplus = facts.has.iter().filter(|held| !wanted.iter().any(|it| is(held, it)));
        let detach = surplus.map(|held| {
            (
                held.name.as_str(),
                false,
                held.key.clone(),
                Order::Detach(held.name.clone()),
            )
        });
        // One of this name has to go first.
        let missing = wanted
            .iter()
            .filter(|wanted| !facts.has.iter().any(|held| held.name == wanted.name()) && is_there(wanted));
        let attach = missing.map(|it| (it.name(), true, it.key(), Order::Attach(it.clone())));
        let mut earliest = None;
        for (name, attach, key, order) in detach.chain(attach) {
            let tried = self.tried.get(name);
            match tried.filter(|tried| tried.attach == attach && tried.key == key) {
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
    pub(super) fn ask(&mut self, order: Order<W>) {
        self.asked = Some(order);
    }

    /// It was answered, and the guest has this now.
    pub(super) fn answered(&mut self, name: &str, failure: Option<&Failure>, has: &[Held], now: Instant) {
        let (attach, key) = match self.asked.take() {
            Some(Order::Attach(wanted)) if wanted.name() == name => (true, wanted.key()),
            Some(Order::Detach(asked)) if asked == name => {
                let held = has.iter().find(|held| held.name == name);
                (false, held.map(|held| held.key.clone()).unwrap_or_default())
            }
            // Nobody asked: the conversation sees to that.
            other => {
                self.asked = other;
                return;
            }
        };
        let before = self.tried.remove(name);
        if attach && failure.is_none() {
            return;
        }
        let times = before
            .filter(|tried| tried.attach == attach && tried.key == key)
            .map_or(0, |tried| tried.times);
        let pause = RETRY_FIRST * 2u32.saturating_pow(times.min(16));
        let for_good = failure.is_some_and(|failure| failure.kind == FailureKind::Invalid);
        let tried = Tried {
            attach,
            key,
            refusal: failure.map(|failure| failure.message.clone()),
            again_at: (!for_good).then(|| now + pause.min(RETRY_MAX)),
            times: times.saturating_add(1),
        };
        self.tried.insert(name.to_owned(), tried);
    }

    /// Forgets what was said of what is neither had nor wanted.
    pub(super) fn forget(&mut self, facts: &Facts<'_, W>) {
        let wanted = facts.wanted.unwrap_or_default();
        self.tried.retain(|name, _| {
            facts.has.iter().any(|held| held.name == *name) || wanted.iter().any(|it| it.name() == name)
        });
    }

    /// What is wanted and the guest could not be given, and why.
    pub(super) fn refused(&self, facts: &Facts<'_, W>) -> Vec<(W, String)> {
        let wanted = facts.wanted.unwrap_or_default().iter();
        let missing = wanted.filter(|wanted| !facts.has.iter().any(|held| is(held, *wanted)));
        let refused = missing.filter_map(|wanted| {
            let tried = self.tried.get(wanted.name());
            let tried = tried.filter(|tried| !tried.attach || tried.key == wanted.key());
            let message = if facts.can {
                tried?.refusal.clone()?
            } else {
                TOO_OLD.to_owned()
            };
            Some((wanted.clone(), message))
        });
        refused.collect()
    }
}

impl Plugs<WantedDisk> {
    /// Whether a pod's disk was asked for, and may be with the shim by now.
    pub(super) fn may_have(&self, lender: &PodId) -> bool {
        matches!(&self.asked, Some(Order::Attach(wanted)) if wanted.lender == *lender)
    }

    /// The disk that the shim was asked to give its guest and may have by now.
    pub(super) fn asked(&self) -> Option<PluggedDisk> {
        match &self.asked {
            Some(Order::Attach(wanted)) => Some(PluggedDisk {
                name: wanted.name.clone(),
                lender: wanted.lender.uid.clone(),
            }),
            Some(Order::Detach(_)) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::identity::PodName;

    fn wanted(name: &str, uid: &str) -> WantedDisk {
        WantedDisk {
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

    fn has(disks: &[(&str, &str)]) -> Vec<Held> {
        let disk = |(name, key): &(&str, &str)| Held {
            name: (*name).into(),
            key: (*key).into(),
        };
        disks.iter().map(disk).collect()
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure {
            kind,
            message: "no room".into(),
        }
    }

    #[test]
    fn what_is_wrong_goes_first_and_what_is_missing_comes_when_it_is_lent() {
        let attach = |name, uid| Next::Ask(Order::Attach(wanted(name, uid)));
        let detach = |name: &str| Next::Ask(Order::Detach(name.into()));
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
            let next = Plugs::<WantedDisk>::default().next(&facts, |it| it.lender.uid != "absent", Instant::now());
            assert_eq!(next, expected, "{name}");
        }
    }

    #[test]
    fn one_question_at_a_time_and_refusals_are_said() {
        let start = Instant::now();
        let mut disks = Plugs::<WantedDisk>::default();
        let list = [wanted("a", "v1"), wanted("b", "v2")];
        let facts = Facts {
            has: &[],
            wanted: Some(&list),
            can: true,
        };
        let lent = |_: &WantedDisk| true;
        disks.ask(Order::Attach(list[0].clone()));
        assert!(disks.may_have(&list[0].lender) && !disks.may_have(&list[1].lender));
        assert_eq!(disks.next(&facts, lent, start), Next::Nothing);
        disks.answered("b", None, &has(&[]), start);
        assert_eq!(disks.next(&facts, lent, start), Next::Nothing, "that was not asked");
        disks.answered("a", Some(&failure(FailureKind::Failed)), &has(&[]), start);
        assert_eq!(disks.refused(&facts)[0].1, "no room");
        assert_eq!(
            disks.next(&facts, lent, start),
            Next::Ask(Order::Attach(list[1].clone()))
        );
        disks.ask(Order::Attach(list[1].clone()));
        disks.answered("b", Some(&failure(FailureKind::Invalid)), &has(&[]), start);
        assert_eq!(disks.next(&facts, lent, start), Next::AskAt(start + RETRY_FIRST));
        let again = Next::Ask(Order::Attach(list[0].clone()));
        assert_eq!(disks.next(&facts, lent, start + RETRY_FIRST), again);
        // Another lender of the same disk is another try.
        let other = [wanted("b", "v3")];
        let facts = Facts {
            wanted: Some(&other),
            ..facts
        };
        assert_eq!(
            disks.next(&facts, lent, start),
            Next::Ask(Order::Attach(other[0].clone()))
        );
        assert!(disks.refused(&facts).is_empty());
        disks.forget(&facts);
        assert!(disks.tried.contains_key("b") && !disks.tried.contains_key("a"));
        let old = Facts { can: false, ..facts };
        assert_eq!(disks.refused(&old)[0].1, TOO_OLD);
    }

    #[test]
    fn a_guest_that_keeps_a_disk_is_asked_again_and_more_and_more_seldom() {
        let mut disks = Plugs::<WantedDisk>::default();
        let held = has(&[("a", "v1")]);
        let facts = Facts {
            has: &held,
            wanted: Some(&[]),
            can: true,
        };
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..3 {
            assert_eq!(disks.next(&facts, |_| true, now), Next::Ask(Order::Detach("a".into())));
            disks.ask(Order::Detach("a".into()));
            disks.answered("a", None, &held, now);
            let Next::AskAt(at) = disks.next(&facts, |_| true, now) else {
                panic!("asked at once")
            };
            pauses.push((at - now) / RETRY_FIRST.as_secs().try_into().unwrap());
            now = at;
        }
        assert_eq!(pauses, [1, 2, 4].map(Duration::from_secs));
    }
}
