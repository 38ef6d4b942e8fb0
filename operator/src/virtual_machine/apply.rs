//! IO: carries a decision out. Every write to a pod and to its disruption budget is here.

use crds::{EvictionPolicy, VirtualMachine};
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};

use super::{
    ReconcileError,
    desired::{
        CONTAINER,
        resources::{Frame, PodSize},
    },
    eviction::{self, Protection},
    lifecycle::Decision,
    observe::Observed,
};
use crate::context::Context;

/// What came of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Nothing was to be written.
    Nothing,
    /// The pod was made.
    Created,
    /// The pod's deletion was asked for.
    Deleted,
    /// The API server did not admit the pod.
    Rejected {
        /// What it says.
        message: String,
        /// Whether the same pod may be admitted later.
        may_pass: bool,
    },
    /// The world has changed since it was observed: look again.
    Outdated,
}

/// Carries out `decision`; `desired` is the pod that `Create` makes.
pub(crate) async fn apply(
    decision: Decision,
    namespace: &str,
    desired: Option<&Pod>,
    observed: &Observed,
    context: &Context,
) -> Result<Applied, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    match decision {
        Decision::Create => match desired {
            Some(pod) => create(&pods, pod).await,
            None => Ok(Applied::Nothing),
        },
        Decision::Stop(_) | Decision::Remove => match &observed.pod {
            Some(pod) => delete(&pods, pod).await,
            None => Ok(Applied::Nothing),
        },
        Decision::Keep | Decision::Wait(_) | Decision::Rest(_) | Decision::Stall(_) | Decision::Leave => {
            Ok(Applied::Nothing)
        }
    }
}

/// Creates, rather than applies: an apply would change a pod that somebody else has made under this name in the meantime.
async fn create(pods: &Api<Pod>, pod: &Pod) -> Result<Applied, ReconcileError> {
    match pods.create(&post_parameters(), pod).await {
        Ok(_) => Ok(Applied::Created),
        Err(kube::Error::Api(status)) => match status.code {
            409 => Ok(Applied::Outdated),
            // Pod Security, quotas and policies answer 403, validation 422.
            400 | 403 | 422 => Ok(Applied::Rejected {
                may_pass: status.message.contains("exceeded quota")
                    || status.message.contains("unable to create new content in namespace"),
                message: status.message,
            }),
            _ => Err(write_error("create", pod, kube::Error::Api(status))),
        },
        Err(error) => Err(write_error("create", pod, error)),
    }
}

/// Deletes exactly the pod that was observed, with its own grace period.
async fn delete(pods: &Api<Pod>, pod: &Pod) -> Result<Applied, ReconcileError> {
    match pods.delete(&pod.name_any(), &delete_parameters(pod.uid())).await {
        Ok(_) => Ok(Applied::Deleted),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Applied::Outdated),
        Err(error) => Err(write_error("delete", pod, error)),
    }
}

/// What came of a change of a pod that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// The pod was changed.
    Done,
    /// The API server did not admit the change, and says why.
    Rejected(String),
    /// The pod is not there any more.
    Gone,
}

/// Resizes a pod in place.
pub(crate) async fn resize(
    pod: &Pod,
    frame: &Frame,
    size: PodSize,
    context: &Context,
) -> Result<Changed, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let mut patch = frame.resize_patch(size, CONTAINER);
    // With its UID the patch never lands on another pod of the same name.
    patch["metadata"] = serde_json::json!({ "uid": pod.uid() });
    let parameters = patch_parameters();
    let resized = pods
        .patch_subresource("resize", &pod.name_any(), &parameters, &Patch::Strategic(&patch))
        .await;
    changed(pod, "resize", resized)
}

/// Changes the metadata of a pod.
pub(crate) async fn change_metadata(
    pod: &Pod,
    patch: &serde_json::Value,
    context: &Context,
) -> Result<Changed, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let parameters = patch_parameters();
    let written = pods
        .patch_metadata(&pod.name_any(), &parameters, &Patch::Merge(patch))
        .await;
    changed(pod, "change the metadata of", written.map(|_| ()))
}

pub(super) fn post_parameters() -> PostParams {
    PostParams {
        field_manager: Some(crds::status::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Deletes the object with this UID, and no other of its name.
pub(super) fn delete_parameters(uid: Option<String>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

fn patch_parameters() -> PatchParams {
    PatchParams {
        field_manager: Some(crds::status::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn changed<T>(pod: &Pod, verb: &'static str, result: Result<T, kube::Error>) -> Result<Changed, ReconcileError> {
    match result {
        Ok(_) => Ok(Changed::Done),
        Err(kube::Error::Api(status)) => match status.code {
            404 | 409 => Ok(Changed::Gone),
            400 | 403 | 422 => Ok(Changed::Rejected(status.message)),
            _ => Err(write_error(verb, pod, kube::Error::Api(status))),
        },
        Err(error) => Err(write_error(verb, pod, error)),
    }
}

/// Makes, corrects or removes the budget that a VM's eviction policy asks for.
pub(crate) async fn keep_budget(
    vm: &VirtualMachine,
    observed: &Observed,
    context: &Context,
) -> Result<Protection, ReconcileError> {
    let budgets: Api<PodDisruptionBudget> =
        Api::namespaced(context.client.clone(), &vm.namespace().unwrap_or_default());
    let name = vm.name_any();
    let present = observed.budget.as_ref();
    let (verb, written) = match eviction::step(vm, present) {
        eviction::Step::Nothing => ("keep", Ok(())),
        eviction::Step::LeaveToItsOwner => return Ok(Protection::NameTaken),
        eviction::Step::Make => {
            let made = budgets.create(&post_parameters(), &eviction::budget(vm)).await;
            ("create", made.map(|_| ()))
        }
        eviction::Step::Correct => {
            let mut budget = eviction::budget(vm);
            // It lands on the budget that was observed, or nowhere.
            budget.metadata.uid = present.and_then(ResourceExt::uid);
            budget.metadata.resource_version = present.and_then(ResourceExt::resource_version);
            let corrected = budgets.replace(&name, &post_parameters(), &budget).await;
            ("correct", corrected.map(|_| ()))
        }
        eviction::Step::Remove => {
            let parameters = delete_parameters(present.and_then(ResourceExt::uid));
            let removed = budgets.delete(&name, &parameters).await;
            ("delete", removed.map(|_| ()))
        }
    };
    match (written, vm.spec.eviction_policy()) {
        (Ok(()), EvictionPolicy::Shutdown) => Ok(Protection::NotAsked),
        (Ok(()), EvictionPolicy::Block) => Ok(Protection::InPlace {
            cordoned: observed.cordoned,
        }),
        (Err(kube::Error::Api(status)), policy) if matches!(status.code, 400 | 403 | 404 | 409 | 422) => {
            Ok(match (status.code, policy) {
                // It has gone meanwhile, which is what was wanted.
                (404 | 409, EvictionPolicy::Shutdown) => Protection::NotAsked,
                _ => Protection::Rejected(status.message),
            })
        }
        (Err(source), _) => Err(ReconcileError::Write {
            verb,
            what: "PodDisruptionBudget",
            name,
            source,
        }),
    }
}

pub(super) fn write_error(verb: &'static str, pod: &Pod, source: kube::Error) -> ReconcileError {
    ReconcileError::Write {
        verb,
        what: "pod",
        name: pod.name_any(),
        source,
    }
}
