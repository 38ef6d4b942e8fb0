//! Pure: the claims of a set's VMs. A `StatefulSet`'s conventions: claim `<template>-<VM>`, made before the VM, never changed, found again by its name.
//!
//! ```text
//!  no claim of this name ──► made, then the VM
//!  one that is being deleted, or about to be ──► the VM waits until it has gone
//!  one that somebody else made ──► used, and otherwise left alone
//!  the VM is one too many ──► with whenScaled: Delete it becomes the claim's owner, and then goes
//! ```
//!
//! The operator deletes no claim. The garbage collector does, when the owner has gone: it asks the API server, not a cache, and for the owner's UID. So a claim
//! that was kept stays, whatever is written into the set later, and so does that of a VM which somebody else deleted.

use std::collections::{BTreeMap, BTreeSet};

use crds::{
    VirtualMachine, VirtualMachineSet,
    volume_claim_template::{AccessMode, Retention, VolumeClaimTemplate},
};
use k8s_openapi::{
    api::core::v1::{
        PersistentVolumeClaim, PersistentVolumeClaimSpec, TypedObjectReference, VolumeResourceRequirements,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
};
use kube::{Resource, ResourceExt, api::ObjectMeta};

use super::member::SET_LABEL;
use crate::virtual_machine::{MANAGED_BY_LABEL, VM_LABEL};

/// With whom a claim goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Nobody,
    Set,
    /// The VM with this UID.
    Vm(String),
}

/// A claim that Tandem made for a VM of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) name: String,
    /// The VM that it was made for.
    pub(crate) vm: String,
    pub(crate) owner: Owner,
    /// It is being deleted, or goes with an earlier set of this name.
    pub(crate) goes: bool,
}

/// A VM that there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Present<'a> {
    pub(crate) uid: &'a str,
    pub(crate) ready: bool,
}

/// What a set asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Names of the templates.
    pub(crate) templates: Vec<String>,
    /// Names of the VMs that there should be.
    pub(crate) vms: Vec<String>,
    pub(crate) when_deleted: Retention,
    pub(crate) when_scaled: Retention,
}

/// A claim that is to go with somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandOver {
    pub(crate) claim: String,
    pub(crate) vm: String,
    pub(crate) to: Owner,
}

/// What a claim is that was there first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Usable,
    /// It is being deleted, or about to be.
    Goes,
    /// It is that of another set: template `a` of `b-c` and template `a-b` of `c` give the same names.
    Of(String),
}

/// What to do about the claims of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The template and the VM of each claim to make.
    pub(crate) create: Vec<(usize, String)>,
    /// Claims that change hands, before their VMs go.
    pub(crate) hand_over: Vec<HandOver>,
    /// VMs that are not made yet, and the claim that has to go first.
    pub(crate) waiting: Vec<(String, String)>,
}

/// Name of a VM's claim.
pub(crate) fn name(template: &str, vm: &str) -> String {
    format!("{template}-{vm}")
}

/// What a set asks for; `vms` are the names of the VMs that there should be.
pub(super) fn wanted(set: &VirtualMachineSet, vms: Vec<String>) -> Wanted {
    let templates = set.spec.volume_claim_templates.iter();
    let policy = set
        .spec
        .persistent_volume_claim_retention_policy
        .clone()
        .unwrap_or_default();
    Wanted {
        templates: templates.map(|template| template.metadata.name.clone()).collect(),
        vms,
        when_deleted: policy.when_deleted.unwrap_or_default(),
        when_scaled: policy.when_scaled.unwrap_or_default(),
    }
}

/// Plans the next step: `present` are the VMs that there are, with those that are being deleted.
pub(crate) fn plan(wanted: &Wanted, claims: &[Claim], present: &BTreeMap<&str, Present>) -> Plan {
    let mut plan = Plan::default();
    let known: BTreeMap<&str, &Claim> = claims.iter().map(|claim| (claim.name.as_str(), claim)).collect();
    let (made, making): (Vec<&String>, Vec<&String>) =
        wanted.vms.iter().partition(|vm| present.contains_key(vm.as_str()));
    // A VM that is ready has its claims, also those that Tandem did not make and does not see.
    let lacking = made.into_iter().filter(|vm| !present[vm.as_str()].ready);
    for vm in making.into_iter().chain(lacking) {
        for (index, template) in wanted.templates.iter().enumerate() {
            let name = name(template, vm);
            match known.get(name.as_str()) {
                None => plan.create.push((index, vm.clone())),
                Some(claim) if claim.goes(present) && !present.contains_key(vm.as_str()) => {
                    plan.waiting.push((vm.clone(), name));
                }
                Some(_) => {}
            }
        }
    }
    let vms: BTreeSet<&str> = wanted.vms.iter().map(String::as_str).collect();
    let templates: BTreeSet<&str> = wanted.templates.iter().map(String::as_str).collect();
    let of_template = |claim: &&Claim| {
        let template = claim.name.strip_suffix(&claim.vm);
        template
            .and_then(|rest| rest.strip_suffix('-'))
            .is_some_and(|template| templates.contains(template))
    };
    let with_set = match wanted.when_deleted {
        Retention::Delete => Owner::Set,
        Retention::Retain => Owner::Nobody,
    };
    for claim in claims.iter().filter(of_template).filter(|claim| !claim.goes(present)) {
        let to = match present.get(claim.vm.as_str()) {
            _ if vms.contains(claim.vm.as_str()) => with_set.clone(),
            Some(vm) if wanted.when_scaled == Retention::Delete => Owner::Vm(vm.uid.to_owned()),
            // It was kept when its VM went, and is not taken now.
            None if claim.owner == Owner::Nobody => continue,
            Some(_) | None => with_set.clone(),
        };
        if claim.owner != to {
            plan.hand_over.push(HandOver {
                claim: claim.name.clone(),
                vm: claim.vm.clone(),
                to,
            });
        }
    }
    plan
}

impl Claim {
    /// Whether it is being deleted, or about to be, since its owner has gone.
    pub(super) fn goes(&self, present: &BTreeMap<&str, Present>) -> bool {
        let orphan = match &self.owner {
            Owner::Vm(uid) => present.get(self.vm.as_str()).is_none_or(|vm| vm.uid != uid),
            Owner::Set | Owner::Nobody => false,
        };
        self.goes || orphan
    }
}

/// What a claim says of itself.
pub(super) fn read<K: Resource>(set: &VirtualMachineSet, claim: &K) -> Option<Claim> {
    let labels = claim.labels();
    let own = labels.get(SET_LABEL) == set.metadata.name.as_ref()
        && claim.namespace() == set.namespace()
        && labels
            .get(MANAGED_BY_LABEL.0)
            .is_some_and(|by| by == MANAGED_BY_LABEL.1);
    if !own {
        return None;
    }
    let vm = labels.get(VM_LABEL)?;
    let owners = claim.owner_references();
    let of_vm = owners.iter().find(|owner| is::<VirtualMachine>(owner, vm));
    let of_set = |owner: &OwnerReference| Some(&owner.uid) == set.metadata.uid.as_ref();
    Some(Claim {
        name: claim.name_any(),
        vm: vm.clone(),
        owner: match of_vm {
            Some(owner) => Owner::Vm(owner.uid.clone()),
            None if owners.iter().any(of_set) => Owner::Set,
            None => Owner::Nobody,
        },
        goes: claim.meta().deletion_timestamp.is_some()
            || owners
                .iter()
                .any(|owner| is::<VirtualMachineSet>(owner, &set.name_any()) && !of_set(owner)),
    })
}

/// Looks at a claim that is there already, under the name of one that a VM which is to be made needs.
pub(super) fn found<K: Resource>(set: &VirtualMachineSet, claim: &K, present: &BTreeMap<&str, Present>) -> Found {
    let other = claim.labels().get(SET_LABEL).filter(|of| **of != set.name_any());
    let goes = claim.meta().deletion_timestamp.is_some() || read(set, claim).is_some_and(|claim| claim.goes(present));
    match other {
        _ if goes => Found::Goes,
        Some(other) => Found::Of(other.clone()),
        None => Found::Usable,
    }
}

/// Whether an owner is of a kind and has a name.
fn is<K: Resource<DynamicType = ()>>(owner: &OwnerReference, name: &str) -> bool {
    let group = owner.api_version.split('/').next();
    owner.kind == K::kind(&()) && owner.name == name && group == Some(K::group(&()).as_ref())
}

/// The owners that the claim of a VM should have.
pub(super) fn owners(
    set: &VirtualMachineSet,
    vm: &str,
    present: &[OwnerReference],
    owner: &Owner,
) -> Vec<OwnerReference> {
    let others = present
        .iter()
        .filter(|owner| Some(&owner.uid) != set.metadata.uid.as_ref() && !is::<VirtualMachine>(owner, vm));
    // Not its controller: that word is for who makes another one when it is gone.
    let own = match owner {
        Owner::Nobody => None,
        Owner::Set => set.owner_ref(&()),
        Owner::Vm(uid) => Some(OwnerReference {
            api_version: VirtualMachine::api_version(&()).into_owned(),
            kind: VirtualMachine::kind(&()).into_owned(),
            name: vm.to_owned(),
            uid: uid.clone(),
            ..OwnerReference::default()
        }),
    };
    others.cloned().chain(own).collect()
}

/// A claim of a VM.
pub(super) fn claim(
    set: &VirtualMachineSet,
    template: &VolumeClaimTemplate,
    vm: &str,
    owner: &Owner,
) -> PersistentVolumeClaim {
    let (metadata, spec) = (&template.metadata, &template.spec);
    let mut labels = metadata.labels.clone();
    let own = [(SET_LABEL, set.name_any()), (VM_LABEL, vm.to_owned())];
    labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
    labels.insert(MANAGED_BY_LABEL.0.to_owned(), MANAGED_BY_LABEL.1.to_owned());
    let modes = if spec.access_modes.is_empty() {
        &[AccessMode::ReadWriteOnce]
    } else {
        spec.access_modes.as_slice()
    };
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name(&metadata.name, vm)),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: (!metadata.annotations.is_empty()).then(|| metadata.annotations.clone()),
            owner_references: Some(owners(set, vm, &[], owner)).filter(|owners| !owners.is_empty()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(modes.iter().map(|mode| mode.as_str().to_owned()).collect()),
            resources: Some(VolumeResourceRequirements {
                requests: Some(
                    [(
                        "storage".to_owned(),
                        Quantity(spec.resources.requests.storage.0.clone()),
                    )]
                    .into(),
                ),
                limits: None,
            }),
            storage_class_name: spec.storage_class_name.clone(),
            volume_mode: spec.volume_mode.map(|mode| mode.as_str().to_owned()),
            volume_attributes_class_name: spec.volume_attributes_class_name.clone(),
            data_source_ref: spec.data_source_ref.as_ref().map(|source| TypedObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
                namespace: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests;
