//! What the conversations with shims tell the rest of the agent, and what of that can be believed.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use node_shim_protocol::agent::{
    AttachDisk, DISK_NAME_MAX_BYTES, DiskOptions, FAILURE_MAX_BYTES, GuestStatus, HINDRANCE_MAX_BYTES,
    KERNEL_MAX_BYTES, PLUGGED_DISKS_MAX, POD_UID_MAX_BYTES, Plugged, Resize, Resized,
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

/// A conversation with a shim.
#[derive(Clone, Debug)]
pub(super) struct ShimLink {
    /// Version of the protocol that the shim speaks.
    pub(super) version: u32,
    /// Where sizes go. The last one counts.
    pub(super) sizes: watch::Sender<Option<Resize>>,
    /// Where questions about disks go. The next one comes when the last is answered.
    pub(super) disks: watch::Sender<Option<DiskQuestion>>,
}

/// A question about a disk.
#[derive(Clone, Debug)]
pub(super) enum DiskQuestion {
    /// That the guest gets it.
    Attach(AttachDisk, Arc<OwnedFd>),
    /// That it gives it up.
    Detach(String),
}

impl DiskQuestion {
    /// The disk's name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Attach(disk, _) => &disk.name,
            Self::Detach(name) => name,
        }
    }
}

/// A conversation with a volume pod.
#[derive(Clone, Debug)]
pub(super) struct LenderLink {
    /// How its disk is to be used.
    pub(super) options: DiskOptions,
    /// Its disk. Nothing is done with it here but that it is passed on.
    pub(super) disk: Arc<OwnedFd>,
    /// Set when the disk is back.
    pub(super) returned: watch::Sender<bool>,
}

/// What can be said.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// The conversation with a shim has begun: it can be asked.
    Connected(ShimLink),
    /// A volume pod lends its disk.
    Lent(LenderLink),
    /// It wants it back.
    Withdrawn,
    /// The answer about a disk.
    Plugged(Plugged),
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
        disks,
    } = status;
    let is_disk_name = |name: &str| is_line(name, DISK_NAME_MAX_BYTES) && !name.is_empty();
    let names_are_unique = disks
        .iter()
        .enumerate()
        .all(|(index, disk)| disks.iter().take(index).all(|other| other.name != disk.name));
    boot_time(*boot_time_ms).is_some()
        && i32::try_from(*vcpus).is_ok()
        && i64::try_from(*memory_bytes).is_ok()
        && i64::try_from(*resets).is_ok()
        && kernel.as_ref().is_none_or(|kernel| is_line(kernel, KERNEL_MAX_BYTES))
        && hindrance.as_ref().is_none_or(|text| is_line(text, HINDRANCE_MAX_BYTES))
        && disks.len() <= PLUGGED_DISKS_MAX
        && disks
            .iter()
            .all(|disk| is_disk_name(&disk.name) && is_pod_uid(&disk.lender))
        && names_are_unique
}

/// Whether a shim's answer about a disk does.
pub(super) fn is_plausible_disk(plugged: &Plugged) -> bool {
    let Plugged { name, failure, status } = plugged;
    is_line(name, DISK_NAME_MAX_BYTES)
        && failure
            .as_ref()
            .is_none_or(|failure| is_line(&failure.message, FAILURE_MAX_BYTES))
        && is_plausible(status)
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
    use node_shim_protocol::agent::{GuestState, PluggedDisk};
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
            disks: Vec::new(),
        }
    }

    #[test]
    fn numbers_and_texts_that_the_api_has_no_room_for_are_refused() {
        assert!(is_plausible(&status()));
        let disk = |name: &str, lender: &str| PluggedDisk {
            name: name.to_owned(),
            lender: lender.to_owned(),
        };
        let with = |disks: Vec<PluggedDisk>| GuestStatus { disks, ..status() };
        assert!(is_plausible(&with(vec![disk("a", "v1"), disk("b", "v1")])));
        for disks in [
            vec![disk("a", "v1"), disk("a", "v2")],
            vec![disk("", "v1")],
            vec![disk("a", "../x")],
            vec![disk(&"a".repeat(DISK_NAME_MAX_BYTES + 1), "v1")],
            (0..=PLUGGED_DISKS_MAX)
                .map(|index| disk(&index.to_string(), "v1"))
                .collect(),
        ] {
            assert!(!is_plausible(&with(disks.clone())), "{disks:?}");
        }
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
