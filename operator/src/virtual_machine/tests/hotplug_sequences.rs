//! Operator, node agent, kubelet and a person, in whatever order: a model of who does what next.

use std::collections::BTreeMap;

use crds::{
    guest::{GuestDisk, GuestStatus},
    status::TargetDisks,
};
use proptest::prelude::*;

use super::fixtures::at;
use crate::virtual_machine::hotplug::{Facts, Step, VolumePhase, VolumePod, plan};

const RUN: &str = "run-1";
const DISKS: [&str; 3] = ["a", "b", "c"];

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A person adds or removes a disk.
    Edit(usize),
    /// The operator looks at what it knows; it may be what was there a while ago.
    Operator,
    /// The operator's watches bring what is there now.
    Watch,
    /// The node agent does one thing.
    Agent,
    /// The kubelet does one thing.
    Kubelet,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (0..DISKS.len()).prop_map(Act::Edit),
        4 => Just(Act::Operator),
        3 => Just(Act::Watch),
        3 => Just(Act::Agent),
        3 => Just(Act::Kubelet),
    ]
}

#[derive(Clone, Default)]
struct World {
    wanted: Vec<String>,
    volumes: BTreeMap<String, VolumePod>,
    target: Option<TargetDisks>,
    /// What the guest has: the disk, and UID of its lender.
    guest: BTreeMap<String, String>,
    made: usize,
}

#[derive(Default)]
struct Model {
    world: World,
    /// What the operator has heard of the guest and of volume pods.
    heard: World,
}

impl Model {
    fn act(&mut self, act: Act) {
        match act {
            Act::Edit(index) => {
                let disk = DISKS[index].to_owned();
                let before = self.world.wanted.len();
                self.world.wanted.retain(|wanted| *wanted != disk);
                if self.world.wanted.len() == before {
                    self.world.wanted.push(disk);
                }
            }
            Act::Watch => self.heard = self.world.clone(),
            Act::Operator => self.operator(),
            Act::Agent => self.agent(),
            Act::Kubelet => self.kubelet(),
        }
    }

    fn operator(&mut self) {
        let volumes: Vec<VolumePod> = self.heard.volumes.values().cloned().collect();
        let disks = self.heard.guest.iter().map(|(name, pod_uid)| GuestDisk {
            name: name.clone(),
            pod_uid: pod_uid.clone(),
        });
        let guest = GuestStatus {
            disks: disks.collect(),
            ..GuestStatus::default()
        };
        let plan = plan(&Facts {
            run: RUN,
            wanted: &self.world.wanted,
            volumes: &volumes,
            target: self.heard.target.as_ref(),
            guest: Some(&guest),
            now: at(100),
        });
        for step in plan.steps {
            match step {
                Step::Make(disk) => {
                    let world = &mut self.world;
                    world.made += 1;
                    let uid = format!("{disk}-{}", world.made);
                    // The API server refuses a second one of a name.
                    world.volumes.entry(disk.clone()).or_insert_with(|| VolumePod {
                        name: format!("web.{disk}"),
                        uid,
                        disk,
                        run: RUN.to_owned(),
                        created: at(0),
                        deleted: None,
                        phase: VolumePhase::Pending(None),
                        disk_spec: None,
                    });
                }
                Step::Delete { uid, at_once, .. } => {
                    assert!(!at_once, "the VM runs");
                    let heard_to_have = self.heard.guest.values().any(|lender| *lender == uid);
                    assert!(!heard_to_have, "deleted while the guest is known to have its disk");
                    let mut volumes = self.world.volumes.values_mut();
                    if let Some(volume) = volumes.find(|volume| volume.uid == uid) {
                        volume.deleted = Some(at(100));
                    }
                }
            }
        }
        self.world.target = plan.target;
    }

    /// As `board/disks.rs` of the node agent does it.
    fn agent(&mut self) {
        let Some(target) = &self.world.target else { return };
        let is_wanted = |name: &String, lender: &String| {
            let mut disks = target.disks.iter();
            disks.any(|disk| disk.name == *name && disk.pod_uid == *lender)
        };
        let surplus = self.world.guest.iter().find(|(name, lender)| !is_wanted(name, lender));
        if let Some(name) = surplus.map(|(name, _)| name.clone()) {
            self.world.guest.remove(&name);
            return;
        }
        for disk in &target.disks {
            let volume = self.world.volumes.get(&disk.name);
            // One that was deleted has withdrawn its disk.
            let lends = |volume: &&VolumePod| {
                volume.uid == disk.pod_uid && volume.phase == VolumePhase::Running && volume.deleted.is_none()
            };
            if volume.as_ref().is_some_and(lends) && !self.world.guest.contains_key(&disk.name) {
                self.world.guest.insert(disk.name.clone(), disk.pod_uid.clone());
                return;
            }
        }
    }

    fn kubelet(&mut self) {
        let guest = &self.world.guest;
        // A volume pod that was deleted waits until no guest has its disk.
        let gone = self
            .world
            .volumes
            .values()
            .find(|volume| volume.deleted.is_some() && !guest.values().any(|lender| *lender == volume.uid));
        if let Some(disk) = gone.map(|volume| volume.disk.clone()) {
            self.world.volumes.remove(&disk);
            return;
        }
        let mut volumes = self.world.volumes.values_mut();
        if let Some(volume) = volumes.find(|volume| volume.phase == VolumePhase::Pending(None)) {
            volume.phase = VolumePhase::Running;
        }
    }
}

proptest! {
    /// However late everything is heard of: a guest's disk always has its volume pod, and in the end the guest has what it shall have, and no more pods are
    /// there than that.
    #[test]
    fn in_the_end_the_guest_has_what_it_shall_have(acts in prop::collection::vec(act(), 0..120)) {
        let mut model = Model::default();
        for act in acts {
            model.act(act);
            for lender in model.world.guest.values() {
                let there = model.world.volumes.values().any(|volume| volume.uid == *lender);
                prop_assert!(there, "the guest has a disk whose volume pod is gone");
            }
        }
        for _ in 0..60 {
            for act in [Act::Watch, Act::Operator, Act::Agent, Act::Kubelet] {
                model.act(act);
            }
        }
        let World { mut wanted, volumes, guest, .. } = model.world;
        wanted.sort();
        prop_assert_eq!(volumes.keys().cloned().collect::<Vec<_>>(), wanted.clone());
        prop_assert_eq!(guest.keys().cloned().collect::<Vec<_>>(), wanted);
        for (disk, lender) in &guest {
            prop_assert_eq!(&volumes[disk].uid, lender);
        }
    }
}
