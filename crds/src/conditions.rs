//! Types and reasons of every condition, in one place, and how a condition is set.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Longest message of a condition in bytes: `maxLength` of `metav1.Condition`.
pub const MAX_MESSAGE_BYTES: usize = 32768;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $(#[doc = $meaning:literal] $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(#[doc = $meaning] $variant,)*
        }

        impl $name {
            /// Every one, with what it means.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $meaning),)*];

            /// The name in the API.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                }
            }
        }
    };
}

names! {
    /// Types of a VM's conditions.
    ConditionType {
        /// The VM does what its spec says: it runs and its pod is ready, or it is off because runPolicy says so.
        Ready,
        /// Something is still under way. kstatus reads it.
        Reconciling,
        /// Nothing more happens until somebody changes something; the message says what. kstatus reads it.
        Stalled,
        /// The VM's pod has a node.
        Scheduled,
        /// The VMM's image, the boot image and the disk images are on the node.
        ImageReady,
        /// The VM's volumes are mounted: disks, also those that are plugged while it runs, and cloud-init data.
        DisksReady,
        /// The pod has its network and its address.
        NetworkReady,
        /// The guest is up: its readiness probe succeeds or, without one, its kernel runs.
        GuestReady,
        /// CPUs or memory of the running VM are on their way to what the spec says.
        Resizing,
        /// The running VM differs from its spec; a restart applies the change.
        RestartRequired,
        /// Evictions of the VM's pod are refused, as evictionPolicy Block asks for. Only VMs with that policy have it.
        EvictionBlocked,
    }
}

names! {
    /// Reasons of a VM's conditions.
    Reason {
        /// The VM runs.
        Running,
        /// The VM is off because runPolicy is Halted.
        Stopped,
        /// The VM's only run is over (runPolicy Once, or RerunOnFailure and the guest powered itself off).
        Completed,
        /// The VM's only run failed (runPolicy Once).
        Failed,
        /// The VM's pod waits for a node.
        Unschedulable,
        /// No node offers KVM to this VM.
        NoKvm,
        /// The VM starts.
        Starting,
        /// The VM runs, but its readiness probe has not succeeded.
        NotReady,
        /// The VM shuts down.
        Stopping,
        /// The VM failed and is started again later.
        Crashed,
        /// The node of the VM does not answer; the VM may still run there.
        NodeLost,
        /// A pod of an earlier VM with this name has not gone yet.
        WaitingForOldPod,
        /// A pod with the VM's name exists and does not belong to it.
        PodNameTaken,
        /// The spec says something that cannot be.
        InvalidSpec,
        /// The VM's instance type does not exist.
        InstanceTypeMissing,
        /// The VM's configuration cannot run: starting it again would end the same way.
        InvalidConfiguration,
        /// The API server did not admit the VM's pod.
        PodRejected,
        /// An image cannot be fetched.
        ImagePullFailed,
        /// The VM's container cannot be made.
        ContainerFailed,
        /// A volume cannot be mounted.
        MountFailed,
        /// A claim of the VM is missing, is not bound, or has a volume that no node can use now.
        ClaimNotReady,
        /// A disk cannot be plugged into the VM that runs; what may pass is tried again.
        HotPlugFailed,
        /// The pod's network cannot be set up.
        NetworkFailed,
        /// Everything is in place.
        Succeeded,
        /// Nothing is known yet, or nothing is to be done.
        Waiting,
        /// The node changes what the VM's pod may use.
        ResizingPod,
        /// The guest takes, or gives up, CPUs or memory.
        ResizingGuest,
        /// The node has no room for the VM's new size now; the kubelet tries again.
        Deferred,
        /// The node can never give the VM its new size.
        Infeasible,
        /// The API server did not admit the pod's new size.
        ResizeRejected,
        /// The VMM cannot give the guest its new size.
        ResizeRefused,
        /// VMs of the set are made, replaced or removed.
        Scaling,
        /// The API server did not admit a VM of the set, or one has a claim that it cannot have.
        VmRejected,
        /// The VM's node is cordoned, as `kubectl drain` does it, and the VM stays there.
        NodeCordoned,
        /// A `PodDisruptionBudget` with the VM's name exists and does not belong to it.
        BudgetNameTaken,
        /// The API server did not admit the VM's `PodDisruptionBudget`.
        BudgetRejected,
        /// The pod's spec differs from what the VM's spec asks for now.
        SpecChanged,
        /// The pod is as the VM's spec asks for.
        UpToDate,
    }
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is not known.
    Unknown,
}

impl ConditionStatus {
    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a condition should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Type.
    pub condition: ConditionType,
    /// Status.
    pub status: ConditionStatus,
    /// Reason.
    pub reason: Reason,
    /// Message for a person; cut to [`MAX_MESSAGE_BYTES`].
    pub message: String,
}

/// Sets one condition. `lastTransitionTime` changes only when `status` does, so that the same claim set again changes nothing.
pub fn set_condition(conditions: &mut Vec<Condition>, claim: &Claim, generation: Option<i64>, now: Timestamp) {
    let old = conditions
        .iter()
        .position(|condition| condition.type_ == claim.condition.as_str());
    let last_transition_time = old
        .map(|index| &conditions[index])
        .filter(|condition| condition.status == claim.status.as_str())
        .map_or(Time(now), |condition| condition.last_transition_time.clone());
    let condition = Condition {
        last_transition_time,
        message: truncated(&claim.message, MAX_MESSAGE_BYTES).to_owned(),
        observed_generation: generation,
        reason: claim.reason.as_str().to_owned(),
        status: claim.status.as_str().to_owned(),
        type_: claim.condition.as_str().to_owned(),
    };
    match old {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
}

/// The condition of one type.
pub fn find(conditions: &[Condition], condition_type: ConditionType) -> Option<&Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == condition_type.as_str())
}

/// The longest beginning of `text` that has at most `max_bytes` bytes.
pub fn truncated(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn claim(status: ConditionStatus, message: &str) -> Claim {
        Claim {
            condition: ConditionType::Ready,
            status,
            reason: Reason::Starting,
            message: message.to_owned(),
        }
    }

    #[test]
    fn transition_time_follows_the_status_only() {
        let mut conditions = Vec::new();
        set_condition(&mut conditions, &claim(ConditionStatus::False, "a"), Some(1), at(1));
        set_condition(&mut conditions, &claim(ConditionStatus::False, "b"), Some(2), at(2));
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time, Time(at(1)));
        assert_eq!(
            (conditions[0].message.as_str(), conditions[0].observed_generation),
            ("b", Some(2))
        );
        set_condition(&mut conditions, &claim(ConditionStatus::True, "b"), Some(2), at(3));
        assert_eq!(conditions[0].last_transition_time, Time(at(3)));
    }

    #[test]
    fn setting_the_same_claim_again_changes_nothing() {
        let mut conditions = Vec::new();
        set_condition(&mut conditions, &claim(ConditionStatus::True, "a"), Some(1), at(1));
        let before = conditions.clone();
        set_condition(&mut conditions, &claim(ConditionStatus::True, "a"), Some(1), at(9));
        assert_eq!(conditions, before);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let mut conditions = Vec::new();
        set_condition(
            &mut conditions,
            &claim(ConditionStatus::True, &"ü".repeat(MAX_MESSAGE_BYTES)),
            Some(1),
            at(1),
        );
        assert_eq!(conditions[0].message.len(), MAX_MESSAGE_BYTES);
    }
}
