//! What the guest has, as the node agent is told, and what the agent asks for.

use std::time::{Duration, Instant};

use node_shim_protocol::agent::{FAILURE_MAX_BYTES, PluggedDisk, Resize, Resized};
use node_shim_protocol::control::Failure;

use super::EventLoop;
use crate::cpus::Unwilling;
use crate::log;
use crate::machine::Machine;

/// Sizes that can be told at once: half of what the agent listens to, which also hears other things.
const BURST: u32 = 10;
/// One more each, as the agent listens (`Pace` of its `serve/session.rs`): a guest can change its size as often as it likes.
const INTERVAL: Duration = Duration::from_millis(500);
/// A guest on its way to another size is told of no more often than this. Where it arrives is told at once.
const ON_THE_WAY: Duration = Duration::from_millis(250);

/// What the guest has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// vCPUs.
    pub(super) vcpus: u32,
    /// Bytes of RAM.
    pub(super) memory_bytes: u64,
    /// What keeps it from what it shall have.
    pub(super) hindrance: Option<String>,
    /// Whether it has what it shall have.
    pub(super) settled: bool,
    /// Disks that volume pods have lent it.
    pub(super) disks: Vec<PluggedDisk>,
}

/// When the agent is told of a size. Pure: it is told the time.
#[derive(Debug)]
pub(super) struct Reports {
    told: Option<Size>,
    told_at: Option<Instant>,
    /// When somebody who had always told one in each [`INTERVAL`] would have the next turn.
    turn: Option<Instant>,
    wake_at: Option<Instant>,
}

impl Reports {
    /// Nothing was told.
    pub(super) const fn new() -> Self {
        Self {
            told: None,
            told_at: None,
            turn: None,
            wake_at: None,
        }
    }

    /// When [`Self::is_due`] has something to do although nothing happens.
    pub(super) const fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Whether this is to be told now. If so it counts as told.
    pub(super) fn is_due(&mut self, now: Instant, size: &Size) -> bool {
        if self.told.as_ref() == Some(size) {
            self.wake_at = None;
            return false;
        }
        let soonest = self.turn.and_then(|turn| turn.checked_sub(BURST * INTERVAL));
        let spaced = self.told_at.filter(|_| !size.settled).map(|at| at + ON_THE_WAY);
        let at = soonest.into_iter().chain(spaced).max().unwrap_or(now);
        if at > now {
            self.wake_at = Some(at);
            return false;
        }
        self.turn = Some(self.turn.unwrap_or(now).max(now) + INTERVAL);
        self.tell(now, size.clone());
        true
    }

    /// It was told with something else.
    pub(super) fn tell(&mut self, now: Instant, size: Size) {
        self.told = Some(size);
        self.told_at = Some(now);
        self.wake_at = None;
    }
}

impl EventLoop {
    /// What the guest has now.
    pub(super) fn size(&self, machine: &Machine) -> Size {
        let memory = self
            .platform
            .handles
            .mem
            .as_ref()
            .map(node_shim_virtio::mem::MemHandle::status);
        let vcpus = machine.cpus.present();
        let lacks_cpus = vcpus != self.platform.vcpus;
        let lacks_memory = memory.filter(|memory| memory.plugged_bytes != memory.requested_bytes);
        let hindrance = match (lacks_memory, machine.cpus.unwilling()) {
            (Some(memory), _) if !memory.driver => {
                Some("the guest has no driver for virtio-mem (yet): Linux's is CONFIG_VIRTIO_MEM".to_owned())
            }
            (_, Some(unwilling)) if lacks_cpus => Some(shown(unwilling)),
            (Some(_) | None, Some(_) | None) => None,
        };
        Size {
            vcpus: u32::from(vcpus),
            memory_bytes: self.memory_bytes(),
            hindrance,
            settled: !lacks_cpus && lacks_memory.is_none(),
            disks: self.lent_disks(),
        }
    }

    /// Tells the agent what the guest has, where that has changed.
    pub(super) fn report_size(&mut self, machine: &Machine, now: Instant) {
        if self.agent.is_none() {
            return;
        }
        let size = self.size(machine);
        if self.reports.is_due(now, &size) {
            self.report(machine);
        }
    }

    /// The agent wants another size.
    pub(super) fn on_resize(&mut self, machine: &Machine, wanted: Resize) {
        let Resize {
            sequence,
            vcpus,
            memory_bytes,
        } = wanted;
        let failure = self.resize(machine, Some(vcpus), Some(memory_bytes)).err();
        let asked = format_args!("size {sequence}: {vcpus} vCPUs and {} MiB", memory_bytes >> 20).to_string();
        match &failure {
            None => log::line(format_args!("the guest shall have {asked}")),
            Some(failure) => log::line(format_args!("the guest cannot have {asked}: {}", failure.message)),
        }
        let size = self.size(machine);
        let status = self.status(&size);
        self.reports.tell(Instant::now(), size);
        if let Some(agent) = &mut self.agent {
            let failure = failure.map(bounded);
            agent.answer(
                &self.poll,
                Resized {
                    sequence,
                    failure,
                    status,
                },
            );
        }
    }
}

/// As the agent takes it.
pub(super) fn bounded(mut failure: Failure) -> Failure {
    let end = failure.message.floor_char_boundary(FAILURE_MAX_BYTES);
    failure.message.truncate(end);
    failure
}

fn shown(unwilling: Unwilling) -> String {
    let Unwilling { cpu, event, status } = unwilling;
    let what = match event {
        3 => "give up",
        _ => "take",
    };
    format!("the guest did not {what} vCPU {cpu} (ACPI status {status:#x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(mebibytes: u64, settled: bool) -> Size {
        Size {
            vcpus: 2,
            memory_bytes: mebibytes << 20,
            hindrance: None,
            settled,
            disks: Vec::new(),
        }
    }

    #[test]
    fn where_a_guest_arrives_is_told_at_once_and_its_way_there_now_and_then() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut reports = Reports::new();
        reports.tell(start, size(1024, true));
        let table = [
            ("nothing new", 1, size(1024, true), (false, None)),
            ("too soon", 10, size(1152, false), (false, Some(250))),
            ("still", 200, size(1280, false), (false, Some(250))),
            ("now", 250, size(1408, false), (true, None)),
            ("on the way again", 260, size(1536, false), (false, Some(500))),
            ("there", 270, size(2048, true), (true, None)),
            ("nothing new again", 271, size(2048, true), (false, None)),
            ("another hindrance", 300, size(2048, false), (false, Some(520))),
            (
                "which goes away before it is told",
                301,
                size(2048, true),
                (false, None),
            ),
        ];
        for (name, at, size, (due, wake_at)) in table {
            assert_eq!(reports.is_due(ms(at), &size), due, "{name}");
            assert_eq!(reports.wake_at(), wake_at.map(ms), "{name}");
        }
    }

    /// As often as the guest likes it would be more than the agent listens to: then the connection would be full, and lost.
    #[test]
    fn a_guest_that_comes_and_goes_is_not_told_of_more_often_than_the_agent_listens() {
        let start = Instant::now();
        let mut reports = Reports::new();
        let told = (0..60_000_u64)
            .filter(|ms| reports.is_due(start + Duration::from_millis(*ms), &size(ms % 2, true)))
            .count();
        assert!((120..=131).contains(&told), "{told} in a minute");
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let failure = bounded(Failure {
            kind: node_shim_protocol::control::FailureKind::Failed,
            message: "ü".repeat(FAILURE_MAX_BYTES),
        });
        assert_eq!(failure.message.len(), FAILURE_MAX_BYTES);
    }
}
