//! Pure: what keeps a pod that has a node from running.

use crds::conditions::Reason;
use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};

use super::pod_state::Waiting;

/// What keeps a pod from running, and which condition it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) part: Part,
    pub(crate) message: String,
    /// Whether it may go away by itself.
    pub(crate) may_pass: bool,
}

/// The part of a VM that is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Image,
    Volumes,
    Network,
    Container,
}

impl Part {
    /// The reason that the part's condition carries.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Image => Reason::ImagePullFailed,
            Self::Volumes => Reason::MountFailed,
            Self::Network => Reason::NetworkFailed,
            Self::Container => Reason::ContainerFailed,
        }
    }
}

/// Reads why a container waits; `None` where waiting is nothing special. The reasons are those of `pkg/kubelet/images/types.go`,
/// `pkg/kubelet/container/sync_result.go` and `pkg/kubelet/kuberuntime/kuberuntime_container.go` of Kubernetes. A failed image volume
/// shows up as the container's own image does.
pub(crate) fn of_waiting(waiting: &Waiting) -> Option<Trouble> {
    let (part, may_pass) = match waiting.reason.as_str() {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => (Part::Image, true),
        "InvalidImageName" | "ErrImageNeverPull" => (Part::Image, false),
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError" => (Part::Container, true),
        _ => return None,
    };
    Some(Trouble {
        part,
        message: format!("{}: {}", waiting.reason, waiting.message),
        may_pass,
    })
}

/// Whether a container waits for something that only the pod's events explain.
pub(crate) fn needs_events(waiting: Option<&Waiting>) -> bool {
    waiting.is_none_or(|waiting| matches!(waiting.reason.as_str(), "" | "ContainerCreating" | "PodInitializing"))
}

/// Reads a pod's events: the latest that tells of a volume or a network that cannot be set up.
pub(crate) fn of_events(events: &[Event]) -> Option<Trouble> {
    let told = events.iter().filter_map(|event| {
        let part = match event.reason.as_deref() {
            Some("FailedMount" | "FailedAttachVolume" | "FailedMapVolume") => Part::Volumes,
            Some("FailedCreatePodSandBox") => Part::Network,
            Some(_) | None => return None,
        };
        let message = event.message.clone().filter(|message| !message.is_empty())?;
        Some((
            last_seen(event),
            Trouble {
                part,
                message,
                may_pass: true,
            },
        ))
    });
    told.max_by_key(|(seen, _)| *seen).map(|(_, trouble)| trouble)
}

/// Whether what the scheduler says of a pod that has no node is about its claims: the messages of `pkg/scheduler/framework/plugins/{volumebinding,
/// volumezone,volumerestrictions,nodevolumelimits}` of Kubernetes.
pub(crate) fn is_of_claims(scheduler: &str) -> bool {
    let message = scheduler.to_ascii_lowercase();
    [
        "persistentvolume",
        "persistent volume",
        "volume node affinity",
        "max volume count",
        "free storage",
    ]
    .iter()
    .any(|word| message.contains(word))
}

fn last_seen(event: &Event) -> Timestamp {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref())
        .map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0);
    series.max(last).max(first).unwrap_or(Timestamp::UNIX_EPOCH)
}
