//! What is known of a guest, as the API's fields have it.

use crds::VirtualMachine;
use crds::guest::{self, GuestDisk, RefusedDisk};
use crds::status::{AcknowledgedTarget, GuestTarget, TargetDisk};
use node_shim_protocol::agent::{GuestState, GuestStatus, Resize};

use super::disks::Wanted;
use super::orders::Answer;
use crate::serve::identity::PodName;
use crate::serve::report::{PodId, boot_time};

/// What this node agent owns of a VM's status.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::serve) struct Fields {
    /// `status.guest`.
    pub(in crate::serve) guest: Option<guest::GuestStatus>,
    /// `status.acknowledgedTarget`.
    pub(in crate::serve) acknowledged: Option<AcknowledgedTarget>,
}

impl Fields {
    /// As a VM has them.
    pub(super) fn of(vm: &VirtualMachine) -> Self {
        let status = vm.status.as_ref();
        Self {
            guest: status.and_then(|status| status.guest.clone()),
            acknowledged: status.and_then(|status| status.acknowledged_target.clone()),
        }
    }

    /// Of the guest of one pod; what another run of the VM answered is left out.
    pub(super) fn new(
        status: &GuestStatus,
        pod_uid: &str,
        known: &Self,
        answer: Option<&Answer>,
        refused: Vec<RefusedDisk>,
    ) -> Self {
        let known = known.acknowledged.as_ref().filter(|known| known.pod_uid == pod_uid);
        let answered = answer.and_then(|answer| {
            Some(AcknowledgedTarget {
                pod_uid: pod_uid.to_owned(),
                sequence: i64::try_from(answer.sequence).ok()?,
                refusal: answer.refusal.clone(),
            })
        });
        let newest = answered.filter(|answered| known.is_none_or(|known| known.sequence <= answered.sequence));
        Self {
            guest: Some(guest(status, pod_uid, refused)),
            acknowledged: newest.or_else(|| known.cloned()),
        }
    }

    /// The greatest `sequence` that the VMM of this pod has taken.
    pub(super) fn taken(&self, pod_uid: &str) -> Option<u64> {
        let acknowledged = self.acknowledged.as_ref()?;
        let taken = acknowledged.pod_uid == pod_uid && acknowledged.refusal.is_none();
        u64::try_from(acknowledged.sequence).ok().filter(|_| taken)
    }

    /// Whether `other` differs in nothing but the guest's size and the answer to a target.
    pub(super) fn is_same_but_for_size(&self, other: &Self) -> bool {
        let but_size = |fields: &Self| {
            fields.guest.clone().map(|guest| guest::GuestStatus {
                vcpus: None,
                memory: None,
                ..guest
            })
        };
        let refusal = |fields: &Self| fields.acknowledged.as_ref().and_then(|answer| answer.refusal.clone());
        but_size(self) == but_size(other) && refusal(self) == refusal(other)
    }
}

/// The size that a VM's guest shall have; none where it is one for another run of the VM.
pub(super) fn wanted(vm: &VirtualMachine, pod_uid: &str) -> Option<Resize> {
    let GuestTarget {
        pod_uid: meant,
        sequence,
        vcpus,
        memory_bytes,
    } = vm.status.as_ref()?.target.as_ref()?;
    if meant != pod_uid {
        return None;
    }
    Some(Resize {
        sequence: u64::try_from(*sequence).ok()?,
        vcpus: u32::try_from(*vcpus).ok()?,
        memory_bytes: u64::try_from(*memory_bytes).ok()?,
    })
}

/// The disks that a VM's guest shall be given; none where nobody says, or it is said of another run.
pub(super) fn wanted_disks(vm: &VirtualMachine, pod_uid: &str) -> Option<Vec<Wanted>> {
    let namespace = vm.metadata.namespace.as_ref()?;
    let target = vm.status.as_ref()?.target_disks.as_ref()?;
    let wanted = |disk: &TargetDisk| Wanted {
        name: disk.name.clone(),
        lender: PodId {
            name: PodName {
                namespace: namespace.clone(),
                name: disk.pod_name.clone(),
            },
            uid: disk.pod_uid.clone(),
        },
    };
    (target.pod_uid == pod_uid).then(|| target.disks.iter().map(wanted).collect())
}

fn guest(status: &GuestStatus, pod_uid: &str, refused_disks: Vec<RefusedDisk>) -> guest::GuestStatus {
    let disks = status.disks.iter();
    let state = match status.state {
        GuestState::Booting => guest::GuestState::Booting,
        GuestState::Running => guest::GuestState::Running,
        GuestState::PoweringOff => guest::GuestState::PoweringOff,
    };
    guest::GuestStatus {
        pod_uid: Some(pod_uid.to_owned()),
        state: Some(state),
        boot_time: boot_time(status.boot_time_ms),
        vcpus: i32::try_from(status.vcpus).ok(),
        memory: Some(quantity(status.memory_bytes)),
        resets: i64::try_from(status.resets).ok(),
        kernel: status.kernel.clone(),
        hindrance: status.hindrance.clone(),
        disks: disks
            .map(|disk| GuestDisk {
                name: disk.name.clone(),
                pod_uid: disk.lender.clone(),
            })
            .collect(),
        refused_disks,
    }
}

/// Bytes in the largest binary unit that divides them, as Kubernetes writes quantities.
fn quantity(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    let unit = UNITS
        .into_iter()
        .find(|(size, _)| bytes > 0 && bytes.is_multiple_of(*size));
    unit.map_or_else(
        || bytes.to_string(),
        |(size, suffix)| format!("{}{suffix}", bytes / size),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_written_as_people_write_it() {
        let cases = [
            (0, "0"),
            (1000, "1000"),
            (1 << 10, "1Ki"),
            (512 << 20, "512Mi"),
            ((1 << 30) + (1 << 29), "1536Mi"),
            (3 << 40, "3Ti"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(quantity(bytes), expected);
        }
    }
}
