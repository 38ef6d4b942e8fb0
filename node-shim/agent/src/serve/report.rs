//! What the conversations with shims tell the rest of the agent, and what of that can be believed.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use node_shim_protocol::agent::{
    FAILURE_MAX_BYTES, GuestStatus, HINDRANCE_MAX_BYTES, KERNEL_MAX_BYTES, POD_UID_MAX_BYTES, Resize, Resized,
};
use tokio::sync::watch;

use super::identity::PodName;

/// Which conversation a report comes from; a later one has a greater id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnectionId(pub(super) u64);

impl ConnectionId {
    /// An id that was not there before.
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One run of a VM. Its name is the kubelet's word; its UID the shim's own, so it can tell only runs of one name from each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PodId {
    /// Whose device it is.
    pub(super) name: PodName,
    /// What the shim says.
    pub(super) uid: String,
}

impl fmt::Display for PodId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.name, self.uid)
    }
}

/// What a conversation says.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// The caller.
    pub(super) pod: PodId,
    /// The conversation.
    pub(super) connection: ConnectionId,
    /// What is said.
    pub(super) what: What,
}

/// What can be said.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// The conversation has begun: sizes for the guest can be sent. The last one counts.
    Connected(watch::Sender<Option<Resize>>),
    /// What the guest does.
    Guest(GuestStatus),
    /// The answer to a size.
    Resized(Resized),
    /// The conversation is over.
    HungUp,
}

/// Whether a shim's status fits into the API's fields.
pub(super) fn is_plausible(status: &GuestStatus) -> bool {
    let GuestStatus {
        state: _,
        boot_time_ms,
        vcpus,
        memory_bytes,
        resets,
        kernel,
        hindrance,
    } = status;
    boot_time(*boot_time_ms).is_some()
        && i32::try_from(*vcpus).is_ok()
        && i64::try_from(*memory_bytes).is_ok()
        && i64::try_from(*resets).is_ok()
        && kernel.as_ref().is_none_or(|kernel| is_line(kernel, KERNEL_MAX_BYTES))
        && hindrance.as_ref().is_none_or(|text| is_line(text, HINDRANCE_MAX_BYTES))
}

/// Whether a shim's answer does.
pub(super) fn is_plausible_answer(resized: &Resized) -> bool {
    let Resized {
        sequence,
        failure,
        status,
    } = resized;
    i64::try_from(*sequence).is_ok()
        && failure
            .as_ref()
            .is_none_or(|failure| is_line(&failure.message, FAILURE_MAX_BYTES))
        && is_plausible(status)
}

/// Whether this may be a pod's UID: the API server's are UUIDs, those of static pods hexadecimal.
pub(super) fn is_pod_uid(uid: &str) -> bool {
    (1..=POD_UID_MAX_BYTES).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_line(text: &str, max_bytes: usize) -> bool {
    text.len() <= max_bytes && !text.chars().any(char::is_control)
}

/// Whole seconds, as Kubernetes writes times: what is read back is what was written.
pub(super) fn boot_time(milliseconds: u64) -> Option<Time> {
    let seconds = i64::try_from(milliseconds / 1000).ok()?;
    Timestamp::from_second(seconds).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use node_shim_protocol::agent::GuestState;
    use node_shim_protocol::control::{Failure, FailureKind};

    use super::*;

    fn status() -> GuestStatus {
        GuestStatus {
            state: GuestState::Running,
            boot_time_ms: 1_700_000_000_123,
            vcpus: 2,
            memory_bytes: 1 << 30,
            resets: 0,
            kernel: None,
            hindrance: None,
        }
    }

    #[test]
    fn numbers_and_texts_that_the_api_has_no_room_for_are_refused() {
        assert!(is_plausible(&status()));
        let changes: [fn(&mut GuestStatus); 8] = [
            |status| status.boot_time_ms = u64::MAX,
            |status| status.vcpus = u32::MAX,
            |status| status.memory_bytes = u64::MAX,
            |status| status.resets = u64::MAX,
            |status| status.kernel = Some("x".repeat(KERNEL_MAX_BYTES + 1)),
            |status| status.kernel = Some("two\nlines".to_owned()),
            |status| status.hindrance = Some("x".repeat(HINDRANCE_MAX_BYTES + 1)),
            |status| status.hindrance = Some("\u{1b}[2J".to_owned()),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut bad = status();
            change(&mut bad);
            assert!(!is_plausible(&bad), "change {index}");
        }
    }

    #[test]
    fn answers_that_the_api_has_no_room_for_are_refused() {
        let answer = |sequence, message: Option<&str>| Resized {
            sequence,
            failure: message.map(|message| Failure {
                kind: FailureKind::Invalid,
                message: message.to_owned(),
            }),
            status: status(),
        };
        let table = [
            (answer(1, None), true),
            (answer(1, Some("more than there is")), true),
            (answer(u64::MAX, None), false),
            (answer(1, Some("two\nlines")), false),
            (answer(1, Some(&"x".repeat(FAILURE_MAX_BYTES + 1))), false),
        ];
        for (answer, good) in table {
            assert_eq!(is_plausible_answer(&answer), good, "{answer:?}");
        }
        let mut bad = answer(1, None);
        bad.status.vcpus = u32::MAX;
        assert!(!is_plausible_answer(&bad));
    }

    #[test]
    fn uids_of_pods_are_short_and_plain() {
        for (uid, good) in [
            ("0b1c9e4e-3f1a-4d57-9d0e-1f6a2f9d8c11", true),
            ("f2c1ad9d5d7ab6b0b5ba0c4ee2e7c3c2", true),
            ("", false),
            ("a b", false),
            ("../x", false),
            (&"a".repeat(POD_UID_MAX_BYTES + 1), false),
        ] {
            assert_eq!(is_pod_uid(uid), good, "{uid}");
        }
    }
}
