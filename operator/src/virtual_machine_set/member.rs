//! Pure: what a VM of a set is, and what one says of itself.

use std::time::Duration;

use crds::{VirtualMachine, VirtualMachineSet, virtual_machine_set::UpdateKind};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt, api::ObjectMeta};

use super::{
    claims,
    plan::{Member, Naming, Readiness, Replacement, Wanted},
    set_member::{GuardedMember, SetMember},
};
use crate::digest;

/// Label of a VM that holds its set's name.
pub(crate) const SET_LABEL: &str = "tandem.dev/vm-set";
/// Label of a VM that names the template that it was made from.
pub(crate) const REVISION_LABEL: &str = "tandem.dev/revision";
/// Hex digits of a revision.
const REVISION_DIGITS: usize = 10;

/// What a set should be.
pub(super) fn wanted(set: &VirtualMachineSet) -> Wanted {
    let replicas = usize::try_from(set.spec.replicas()).unwrap_or(0);
    Wanted {
        name: set.name_any(),
        uid: set.uid().unwrap_or_default(),
        replicas,
        revision: revision(set),
        naming: if set.spec.has_stable_names() {
            Naming::Stable
        } else {
            Naming::Own
        },
        replacement: replacement(set, replicas),
    }
}

/// The name of a set's template: a digest of it.
fn revision(set: &VirtualMachineSet) -> String {
    let template = serde_json::to_string(&set.spec.template).unwrap_or_default();
    digest::of(&template)[..REVISION_DIGITS].to_owned()
}

fn replacement(set: &VirtualMachineSet, replicas: usize) -> Replacement {
    let strategy = set.spec.update_strategy.clone().unwrap_or_default();
    match strategy.kind.unwrap_or_default() {
        UpdateKind::OnDelete => Replacement::OnDelete,
        UpdateKind::RollingUpdate => {
            let max_surge = strategy.max_surge.map_or(0, |share| share_of(&share, replicas, true));
            let max_unavailable = strategy
                .max_unavailable
                .map_or(1, |share| share_of(&share, replicas, false));
            Replacement::Rolling {
                max_surge,
                // A share that comes to nothing would keep the old VMs for ever.
                max_unavailable: if max_surge == 0 {
                    max_unavailable.max(1)
                } else {
                    max_unavailable
                },
            }
        }
    }
}

/// A number, or a share of `whole` in percent.
fn share_of(share: &IntOrString, whole: usize, round_up: bool) -> usize {
    match share {
        IntOrString::Int(number) => usize::try_from(*number).unwrap_or(0),
        IntOrString::String(text) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = whole.saturating_mul(percent);
            if round_up {
                hundredths.div_ceil(100)
            } else {
                hundredths / 100
            }
        }
    }
}

/// A VM of a set.
pub(super) fn vm(set: &VirtualMachineSet, name: &str, revision: &str) -> VirtualMachine {
    let template = &set.spec.template;
    let metadata = template.metadata.clone().unwrap_or_default();
    let mut labels = metadata.labels;
    labels.insert(SET_LABEL.to_owned(), set.name_any());
    labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    let mut spec = template.spec.clone();
    // An autoscaler looks for pods by the set's selector.
    let pod_metadata = spec.pod_metadata.get_or_insert_default();
    pod_metadata.labels.extend(set.spec.selector.match_labels.clone());
    // A disk in a template's claim has the VM's own.
    let of_template = |claim: &str| {
        let mut templates = set.spec.volume_claim_templates.iter();
        templates.any(|template| template.metadata.name == claim)
    };
    for claim in spec
        .disks
        .iter_mut()
        .filter_map(|disk| disk.persistent_volume_claim.as_mut())
    {
        if of_template(&claim.claim_name) {
            claim.claim_name = claims::name(&claim.claim_name, name);
        }
    }
    VirtualMachine {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: (!metadata.annotations.is_empty()).then_some(metadata.annotations),
            owner_references: set.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// What a VM says of itself. One that cannot be read is not ready.
pub(super) fn read(vm: &GuardedMember, min_ready: Duration, now: Timestamp) -> Member {
    let deleted = vm.meta().deletion_timestamp.is_some();
    let ready_since = vm.0.as_ref().ok().filter(|_| !deleted).and_then(SetMember::ready_since);
    Member {
        name: vm.name_any(),
        revision: vm.labels().get(REVISION_LABEL).cloned().unwrap_or_default(),
        readiness: ready_since.map_or(Readiness::NotReady, |since| readiness(since, min_ready, now)),
        deleted,
    }
}

fn readiness(since: Timestamp, min_ready: Duration, now: Timestamp) -> Readiness {
    // Clocks differ: what became ready in the future did so now.
    let ready_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    match min_ready.checked_sub(ready_for) {
        None | Some(Duration::ZERO) => Readiness::Available,
        Some(available_in) => Readiness::Ready { available_in },
    }
}
