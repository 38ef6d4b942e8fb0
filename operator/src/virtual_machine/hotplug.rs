//! Pure: disks that come and go while their VM runs, each by a volume pod.
//!
//! ```text
//! added:   Make ─► the volume pod runs ─► named in status.targetDisks ─► status.guest.disks has it: done
//! removed: named no more ─► status.guest.disks lacks it ─► Delete ─► the volume pod is gone: done
//! the VM's pod has ended: Delete, and no next pod is made before all are gone, because it opens those disks itself
//! ```
//!
//! A volume pod is deleted by this operator only when no guest has its disk. Others may delete it at any time: then it stays until its guest is off, or has given
//! the disk up, for as long as its grace period lasts.

use std::collections::BTreeMap;

use crds::{
    guest::GuestStatus,
    status::{TargetDisk, TargetDisks},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use kube::ResourceExt;
use node_shim_protocol::Termination;

use super::{
    desired::{DISK_LABEL, DISK_SPEC_ANNOTATION, VOLUME_CONTAINER, VOLUME_OF_LABEL},
    pod_state::{Phase, PodState, Waiting},
    trouble,
};

/// A volume pod that the node has ended, as in need of memory, is made anew after this.
const REMAKE_AFTER: SignedDuration = SignedDuration::from_secs(30);
/// Who drains a node deletes a VM's pod and its volume pods in one breath. A volume pod that is deleted alone is one whose disk the guest is to give up; one
/// whose VM goes too must not be, because the guest still writes to it.
const ALONE_AFTER: SignedDuration = SignedDuration::from_secs(15);

/// A volume pod of a VM.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VolumePod {
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Name of its disk.
    pub(crate) disk: String,
    /// UID of the VM's pod that it was made for.
    pub(crate) run: String,
    pub(crate) created: Timestamp,
    /// When its deletion was asked for.
    pub(crate) deleted: Option<Timestamp>,
    pub(crate) phase: VolumePhase,
    /// The disk as it was when the pod was made, in JSON.
    pub(crate) disk_spec: Option<String>,
}

/// How far a volume pod is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum VolumePhase {
    /// It does not run yet; why not, where that is known.
    Pending(Option<String>),
    Running,
    /// Its container failed and is started again.
    Failing(String),
    /// It ended, for good.
    Ended {
        message: String,
        at: Timestamp,
    },
}

impl VolumePod {
    /// Reads a pod; `None` where it is not of the VM with this name. `trouble` is what its events say.
    pub(crate) fn read(pod: &Pod, vm: &str, trouble: Option<&str>) -> Option<Self> {
        let label = |key: &str| pod.labels().get(key).cloned();
        let owners = pod.owner_references();
        let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
        let is_of_vm = owner.kind == "Pod" && owner.name == vm && label(VOLUME_OF_LABEL).as_deref() == Some(vm);
        let metadata = &pod.metadata;
        let grace = SignedDuration::from_secs(metadata.deletion_grace_period_seconds.unwrap_or(0));
        is_of_vm.then_some(())?;
        Some(Self {
            name: pod.name_any(),
            uid: pod.uid()?,
            disk: label(DISK_LABEL)?,
            run: owner.uid.clone(),
            created: pod.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleted: metadata.deletion_timestamp.as_ref().map(|end| end.0 - grace),
            phase: phase(pod, trouble),
            disk_spec: pod.annotations().get(DISK_SPEC_ANNOTATION).cloned(),
        })
    }
}

fn phase(pod: &Pod, trouble: Option<&str>) -> VolumePhase {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let container = containers.iter().find(|status| status.name == VOLUME_CONTAINER);
    let state = container.and_then(|container| container.state.as_ref());
    let terminated = container.and_then(terminated);
    if let Some("Succeeded" | "Failed") = status.phase.as_deref() {
        let said = terminated.map(said).or(status.message).unwrap_or_default();
        return VolumePhase::Ended {
            message: format!("its volume pod has ended: {said}"),
            at: terminated
                .and_then(|end| end.finished_at.as_ref())
                .map_or_else(|| pod.creation_timestamp().map(|time| time.0), |time| Some(time.0))
                .unwrap_or(Timestamp::UNIX_EPOCH),
        };
    }
    if state.is_some_and(|state| state.running.is_some()) {
        return VolumePhase::Running;
    }
    if let Some(terminated) = terminated {
        return VolumePhase::Failing(said(terminated));
    }
    let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| {
        trouble::of_waiting(&Waiting {
            reason: waiting.reason.clone().unwrap_or_default(),
            message: waiting.message.clone().unwrap_or_default(),
        })
    });
    let conditions = status.conditions.unwrap_or_default();
    let scheduler = conditions
        .into_iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let why = waiting
        .map(|trouble| trouble.message)
        .or_else(|| scheduler.and_then(|condition| condition.message))
        .or_else(|| trouble.map(str::to_owned));
    VolumePhase::Pending(why.map(|why| format!("its volume pod does not start: {why}")))
}

/// How its container last ended.
fn terminated(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let of = |state: Option<&'_ k8s_openapi::api::core::v1::ContainerState>| -> bool {
        state.is_some_and(|state| state.terminated.is_some())
    };
    let state = if of(container.state.as_ref()) {
        container.state.as_ref()
    } else {
        container.last_state.as_ref()
    };
    state?.terminated.as_ref()
}

/// What it said.
fn said(terminated: &ContainerStateTerminated) -> String {
    let text = terminated.message.as_deref().unwrap_or_default();
    match serde_json::from_str::<Termination>(text) {
        Ok(termination) => termination.message,
        Err(_) => format!("its volume pod failed with exit code {}: {text}", terminated.exit_code),
    }
}

/// What is known when a decision is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// UID of the VM's pod, which runs.
    pub(crate) run: &'a str,
    /// Names of the disks that are to be plugged.
    pub(crate) wanted: &'a [String],
    pub(crate) volumes: &'a [VolumePod],
    /// What was last asked for this run.
    pub(crate) target: Option<&'a TargetDisks>,
    /// What the node agent says of this run.
    pub(crate) guest: Option<&'a GuestStatus>,
    pub(crate) now: Timestamp,
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make the volume pod of this disk.
    Make(String),
    /// Delete a volume pod.
    Delete {
        name: String,
        uid: String,
        /// Nothing uses its disk, for certain: its VM's pod has ended.
        at_once: bool,
    },
}

/// A disk or an interface that is not as the spec says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) name: String,
    pub(crate) message: String,
    /// Something is wrong.
    pub(crate) failed: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// What the guest should be given; `None` where it has never been anything.
    pub(crate) target: Option<TargetDisks>,
    /// By the disks' names.
    pub(crate) pending: Vec<Pending>,
    /// When to look again if nothing happens.
    pub(crate) look_again: Option<SignedDuration>,
}

impl Plan {
    fn note(&mut self, disk: &str, failed: bool, message: impl Into<String>) {
        self.pending.push(Pending {
            name: disk.to_owned(),
            message: message.into(),
            failed,
        });
    }

    /// What came of a step: that a disk cannot be had.
    pub(crate) fn fail(&mut self, disk: &str, message: &str) {
        self.pending.retain(|pending| pending.name != disk);
        self.note(disk, true, message);
    }

    /// Has the VM looked at again after this, if nothing happens before.
    pub(crate) fn look_after(&mut self, wait: SignedDuration) {
        let wait = wait.max(SignedDuration::from_secs(1));
        self.look_again = Some(self.look_again.map_or(wait, |known| known.min(wait)));
    }
}

/// The volume pods that nothing uses any more, because the pod that they were made for has ended. `pod` is what has the VM's name, whoever's it is: the
/// guest of a VM that was deleted, and made again, may run on in it.
pub(crate) fn leftovers(state: &PodState, pod: Option<&Pod>, volumes: &[VolumePod]) -> Vec<Step> {
    let has_ended = match state {
        PodState::Own(pod) => matches!(pod.phase, Phase::Ended(_)),
        PodState::Absent => true,
        PodState::OfAnotherVm | PodState::Foreign => {
            let phase = pod.and_then(|pod| pod.status.as_ref()?.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        }
    };
    let lives = pod.filter(|_| !has_ended).and_then(|pod| pod.metadata.uid.as_ref());
    let left = volumes.iter().filter(|volume| Some(&volume.run) != lives);
    left.filter(|volume| volume.deleted.is_none())
        .map(|volume| delete(volume, true))
        .collect()
}

fn delete(volume: &VolumePod, at_once: bool) -> Step {
    Step::Delete {
        name: volume.name.clone(),
        uid: volume.uid.clone(),
        at_once,
    }
}

/// Decides about the disks of a VM that runs, and stays.
pub(crate) fn plan(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut target = BTreeMap::new();
    let volumes: BTreeMap<&str, &VolumePod> = facts
        .volumes
        .iter()
        .filter(|volume| volume.run == facts.run)
        .map(|volume| (volume.disk.as_str(), volume))
        .collect();
    for disk in facts.wanted {
        match volumes.get(disk.as_str()) {
            None => missing(facts, disk, &mut plan),
            Some(volume) => {
                if wanted(facts, volume, &mut plan) {
                    target.insert(disk.clone(), *volume);
                }
            }
        }
    }
    for (disk, volume) in &volumes {
        if !facts.wanted.iter().any(|wanted| wanted == disk) {
            surplus(facts, volume, &mut plan);
        }
    }
    for had in facts.guest.iter().flat_map(|guest| &guest.disks) {
        let known = volumes.contains_key(had.name.as_str()) || facts.wanted.contains(&had.name);
        if !known {
            plan.note(&had.name, false, GIVES_UP);
        }
    }
    let has_some = facts.guest.is_some_and(|guest| !guest.disks.is_empty());
    if facts.target.is_some() || has_some || !target.is_empty() {
        let disk = |(name, volume): (String, &VolumePod)| TargetDisk {
            name,
            pod_name: volume.name.clone(),
            pod_uid: volume.uid.clone(),
        };
        plan.target = Some(TargetDisks {
            pod_uid: facts.run.to_owned(),
            disks: target.into_iter().map(disk).collect(),
        });
    }
    plan.pending.sort_by(|one, other| one.name.cmp(&other.name));
    plan
}

const GIVES_UP: &str = "the guest is asked to give it up";

/// UID of the pod whose disk of this name the guest has.
fn had<'a>(facts: &Facts<'a>, disk: &str) -> Option<&'a str> {
    let mut disks = facts.guest?.disks.iter();
    disks.find(|had| had.name == disk).map(|had| had.pod_uid.as_str())
}

/// A disk that is to be plugged and has no volume pod.
fn missing(facts: &Facts<'_>, disk: &str, plan: &mut Plan) {
    if had(facts, disk).is_some() {
        plan.note(
            disk,
            false,
            "the guest is asked to give up the same disk of an earlier volume pod",
        );
    } else {
        plan.steps.push(Step::Make(disk.to_owned()));
        plan.note(disk, false, "its volume pod is made");
    }
}

/// A disk that is to be plugged and has one; whether the guest is to be given it.
fn wanted(facts: &Facts<'_>, volume: &VolumePod, plan: &mut Plan) -> bool {
    let disk = &volume.disk;
    let has = had(facts, disk) == Some(volume.uid.as_str());
    if let Some(deleted) = volume.deleted {
        let left = ALONE_AFTER - facts.now.duration_since(deleted);
        plan.note(
            disk,
            true,
            "its volume pod is being deleted; another one is made when it is gone",
        );
        if left.is_positive() {
            plan.look_after(left);
        }
        return has && left.is_positive();
    }
    match &volume.phase {
        VolumePhase::Ended { message, at } => {
            plan.note(disk, true, message.as_str());
            let left = REMAKE_AFTER - facts.now.duration_since(*at);
            if has {
                // Given up first: its volume may be on its way out.
            } else if left.is_positive() {
                plan.look_after(left);
            } else {
                plan.steps.push(delete(volume, false));
            }
            false
        }
        VolumePhase::Pending(_) | VolumePhase::Running | VolumePhase::Failing(_) if has => true,
        VolumePhase::Running => {
            let refused = facts.guest.and_then(|guest| {
                let mut refused = guest.refused_disks.iter();
                refused.find(|refused| refused.name == *disk && refused.pod_uid == volume.uid)
            });
            match refused {
                Some(refused) => plan.note(disk, true, refused.message.as_str()),
                None => plan.note(disk, false, "the guest is given it"),
            }
            true
        }
        VolumePhase::Failing(message) | VolumePhase::Pending(Some(message)) => {
            plan.note(disk, true, message.as_str());
            // A pod that waits has nobody who watches for what it waits for.
            plan.look_after(REMAKE_AFTER);
            false
        }
        VolumePhase::Pending(None) => {
            plan.note(disk, false, "its volume pod starts");
            plan.look_after(SignedDuration::from_secs(10));
            false
        }
    }
}

/// A disk that is to be unplugged.
fn surplus(facts: &Facts<'_>, volume: &VolumePod, plan: &mut Plan) {
    let named = facts.target.is_some_and(|target| {
        let mut disks = target.disks.iter();
        disks.any(|disk| disk.pod_uid == volume.uid)
    });
    if had(facts, &volume.disk) == Some(volume.uid.as_str()) || named {
        plan.note(&volume.disk, false, GIVES_UP);
        return;
    }
    plan.note(&volume.disk, false, "its volume pod ends");
    if volume.deleted.is_none() {
        plan.steps.push(delete(volume, false));
    }
}
