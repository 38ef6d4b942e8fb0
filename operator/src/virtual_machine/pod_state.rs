//! Pure: what a pod says, in the words in which a VM's life is decided.

use crds::VirtualMachine;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;
use node_shim_protocol::{ExitReason, Termination};

use super::desired::{CONTAINER, GENERATION_ANNOTATION, RESTARTED_AT_ANNOTATION};

/// Seconds after the end of its grace period from which a pod that is still there counts as lost with its node.
pub(crate) const LOST_AFTER_SECONDS: i64 = 30;

/// The pod that has the VM's name, if there is one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PodState {
    /// There is none.
    Absent,
    /// It belongs to a VM of the same name that was deleted.
    OfAnotherVm,
    /// It belongs to somebody else.
    Foreign,
    /// It is this VM's.
    Own(Box<OwnPod>),
}

/// This VM's pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwnPod {
    pub(crate) uid: String,
    pub(crate) created: Timestamp,
    /// Generation of the VM that the pod was made from.
    pub(crate) generation: Option<i64>,
    /// `spec.restartedAt` that the pod was made from.
    pub(crate) restarted_at: Option<String>,
    /// When the pod's grace period ends, if it is being deleted.
    pub(crate) deletion: Option<Timestamp>,
    pub(crate) node: Option<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) phase: Phase,
}

/// Where in its life a pod is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    /// No node yet; the scheduler's message if it has tried.
    Unscheduled { message: Option<String> },
    /// It has a node, and its container does not run yet.
    Starting { waiting: Option<Waiting> },
    /// Its container runs.
    Running { ready: bool },
    /// Its container has ended.
    Ended(Ended),
    /// Its node does not say.
    Unknown,
}

/// Why a container does not run yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// How a pod ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// One word.
    pub(crate) reason: String,
    /// One sentence.
    pub(crate) message: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) started: Option<Timestamp>,
    pub(crate) finished: Option<Timestamp>,
}

/// What the end of a run means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Outcome {
    /// The guest powered itself off.
    PoweredOff,
    /// It failed, and may succeed when it is started again.
    Failed,
    /// It failed, and can only fail again.
    Hopeless,
}

/// The outcome that a recorded reason stands for.
pub(crate) fn outcome(reason: &str) -> Outcome {
    let known = ExitReason::ALL.into_iter().find(|known| reason_name(*known) == reason);
    match known {
        Some(ExitReason::PoweredOff) => Outcome::PoweredOff,
        Some(known) if known.is_permanent() => Outcome::Hopeless,
        Some(_) | None => Outcome::Failed,
    }
}

/// The name of an exit reason in `status`.
pub(crate) const fn reason_name(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::PoweredOff => "PoweredOff",
        ExitReason::ForcedOff => "ForcedOff",
        ExitReason::InvalidConfig => "InvalidConfig",
        ExitReason::InvalidBootSource => "InvalidBootSource",
        ExitReason::InvalidDisk => "InvalidDisk",
        ExitReason::DiskUnavailable => "DiskUnavailable",
        ExitReason::InvalidCloudInit => "InvalidCloudInit",
        ExitReason::HostUnavailable => "HostUnavailable",
        ExitReason::GuestCrashed => "GuestCrashed",
        ExitReason::GuestPanicked => "GuestPanicked",
        ExitReason::GuestHung => "GuestHung",
        ExitReason::IsolationViolated => "IsolationViolated",
        ExitReason::Internal => "Internal",
    }
}

impl PodState {
    /// Reads a pod that has the VM's name.
    pub(crate) fn read(vm: &VirtualMachine, pod: Option<&Pod>) -> Self {
        let Some(pod) = pod else { return Self::Absent };
        let controller = pod
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true));
        match controller {
            Some(owner) if Some(&owner.uid) == vm.metadata.uid.as_ref() => Self::Own(Box::new(own(pod))),
            Some(owner) if owner.kind == "VirtualMachine" && owner.api_version.starts_with("tandem.dev/") => {
                Self::OfAnotherVm
            }
            Some(_) | None => Self::Foreign,
        }
    }

    /// This VM's pod, if there is one.
    pub(crate) fn own(&self) -> Option<&OwnPod> {
        match self {
            Self::Own(pod) => Some(pod),
            Self::Absent | Self::OfAnotherVm | Self::Foreign => None,
        }
    }
}

impl OwnPod {
    /// Whether the pod should have gone, had its node answered.
    pub(crate) fn is_lost(&self, now: Timestamp) -> bool {
        let overdue = self
            .deletion
            .is_some_and(|end| now.as_second() > end.as_second() + LOST_AFTER_SECONDS);
        overdue || self.phase == Phase::Unknown
    }
}

fn own(pod: &Pod) -> OwnPod {
    let annotation = |key: &str| pod.annotations().get(key).cloned();
    let status = pod.status.as_ref();
    let mut addresses: Vec<String> = status
        .and_then(|status| status.pod_ips.as_ref())
        .into_iter()
        .flatten()
        .map(|ip| ip.ip.clone())
        .collect();
    if let Some(ip) = status
        .and_then(|status| status.pod_ip.clone())
        .filter(|_| addresses.is_empty())
    {
        addresses.push(ip);
    }
    OwnPod {
        uid: pod.uid().unwrap_or_default(),
        created: pod.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        generation: annotation(GENERATION_ANNOTATION).and_then(|text| text.parse().ok()),
        restarted_at: annotation(RESTARTED_AT_ANNOTATION),
        deletion: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        node: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .filter(|name| !name.is_empty()),
        addresses,
        phase: phase(pod),
    }
}

fn phase(pod: &Pod) -> Phase {
    let status = pod.status.as_ref();
    let container = container_status(pod);
    let state = container.and_then(|container| container.state.as_ref());
    match status.and_then(|status| status.phase.as_deref()) {
        Some(phase @ ("Succeeded" | "Failed")) => Phase::Ended(ended(pod, phase == "Succeeded", state)),
        Some("Running") => match state.and_then(|state| state.terminated.as_ref()) {
            // The kubelet says so before it changes the phase.
            Some(_) => Phase::Ended(ended(pod, false, state)),
            None => Phase::Running {
                ready: condition(pod, "Ready").is_some_and(|ready| ready.status == "True"),
            },
        },
        Some("Unknown") => Phase::Unknown,
        Some(_) | None => pending(pod, state),
    }
}

fn pending(pod: &Pod, state: Option<&ContainerState>) -> Phase {
    let bound = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .is_some_and(|name| !name.is_empty());
    if !bound {
        let message = condition(pod, "PodScheduled")
            .filter(|scheduled| scheduled.status == "False")
            .map(|scheduled| scheduled.message.clone().unwrap_or_default());
        return Phase::Unscheduled { message };
    }
    let waiting = state.and_then(|state| state.waiting.as_ref()).map(|waiting| Waiting {
        reason: waiting.reason.clone().unwrap_or_default(),
        message: waiting.message.clone().unwrap_or_default(),
    });
    Phase::Starting { waiting }
}

fn ended(pod: &Pod, succeeded: bool, state: Option<&ContainerState>) -> Ended {
    let status = pod.status.as_ref();
    let pod_reason = status
        .and_then(|status| status.reason.clone())
        .filter(|reason| !reason.is_empty());
    let pod_message = status.and_then(|status| status.message.clone()).unwrap_or_default();
    let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) else {
        // The kubelet ended the pod before its container ran, or without knowing how the container ended.
        let reason = pod_reason.unwrap_or_else(|| "Rejected".to_owned());
        let message = format!("the node ended the VM's pod: {pod_message}");
        return Ended {
            outcome: Outcome::Failed,
            reason,
            message,
            exit_code: None,
            started: None,
            finished: None,
        };
    };
    let (reason, message) = explain(
        terminated.exit_code,
        terminated.reason.as_deref(),
        terminated.message.as_deref(),
    );
    // A guest that powers itself off lets its pod succeed; a pod that the node ended (shutdown, eviction) fails with exit code 0 as well.
    let (outcome, reason, message) = match (outcome(&reason), pod_reason) {
        (Outcome::PoweredOff, Some(pod_reason)) if !succeeded => (
            Outcome::Failed,
            pod_reason,
            format!("the node ended the VM: {pod_message}"),
        ),
        (outcome, _) => (outcome, reason, message),
    };
    Ended {
        outcome,
        reason,
        message,
        exit_code: Some(terminated.exit_code),
        started: terminated.started_at.as_ref().map(|time| time.0),
        finished: terminated.finished_at.as_ref().map(|time| time.0),
    }
}

/// Reason and message of a container that ended: the shim's own words where it left some.
fn explain(exit_code: i32, kubelet_reason: Option<&str>, message: Option<&str>) -> (String, String) {
    let said: Option<Termination> = message.and_then(|message| serde_json::from_str(message.trim()).ok());
    if let Some(said) = said {
        return (reason_name(said.reason).to_owned(), said.message);
    }
    if kubelet_reason == Some("OOMKilled") {
        let message = "the VM's pod used more memory than its limit and was killed: this is a defect of the memory \
                       overhead that Tandem computes, please report it";
        return ("OOMKilled".to_owned(), message.to_owned());
    }
    let by_code = ExitReason::ALL
        .into_iter()
        .find(|reason| i32::from(reason.code()) == exit_code);
    if let Some(reason) = by_code {
        let message = format!("node-shim ended with exit code {exit_code} and without a message; see kubectl logs");
        return (reason_name(reason).to_owned(), message);
    }
    match exit_code {
        137 => ("Killed".to_owned(), "the VMM was killed (SIGKILL)".to_owned()),
        129..=192 => (
            "Killed".to_owned(),
            format!("the VMM was killed by signal {}", exit_code - 128),
        ),
        code => {
            let reason = kubelet_reason.filter(|reason| !reason.is_empty()).unwrap_or("Error");
            (
                reason.to_owned(),
                format!(
                    "the VMM ended with exit code {code}; {}",
                    message.unwrap_or("see kubectl logs")
                ),
            )
        }
    }
}

fn container_status(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == CONTAINER)
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}
