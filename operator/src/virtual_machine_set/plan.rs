//! Pure: which VMs of a set are made and which are deleted next.
//!
//! ```text
//!  VMs of an old template ──► not available: deleted at once
//!                        └──► available: deleted while enough others are (maxUnavailable)
//!  missing VMs ─────────────► made while there are not too many (maxSurge)
//!  VMs too many ────────────► deleted: those that are not available first, then old ones
//! ```
//!
//! Every name follows from the set, its revision and a number. So two operators, or one with an outdated view, try to make the same VMs, and the API server refuses
//! the second of each: there are never more VMs than were planned.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sha2::{Digest, Sha256};

/// Letters of random names: those of `k8s.io/apimachinery/pkg/util/rand`, which make no words.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Letters of the random part of a name.
const SUFFIX_LETTERS: usize = 5;

/// What a set should be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) replicas: usize,
    /// The present template.
    pub(crate) revision: String,
    pub(crate) naming: Naming,
    pub(crate) replacement: Replacement,
}

/// How the VMs of a set are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// The set's name and five letters.
    Own,
    /// The set's name and a number from 0.
    Stable,
}

/// How VMs of an old template are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replacement {
    /// A few at a time.
    Rolling { max_surge: usize, max_unavailable: usize },
    /// By whoever deletes them.
    OnDelete,
}

/// A VM of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) revision: String,
    pub(crate) readiness: Readiness,
    pub(crate) deleted: bool,
}

/// What a VM can be counted on for. One that is being deleted is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    NotReady,
    /// Ready, but not for as long as the set's `minReadySeconds` say.
    Ready {
        available_in: Duration,
    },
    Available,
}

impl Member {
    pub(crate) fn is_ready(&self) -> bool {
        match self.readiness {
            Readiness::NotReady => false,
            Readiness::Ready { .. } | Readiness::Available => true,
        }
    }

    pub(crate) fn is_available(&self) -> bool {
        self.readiness == Readiness::Available
    }
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Names of VMs to make.
    pub(crate) create: Vec<String>,
    /// Names of VMs to delete.
    pub(crate) delete: Vec<String>,
}

/// Plans the next step of a set.
pub(crate) fn plan(wanted: &Wanted, members: &[Member]) -> Plan {
    match wanted.naming {
        Naming::Own => own_names(wanted, members),
        Naming::Stable => stable_names(wanted, members),
    }
}

fn limits(wanted: &Wanted) -> (usize, usize) {
    match wanted.replacement {
        Replacement::Rolling {
            max_surge,
            max_unavailable,
        } => (max_surge, wanted.replicas.saturating_sub(max_unavailable)),
        Replacement::OnDelete => (0, wanted.replicas),
    }
}

fn own_names(wanted: &Wanted, members: &[Member]) -> Plan {
    let (surge, least_available) = limits(wanted);
    let mut living: Vec<&Member> = members.iter().filter(|member| !member.deleted).collect();
    let is_old = |member: &Member| member.revision != wanted.revision;
    // What is given up first comes first.
    living.sort_by_key(|member| {
        (
            member.is_available(),
            !is_old(member),
            std::cmp::Reverse(member.name.clone()),
        )
    });
    let old = living.iter().filter(|member| is_old(member)).count();
    let most = wanted.replicas + if old > 0 { surge } else { 0 };
    let mut deleted: Vec<&Member> = living.iter().take(living.len().saturating_sub(most)).copied().collect();
    if wanted.replacement != Replacement::OnDelete {
        let rest = &living[deleted.len()..];
        let mut spare = rest
            .iter()
            .filter(|member| member.is_available())
            .count()
            .saturating_sub(least_available);
        for member in rest.iter().filter(|member| is_old(member)) {
            if member.is_available() && spare == 0 {
                continue;
            }
            spare -= usize::from(member.is_available());
            deleted.push(member);
        }
    }
    let stay = living.len() - deleted.len();
    let stay_old = old - deleted.iter().filter(|member| is_old(member)).count();
    let missing = match wanted.replacement {
        Replacement::Rolling { .. } => wanted.replicas.saturating_sub(stay - stay_old),
        Replacement::OnDelete => wanted.replicas.saturating_sub(stay),
    };
    let room = (wanted.replicas + surge).saturating_sub(stay);
    let taken: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let free = (0..)
        .map(|number| own_name(wanted, number))
        .filter(|name| !taken.contains(name.as_str()));
    Plan {
        create: free.take(missing.min(room)).collect(),
        delete: deleted.into_iter().map(|member| member.name.clone()).collect(),
    }
}

fn stable_names(wanted: &Wanted, members: &[Member]) -> Plan {
    let (_, least_available) = limits(wanted);
    let names = stable(wanted);
    let present: BTreeMap<&str, &Member> = members.iter().map(|member| (member.name.as_str(), member)).collect();
    let living = |name: &String| present.get(name.as_str()).filter(|member| !member.deleted);
    let mut plan = Plan::default();
    // A VM that is being deleted has its name until it is gone.
    let missing = names.iter().filter(|name| !present.contains_key(name.as_str()));
    plan.create = missing.cloned().collect();
    let kept: Vec<&Member> = names.iter().filter_map(living).copied().collect();
    let known: BTreeSet<&String> = names.iter().collect();
    let surplus = members
        .iter()
        .filter(|member| !member.deleted && !known.contains(&member.name));
    plan.delete = surplus.map(|member| member.name.clone()).collect();
    if wanted.replacement == Replacement::OnDelete {
        return plan;
    }
    let mut spare = kept
        .iter()
        .filter(|member| member.is_available())
        .count()
        .saturating_sub(least_available);
    // The last ones first, as in a StatefulSet.
    for member in kept.iter().rev().filter(|member| member.revision != wanted.revision) {
        if member.is_available() && spare == 0 {
            continue;
        }
        spare -= usize::from(member.is_available());
        plan.delete.push(member.name.clone());
    }
    plan
}

/// The names of all VMs of a set with stable names.
pub(crate) fn stable(wanted: &Wanted) -> Vec<String> {
    (0..wanted.replicas)
        .map(|number| format!("{}-{number}", wanted.name))
        .collect()
}

/// The name of a VM by its set, its revision and a number.
fn own_name(wanted: &Wanted, number: u32) -> String {
    let digest = Sha256::digest(format!("{}/{}/{number}", wanted.uid, wanted.revision));
    let letters = digest.iter().take(SUFFIX_LETTERS);
    let suffix: String = letters
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect();
    format!("{}-{suffix}", wanted.name)
}

#[cfg(test)]
mod tests;
