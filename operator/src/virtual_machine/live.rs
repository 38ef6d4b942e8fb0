//! Pure: what is to be done about a VM that runs and whose spec was edited. [`super::changes`], [`super::resize`] and
//! [`super::hotplug`] decide; here they meet.

use crds::{
    Quantity, VirtualMachine,
    status::{GuestTarget, TargetDisks},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{
    changes::{self, Changes, Running},
    desired::{SPEC_ANNOTATION, resources::GuestSize, snapshot::Snapshot},
    hotplug::{self, Plan, VolumePod},
    pod_state::{Phase, PodState},
    resize::{self, Answer, Kubelet, PodResources, Report, Step, Target},
    validate::ValidatedVm,
};

/// What a VM that has a pod is to become.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Live {
    pub(crate) changes: Changes,
    /// The next step of its resize; `None` while it does not run.
    pub(crate) step: Option<Step>,
    /// What its guest was last asked to have, if it was ever asked.
    pub(crate) target: Option<Target>,
    /// What is to be done about disks that come and go; `None` while it does not run.
    pub(crate) disks: Option<Plan>,
    /// What the API server said when it did not admit the pod's new size.
    pub(crate) rejected: Option<String>,
    /// What it said when it did not admit the pod's new labels or annotations.
    pub(crate) metadata_rejected: Option<String>,
}

/// How far a resize is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is none.
    Settled,
    /// It is under way, or is tried again.
    UnderWay,
    /// It cannot be done where the VM is.
    Impossible,
}

impl Live {
    /// Looks at a VM and its pod; `None` where the pod does not say what it was made from, or has ended.
    pub(crate) fn of(
        vm: &VirtualMachine,
        valid: &ValidatedVm,
        state: &PodState,
        pod: Option<&Pod>,
        volumes: &[VolumePod],
        now: Timestamp,
    ) -> Option<Self> {
        let own = state.own().filter(|own| own.deletion.is_none())?;
        let pod = pod?;
        let runs = match own.phase {
            Phase::Running { .. } => true,
            Phase::Unscheduled { .. } | Phase::Starting { .. } | Phase::Unknown => false,
            Phase::Ended(_) => return None,
        };
        let running = Running::of(pod)?;
        let target = target(vm, &own.uid);
        let held = target.map_or_else(
            || GuestSize {
                vcpus: running.config.cpu.cores,
                memory_bytes: running.config.memory.size_bytes,
            },
            |target| target.size,
        );
        let of_run: Vec<VolumePod> = volumes.iter().filter(|it| it.run == own.uid).cloned().collect();
        let changes = changes::decide(&running, valid, held, &of_run);
        let resources = PodResources::of(pod).filter(|_| runs);
        let step = resources.map(|resources| {
            resize::step(&resize::Facts {
                frame: &changes.frame,
                wanted: changes.size,
                pod: &resources,
                target,
                guest: report(vm, &own.uid),
            })
        });
        let status = vm.status.as_ref();
        let guest = status.and_then(|status| status.guest.as_ref());
        let disks = runs.then(|| {
            hotplug::plan(&hotplug::Facts {
                run: &own.uid,
                wanted: &changes.plugged,
                volumes: &of_run,
                target: target_disks(vm, &own.uid),
                guest: guest.filter(|guest| guest.pod_uid.as_ref() == Some(&own.uid)),
                now,
            })
        });
        Some(Self {
            changes,
            step,
            target,
            disks,
            rejected: None,
            metadata_rejected: None,
        })
    }

    /// How far the resize is.
    pub(crate) fn progress(&self) -> Progress {
        match &self.step {
            _ if self.rejected.is_some() => Progress::Impossible,
            Some(Step::Settled) | None => Progress::Settled,
            Some(Step::AwaitKubelet(Kubelet::Infeasible { .. }) | Step::Refused { .. }) => Progress::Impossible,
            Some(
                Step::AwaitKubelet(
                    Kubelet::Quiet | Kubelet::InProgress | Kubelet::Failed { .. } | Kubelet::Deferred { .. },
                )
                | Step::ResizePod(_)
                | Step::AskGuest(_)
                | Step::AwaitGuest { .. },
            ) => Progress::UnderWay,
        }
    }

    /// Whether a disk is on its way in or out.
    pub(crate) fn plugs(&self) -> bool {
        self.disks.as_ref().is_some_and(|plan| !plan.pending.is_empty())
    }

    /// The target that the status should have for the pod with this UID.
    pub(crate) fn target_status(&self, pod_uid: &str) -> Option<GuestTarget> {
        let target = match (self.target, &self.step) {
            (old, Some(Step::AskGuest(size))) => Some(Target {
                sequence: old.map_or(0, |old| old.sequence) + 1,
                size: *size,
            }),
            (old, _) => old,
        }?;
        Some(GuestTarget {
            pod_uid: pod_uid.to_owned(),
            sequence: target.sequence,
            vcpus: i32::try_from(target.size.vcpus).ok()?,
            memory_bytes: i64::try_from(target.size.memory_bytes).ok()?,
        })
    }
}

/// What the guest of this pod was last asked to have of disks.
pub(crate) fn target_disks<'a>(vm: &'a VirtualMachine, pod_uid: &str) -> Option<&'a TargetDisks> {
    let target = vm.status.as_ref()?.target_disks.as_ref()?;
    (target.pod_uid == pod_uid).then_some(target)
}

/// What the guest of this pod was last asked to have. Where that was lost and the VMM has answered, the count goes on after its answer, and the guest
/// is taken to be asked for what it has: not for its first size, to which its pod would be cut.
fn target(vm: &VirtualMachine, pod_uid: &str) -> Option<Target> {
    let status = vm.status.as_ref()?;
    let Some(target) = status.target.as_ref().filter(|target| target.pod_uid == pod_uid) else {
        let report = report(vm, pod_uid)?;
        let sequence = report.answer?.sequence;
        return Some(Target {
            sequence,
            size: report.has,
        });
    };
    Some(Target {
        sequence: target.sequence,
        size: GuestSize {
            vcpus: u32::try_from(target.vcpus).ok()?,
            memory_bytes: u64::try_from(target.memory_bytes).ok()?,
        },
    })
}

/// What the node agent says of the guest of this pod.
fn report(vm: &VirtualMachine, pod_uid: &str) -> Option<Report> {
    let status = vm.status.as_ref()?;
    let guest = status.guest.as_ref()?;
    let acknowledged = status
        .acknowledged_target
        .as_ref()
        .filter(|target| target.pod_uid == pod_uid);
    guest.pod_uid.as_deref().filter(|uid| *uid == pod_uid)?;
    Some(Report {
        has: GuestSize {
            vcpus: u32::try_from(guest.vcpus?).ok()?,
            memory_bytes: Quantity(guest.memory.clone()?).bytes().ok()?,
        },
        answer: acknowledged.map(|target| Answer {
            sequence: target.sequence,
            refusal: target.refusal.clone(),
        }),
        hindrance: guest.hindrance.clone(),
    })
}

/// The merge patch that gives a pod its own labels and annotations as `desired` has them, and writes down that it did.
pub(crate) fn metadata_patch(pod: &Pod, desired: &Pod) -> Option<Value> {
    let running = Snapshot::parse(pod.annotations().get(SPEC_ANNOTATION)?)?;
    let wanted = Snapshot::parse(desired.annotations().get(SPEC_ANNOTATION)?)?;
    let part = |kind: &str, of: &Snapshot, values: &std::collections::BTreeMap<String, String>| {
        let mut patch: serde_json::Map<String, Value> = running
            .metadata_keys(kind)
            .into_iter()
            .map(|key| (key, Value::Null))
            .collect();
        for key in of.metadata_keys(kind) {
            let value = values.get(&key).map_or(Value::Null, |value| json!(value));
            patch.insert(key, value);
        }
        patch
    };
    let labels = part("labels", &wanted, desired.labels());
    let mut annotations = part("annotations", &wanted, desired.annotations());
    annotations.insert(
        SPEC_ANNOTATION.to_owned(),
        json!(running.with_pod_metadata_of(&wanted).text()),
    );
    // With its UID the patch never lands on another pod of the same name.
    Some(json!({ "metadata": { "uid": pod.uid(), "labels": labels, "annotations": annotations } }))
}
