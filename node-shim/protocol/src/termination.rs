//! Why a VMM ended: the exit code and the termination message of the shim's container.

use serde::{Deserialize, Serialize};

/// Why a VMM ended. Each reason has an exit code of its own, so that `kubectl get pod` and a runbook can tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitReason {
    /// The guest powered itself off, or did so after the power button.
    PoweredOff,
    /// The guest did not power off within the grace period.
    ForcedOff,
    /// The VmConfig is not one, or says something impossible.
    InvalidConfig,
    /// Kernel or initrd are missing, are not what they should be, or do not fit into guest memory.
    InvalidBootSource,
    /// A disk image is missing or unusable.
    InvalidDisk,
    /// A claim's file or device is missing, is used by another VMM, or cannot be opened. That may change without the VM being changed.
    DiskUnavailable,
    /// cloud-init data is missing or too large.
    InvalidCloudInit,
    /// The node does not offer what the VM needs: KVM, its agent, scratch space. Another try or another node may help.
    HostUnavailable,
    /// The guest did something that no VM survives: triple fault, unknown exit, KVM internal error.
    GuestCrashed,
    /// The guest's kernel panicked, and said so by its pvpanic device.
    GuestPanicked,
    /// The guest did not reset its watchdog in time.
    GuestHung,
    /// A thread of the VMM tried what its seccomp filter does not allow: the guest broke into it, or it is a defect.
    IsolationViolated,
    /// A defect of the VMM.
    Internal,
}

impl ExitReason {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::PoweredOff,
        Self::ForcedOff,
        Self::InvalidConfig,
        Self::InvalidBootSource,
        Self::InvalidDisk,
        Self::DiskUnavailable,
        Self::InvalidCloudInit,
        Self::HostUnavailable,
        Self::GuestCrashed,
        Self::GuestPanicked,
        Self::GuestHung,
        Self::IsolationViolated,
        Self::Internal,
    ];

    /// The process exit code. Below 64: neither `sysexits.h` nor 128 + a signal.
    pub const fn code(self) -> u8 {
        match self {
            Self::PoweredOff => 0,
            Self::Internal => 1,
            Self::ForcedOff => 10,
            Self::InvalidConfig => 20,
            Self::InvalidBootSource => 21,
            Self::InvalidDisk => 22,
            Self::InvalidCloudInit => 23,
            Self::HostUnavailable => 30,
            Self::DiskUnavailable => 31,
            Self::GuestCrashed => 40,
            Self::GuestPanicked => 41,
            Self::GuestHung => 42,
            Self::IsolationViolated => 50,
        }
    }

    /// As it is written in a [`Termination`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::PoweredOff => "PoweredOff",
            Self::ForcedOff => "ForcedOff",
            Self::InvalidConfig => "InvalidConfig",
            Self::InvalidBootSource => "InvalidBootSource",
            Self::InvalidDisk => "InvalidDisk",
            Self::DiskUnavailable => "DiskUnavailable",
            Self::InvalidCloudInit => "InvalidCloudInit",
            Self::HostUnavailable => "HostUnavailable",
            Self::GuestCrashed => "GuestCrashed",
            Self::GuestPanicked => "GuestPanicked",
            Self::GuestHung => "GuestHung",
            Self::IsolationViolated => "IsolationViolated",
            Self::Internal => "Internal",
        }
    }

    /// Whether the same configuration can only end the same way again, so that starting it once more is of no use.
    pub const fn is_permanent(self) -> bool {
        match self {
            Self::InvalidConfig | Self::InvalidBootSource | Self::InvalidDisk | Self::InvalidCloudInit => true,
            Self::PoweredOff
            | Self::ForcedOff
            | Self::HostUnavailable
            | Self::DiskUnavailable
            | Self::GuestCrashed
            | Self::GuestPanicked
            | Self::GuestHung
            | Self::IsolationViolated
            | Self::Internal => false,
        }
    }
}

/// The termination message: one line of JSON, at most 4096 bytes (the kubelet's limit).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// Why.
    pub reason: ExitReason,
    /// One sentence for a person: what happened and, where something is wrong, what to do.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_an_exit_code_of_its_own() {
        let codes: std::collections::BTreeSet<u8> = ExitReason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), ExitReason::ALL.len());
        for reason in ExitReason::ALL {
            assert_eq!(
                serde_json::to_string(&reason).unwrap(),
                format!("\"{}\"", reason.name())
            );
        }
    }
}
