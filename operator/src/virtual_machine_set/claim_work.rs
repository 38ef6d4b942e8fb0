//! IO: what [`claims`] planned. Every write to a claim is here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crds::{VirtualMachineSet, volume_claim_template::Retention};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::{PartialObjectMeta, Status},
};
use serde_json::json;

use super::{
    Applied, MAX_WRITES, SetContext, SetError,
    claims::{self, Found, HandOver, Owner, Present},
    plan::{self, Member, Naming, Plan},
    post_parameters,
    set_member::GuardedMember,
    write_error,
};

const WHAT: &str = "PersistentVolumeClaim";

/// The claims of a set, and what is to be done about them.
pub(super) struct ClaimWork<'a> {
    set: &'a VirtualMachineSet,
    api: Api<PersistentVolumeClaim>,
    wanted: claims::Wanted,
    plan: claims::Plan,
    present: BTreeMap<&'a str, Present<'a>>,
    objects: BTreeMap<String, Arc<PartialObjectMeta<PersistentVolumeClaim>>>,
    later: Later,
}

/// VMs that have to wait for a step in which all of their claims are as they should be.
#[derive(Default)]
struct Later {
    create: BTreeSet<String>,
    delete: BTreeSet<String>,
}

impl<'a> ClaimWork<'a> {
    /// Looks at the claims of a set, and at its VMs, as objects and what was read of each.
    pub(super) fn of(
        set: &'a VirtualMachineSet,
        wanted: &plan::Wanted,
        vms: &'a [Arc<GuardedMember>],
        members: &[Member],
        context: &SetContext,
    ) -> Self {
        let names = match wanted.naming {
            Naming::Stable => plan::stable(wanted),
            Naming::Own => Vec::new(),
        };
        let wanted = claims::wanted(set, names);
        let present = vms.iter().zip(members).filter_map(|(vm, member)| {
            let (name, uid) = (vm.meta().name.as_deref()?, vm.meta().uid.as_deref()?);
            let ready = member.is_ready();
            Some((name, Present { uid, ready }))
        });
        let present = present.collect();
        let (mut known, mut objects) = (Vec::new(), BTreeMap::new());
        for object in context.claims.state() {
            if let Some(claim) = claims::read(set, object.as_ref()) {
                objects.insert(claim.name.clone(), object);
                known.push(claim);
            }
        }
        Self {
            set,
            api: Api::namespaced(context.client.clone(), &set.namespace().unwrap_or_default()),
            plan: claims::plan(&wanted, &known, &present),
            wanted,
            present,
            objects,
            later: Later::default(),
        }
    }

    /// Makes and hands over claims. What is refused is said, and keeps nothing else from being done.
    pub(super) async fn apply(&mut self) -> Result<Applied, SetError> {
        let mut applied = Applied::default();
        for (vm, claim) in &self.plan.waiting {
            self.later.create.insert(vm.clone());
            applied.waits.get_or_insert_with(|| waits(vm, claim));
        }
        self.create(&mut applied).await?;
        for (number, HandOver { claim, vm, to }) in self.plan.hand_over.iter().enumerate() {
            if number >= MAX_WRITES {
                applied.outdated = true;
            } else if self.hand_over(claim, vm, to, &mut applied).await? {
                continue;
            }
            // Without its VM nobody would know any more what should become of it.
            self.later.delete.insert(vm.clone());
        }
        Ok(applied)
    }

    /// A plan without the VMs whose claims come first.
    pub(super) fn without_later(&self, vms: &Plan) -> Plan {
        let without = |names: &[String], later: &BTreeSet<String>| {
            let now = names.iter().filter(|name| !later.contains(*name));
            now.cloned().collect()
        };
        Plan {
            create: without(&vms.create, &self.later.create),
            delete: without(&vms.delete, &self.later.delete),
        }
    }

    async fn create(&mut self, applied: &mut Applied) -> Result<(), SetError> {
        let owner = match self.wanted.when_deleted {
            Retention::Delete => Owner::Set,
            Retention::Retain => Owner::Nobody,
        };
        let mut writes = 0;
        for (index, vm) in &self.plan.create {
            let Some(template) = self.set.spec.volume_claim_templates.get(*index) else {
                continue;
            };
            if writes >= MAX_WRITES {
                applied.outdated = true;
                self.later.create.insert(vm.clone());
                continue;
            }
            let claim = claims::claim(self.set, template, vm, &owner);
            let name = claim.name_any();
            let usable = match self.api.create(&post_parameters(), &claim).await {
                Ok(_) => {
                    writes += 1;
                    true
                }
                // One that was there first is no write: else many of them would use up every step.
                Err(kube::Error::Api(status)) if status.code == 409 => self.is_usable(vm, &name, applied).await?,
                Err(kube::Error::Api(status)) if is_refusal(&status) => {
                    writes += 1;
                    let message = format!("the API server did not admit the claim {name}: {}", status.message);
                    applied.rejected.get_or_insert(message);
                    false
                }
                Err(source) => return Err(write_error("create", WHAT, &name, source)),
            };
            if !usable {
                self.later.create.insert(vm.clone());
            }
        }
        Ok(())
    }

    /// Whether a VM can have the claim that is there under the name of its own.
    async fn is_usable(&self, vm: &str, name: &str, applied: &mut Applied) -> Result<bool, SetError> {
        let claim = self.api.get_metadata_opt(name).await;
        let claim = claim.map_err(|source| write_error("look at", WHAT, name, source))?;
        match claim.map(|claim| claims::found(self.set, &claim, &self.present)) {
            Some(Found::Usable) => return Ok(true),
            Some(Found::Goes) => {
                applied.waits.get_or_insert_with(|| waits(vm, name));
            }
            Some(Found::Of(other)) => {
                let message = format!(
                    "the claim {name}, which {vm} needs, is of the VirtualMachineSet {other}: make the set under another name"
                );
                applied.rejected.get_or_insert(message);
            }
            None => applied.outdated = true,
        }
        Ok(false)
    }

    /// Lets a claim go with somebody else, and says whether it does.
    async fn hand_over(&self, name: &str, vm: &str, to: &Owner, applied: &mut Applied) -> Result<bool, SetError> {
        let Some(claim) = self.objects.get(name) else {
            return Ok(true);
        };
        let owners = claims::owners(self.set, vm, claim.owner_references(), to);
        // It lands on the claim that was looked at, or nowhere.
        let patch = json!({ "metadata": {
            "uid": claim.uid(), "resourceVersion": claim.resource_version(), "ownerReferences": owners,
        } });
        let parameters = PatchParams {
            field_manager: Some(crds::status::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match self.api.patch_metadata(name, &parameters, &Patch::Merge(&patch)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                applied.outdated = true;
                Ok(false)
            }
            Err(kube::Error::Api(status)) if is_refusal(&status) => {
                let message = format!(
                    "the API server did not admit another owner of the claim {name}: {}",
                    status.message
                );
                applied.rejected.get_or_insert(message);
                Ok(false)
            }
            Err(source) => Err(write_error("hand over", WHAT, name, source)),
        }
    }
}

fn waits(vm: &str, claim: &str) -> String {
    format!("{vm} waits until the claim {claim}, which is being deleted, has gone")
}

/// Whether another try would come to the same.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code, 400 | 403 | 422)
}

#[cfg(test)]
mod tests;
