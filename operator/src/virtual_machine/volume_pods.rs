//! IO: makes and deletes volume pods.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::DeleteParams};

use super::{
    FOREIGN_PERIOD, REJECTED_PERIOD, ReconcileError,
    apply::{delete_parameters, post_parameters, write_error},
    desired::{
        MANAGED_BY_LABEL,
        volume_pod::{self, VmPod},
    },
    hotplug::{self, VolumePod},
    live::Live,
    observe::Observed,
    validate::ValidatedVm,
};
use crate::context::Context;

/// Look again after this when a volume pod could not be made.
const FAILURE_PERIOD: SignedDuration = SignedDuration::from_secs(10);

/// Brings the disks of a VM that runs a step closer to its spec, and notes in `live` what is in the way. What the guest is to have is written with the status.
pub(crate) async fn plug(
    live: &mut Live,
    valid: &ValidatedVm,
    observed: &Observed,
    context: &Context,
) -> Result<(), ReconcileError> {
    let (Some(plan), Some(own)) = (&mut live.disks, observed.state.own()) else {
        return Ok(());
    };
    let Some(node) = own.node.as_deref() else {
        return Ok(());
    };
    let run = VmPod { uid: &own.uid, node };
    let (makes, deletes): (Vec<_>, Vec<_>) = std::mem::take(&mut plan.steps)
        .into_iter()
        .partition(|step| matches!(step, hotplug::Step::Make(_)));
    delete(deletes, &valid.namespace, context).await?;
    for step in makes {
        let hotplug::Step::Make(name) = step else { continue };
        let Some(disk) = valid.disks.iter().find(|disk| disk.name == name) else {
            continue;
        };
        let pod = match volume_pod::volume_pod(valid, disk, &run, &context.settings.shim_image) {
            Ok(pod) => pod,
            Err(error) => {
                plan.fail(&name, &error.to_string());
                continue;
            }
        };
        let made = match make(&pod, &valid.name, context).await {
            Ok(made) => made,
            Err(error) => {
                // The other disks, and the status, are not to wait for it.
                tracing::warn!(
                    vm = valid.name,
                    namespace = valid.namespace,
                    disk = name,
                    cause = cause(&error),
                    "{error}"
                );
                plan.fail(
                    &name,
                    &format!("its volume pod cannot be made now: {error}: {}", cause(&error)),
                );
                plan.look_after(FAILURE_PERIOD);
                continue;
            }
        };
        match made {
            Made::Done => {}
            Made::NameTaken => {
                let pod = pod.name_any();
                plan.fail(
                    &name,
                    &format!("a pod named {pod:?} that is not this VM's has the name of its volume pod: delete that pod, or rename the disk"),
                );
                plan.look_after(SignedDuration::from_secs(FOREIGN_PERIOD.as_secs().cast_signed()));
            }
            Made::Rejected(message) => {
                plan.fail(
                    &name,
                    &format!("the API server did not admit its volume pod: {message}"),
                );
                plan.look_after(SignedDuration::from_secs(REJECTED_PERIOD.as_secs().cast_signed()));
            }
        }
    }
    Ok(())
}

/// Deletes volume pods.
pub(crate) async fn delete(
    steps: Vec<hotplug::Step>,
    namespace: &str,
    context: &Context,
) -> Result<(), ReconcileError> {
    for step in steps {
        if let hotplug::Step::Delete { name, uid, at_once } = step {
            delete_one(namespace, &name, &uid, at_once, context).await?;
        }
    }
    Ok(())
}

/// What came of a volume pod that was to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Made {
    /// It was, or is already.
    Done,
    /// Somebody else's pod has its name.
    NameTaken,
    /// The API server did not admit it, and says why.
    Rejected(String),
}

/// What an error has below it.
fn cause(error: &ReconcileError) -> String {
    std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// Makes a volume pod of this VM.
async fn make(pod: &Pod, vm: &str, context: &Context) -> Result<Made, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let exists = match pods.create(&post_parameters(), pod).await {
        Ok(_) => return Ok(Made::Done),
        Err(kube::Error::Api(status)) => match status.code {
            409 => pods.get_opt(&name).await,
            400 | 403 | 422 => return Ok(Made::Rejected(status.message)),
            _ => return Err(write_error("create", pod, kube::Error::Api(status))),
        },
        Err(error) => return Err(write_error("create", pod, error)),
    };
    let what = "pod";
    let exists = exists.map_err(|source| ReconcileError::Read { what, name, source })?;
    // One of an earlier run is deleted when it is seen.
    let is_ours = |there: &Pod| {
        let has = |key: &str| there.labels().get(key) == pod.labels().get(key);
        has(MANAGED_BY_LABEL.0) && VolumePod::read(there, vm, None).is_some()
    };
    Ok(if exists.as_ref().is_none_or(is_ours) {
        Made::Done
    } else {
        Made::NameTaken
    })
}

/// Deletes exactly the volume pod that was observed: with its own grace period, in which it waits for its disk, or at once.
async fn delete_one(
    namespace: &str,
    name: &str,
    uid: &str,
    at_once: bool,
    context: &Context,
) -> Result<(), ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let parameters = DeleteParams {
        // Not 0, which would not wait for the kubelet.
        grace_period_seconds: at_once.then_some(1),
        ..delete_parameters(Some(uid.to_owned()))
    };
    match pods.delete(name, &parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(source) => Err(ReconcileError::Write {
            verb: "delete",
            what: "volume pod",
            name: name.to_owned(),
            source,
        }),
    }
}
