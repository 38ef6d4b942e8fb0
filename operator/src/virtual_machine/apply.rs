//! IO: carries a decision out. Every write to a pod is here.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};

use super::{ReconcileError, lifecycle::Decision, observe::Observed};
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
    let parameters = PostParams {
        field_manager: Some(crds::status::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match pods.create(&parameters, pod).await {
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
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match pods.delete(&pod.name_any(), &parameters).await {
        Ok(_) => Ok(Applied::Deleted),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Applied::Outdated),
        Err(error) => Err(write_error("delete", pod, error)),
    }
}

fn write_error(verb: &'static str, pod: &Pod, source: kube::Error) -> ReconcileError {
    ReconcileError::Write {
        verb,
        what: "pod",
        name: pod.name_any(),
        source,
    }
}
