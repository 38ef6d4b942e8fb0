//! Pure: the steps from what a running VM has to what it should have.
//!
//! ```text
//! growing                                      shrinking
//!  ResizePod ─► AwaitKubelet ─► AskGuest        AskGuest ─► AwaitGuest ─► ResizePod ─► AwaitKubelet
//!                  │ Deferred, Infeasible          (the VMM was told, and the guest
//!                  ▼                                has given up what it shall not have)
//!              the guest stays as it is
//! ```
//!
//! Whatever happens, and in whatever order it is heard of: the pod may always use what its guest can have. So the guest is asked for more only when the
//! kubelet has given the pod more, and the pod is made smaller only when the VMM is known to have taken the target (`status.acknowledgedTarget`
//! without a refusal) and the guest has no more. Without such a report the pod stays as large as it is.

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::desired::{
    CONTAINER,
    resources::{Frame, GuestSize, PodSize},
};

/// What is known of a VM that runs.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) frame: &'a Frame,
    /// What the guest should have.
    pub(crate) wanted: GuestSize,
    pub(crate) pod: &'a PodResources,
    /// What the guest was last asked to have, if it was ever asked.
    pub(crate) target: Option<Target>,
    /// What the node agent last said of this pod's guest.
    pub(crate) guest: Option<Report>,
}

/// What the guest was asked to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) sequence: i64,
    pub(crate) size: GuestSize,
}

/// What the node agent says of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) has: GuestSize,
    /// The last target that the VMM answered.
    pub(crate) answer: Option<Answer>,
    /// What keeps the guest from what it was asked to have.
    pub(crate) hindrance: Option<String>,
}

/// A VMM's answer to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) sequence: i64,
    /// Why it was not taken.
    pub(crate) refusal: Option<String>,
}

/// Resources of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodResources {
    /// What its spec says.
    pub(crate) spec: PodSize,
    /// What the kubelet has put into effect, if it says so.
    pub(crate) actual: Option<PodSize>,
    pub(crate) kubelet: Kubelet,
}

/// What the kubelet says of a resize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kubelet {
    /// Nothing.
    Quiet,
    /// It is putting it into effect.
    InProgress,
    /// It failed to, and tries again.
    Failed { message: String },
    /// There is no room now.
    Deferred { message: String },
    /// There can never be room.
    Infeasible { message: String },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: pod and guest are as they should be.
    Settled,
    /// Patch the pod's `resize` subresource.
    ResizePod(PodSize),
    /// Write the guest's target.
    AskGuest(GuestSize),
    /// The kubelet's answer is awaited.
    AwaitKubelet(Kubelet),
    /// The guest's answer is awaited.
    AwaitGuest {
        has: Option<GuestSize>,
        target: GuestSize,
        hindrance: Option<String>,
    },
    /// The VMM does not take the target.
    Refused { target: GuestSize, why: String },
}

/// Decides the next step.
pub(crate) fn step(facts: &Facts<'_>) -> Step {
    let frame = facts.frame;
    let target = facts.target.map_or(frame.start, |target| target.size);
    let next = next_target(facts, target);
    if next != target {
        return Step::AskGuest(next);
    }
    let needed = needed(facts, target);
    if facts.pod.spec != needed {
        return Step::ResizePod(needed);
    }
    let unanswered = match facts.pod.kubelet {
        Kubelet::Quiet => facts.pod.actual.is_some_and(|actual| actual != needed),
        Kubelet::InProgress | Kubelet::Failed { .. } | Kubelet::Deferred { .. } | Kubelet::Infeasible { .. } => true,
    };
    if unanswered || target != facts.wanted {
        return Step::AwaitKubelet(facts.pod.kubelet.clone());
    }
    if facts.target.is_none() {
        return Step::Settled;
    }
    if let Some(why) = refusal(facts) {
        let why = why.to_owned();
        return Step::Refused { target, why };
    }
    let guest = facts.guest.as_ref();
    let has = guest.map(|guest| guest.has);
    if !took(facts) || has != Some(target) {
        let hindrance = guest.and_then(|guest| guest.hindrance.clone());
        return Step::AwaitGuest { has, target, hindrance };
    }
    Step::Settled
}

/// What the guest can be asked for now: less at once, more once the pod may use it.
fn next_target(facts: &Facts<'_>, target: GuestSize) -> GuestSize {
    let (frame, wanted) = (facts.frame, facts.wanted);
    let wanted_pod = frame.pod_size(wanted);
    let spec = facts.pod.spec;
    // A pod that is about to be made smaller has less than the kubelet says.
    let actual = facts.pod.actual.map(|actual| PodSize {
        cpu_millis: actual.cpu_millis.min(spec.cpu_millis),
        memory_bytes: actual.memory_bytes.min(spec.memory_bytes),
    });
    let fits = |part: fn(PodSize) -> u64| actual.is_some_and(|actual| part(actual) >= part(wanted_pod));
    GuestSize {
        vcpus: if wanted.vcpus <= target.vcpus || fits(|size| size.cpu_millis) {
            wanted.vcpus
        } else {
            target.vcpus
        },
        memory_bytes: if wanted.memory_bytes <= target.memory_bytes || fits(|size| size.memory_bytes) {
            wanted.memory_bytes
        } else {
            target.memory_bytes
        },
    }
}

/// What the pod needs: for what its guest should have, and for what its guest may still have.
fn needed(facts: &Facts<'_>, target: GuestSize) -> PodSize {
    let enough = facts.frame.pod_size(GuestSize {
        vcpus: facts.wanted.vcpus.max(target.vcpus),
        memory_bytes: facts.wanted.memory_bytes.max(target.memory_bytes),
    });
    let spec = facts.pod.spec;
    let within = |part: fn(GuestSize) -> u64| {
        let has_no_more = |guest: &Report| part(guest.has) <= part(target);
        facts.target.is_none() || (took(facts) && facts.guest.as_ref().is_some_and(has_no_more))
    };
    PodSize {
        cpu_millis: if within(|size| u64::from(size.vcpus)) {
            enough.cpu_millis
        } else {
            enough.cpu_millis.max(spec.cpu_millis)
        },
        memory_bytes: if within(|size| size.memory_bytes) {
            enough.memory_bytes
        } else {
            enough.memory_bytes.max(spec.memory_bytes)
        },
    }
}

/// The VMM's answer to the present target.
fn answer<'a>(facts: &'a Facts<'_>) -> Option<&'a Answer> {
    let sequence = facts.target?.sequence;
    let answer = facts.guest.as_ref()?.answer.as_ref();
    answer.filter(|answer| answer.sequence == sequence)
}

/// Whether the VMM has taken the present target.
fn took(facts: &Facts<'_>) -> bool {
    answer(facts).is_some_and(|answer| answer.refusal.is_none())
}

/// Why it has not.
fn refusal<'a>(facts: &'a Facts<'_>) -> Option<&'a str> {
    answer(facts)?.refusal.as_deref()
}

impl PodResources {
    /// Reads a pod; `None` when its container says nothing of CPU and memory.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let container = pod.spec.as_ref()?.containers.iter().find(|it| it.name == CONTAINER)?;
        let statuses = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref());
        let status = statuses.into_iter().flatten().find(|it| it.name == CONTAINER);
        Some(Self {
            spec: pod_size(container.resources.as_ref()?)?,
            actual: status.and_then(|status| pod_size(status.resources.as_ref()?)),
            kubelet: kubelet(pod),
        })
    }
}

fn pod_size(resources: &ResourceRequirements) -> Option<PodSize> {
    let read = |quantity: &Quantity| crds::Quantity(quantity.0.clone());
    Some(PodSize {
        cpu_millis: read(resources.requests.as_ref()?.get("cpu")?).millis().ok()?,
        memory_bytes: read(resources.limits.as_ref()?.get("memory")?).bytes().ok()?,
    })
}

/// The kubelet's conditions (KEP-1287). One that speaks of an earlier size is of no interest any more.
fn kubelet(pod: &Pod) -> Kubelet {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let current = |condition: &&PodCondition| match (condition.observed_generation, pod.metadata.generation) {
        (Some(observed), Some(generation)) => observed >= generation,
        (None | Some(_), None) | (None, Some(_)) => true,
    };
    let find = |type_: &str| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.find(|condition| condition.type_ == type_ && condition.status == "True")
    };
    let message = |condition: &PodCondition| condition.message.clone().unwrap_or_default();
    if let Some(pending) = find("PodResizePending").filter(current) {
        let message = message(pending);
        return match pending.reason.as_deref() {
            Some("Infeasible") => Kubelet::Infeasible { message },
            Some(_) | None => Kubelet::Deferred { message },
        };
    }
    match find("PodResizeInProgress") {
        Some(progress) if progress.reason.as_deref() == Some("Error") => Kubelet::Failed {
            message: message(progress),
        },
        Some(_) => Kubelet::InProgress,
        None => Kubelet::Quiet,
    }
}
