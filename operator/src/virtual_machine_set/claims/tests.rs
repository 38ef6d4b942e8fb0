//! The table of a set's claims, and a set that is scaled, deleted from and changed its mind about at random.

use proptest::prelude::*;

use super::*;

fn wanted(replicas: usize, when_deleted: Retention, when_scaled: Retention) -> Wanted {
    Wanted {
        templates: vec!["data".to_owned(), "log".to_owned()],
        vms: (0..replicas).map(|number| format!("web-{number}")).collect(),
        when_deleted,
        when_scaled,
    }
}

/// A claim as `name:marks`: it is the set's (s), it goes (x), or it is that of a VM by its UID.
fn claim(text: &str) -> Claim {
    let (name, marks) = text.split_once(':').unwrap_or((text, ""));
    Claim {
        name: name.to_owned(),
        vm: name.split_once('-').expect("template-vm").1.to_owned(),
        owner: match marks {
            "s" => Owner::Set,
            "" | "x" => Owner::Nobody,
            uid => Owner::Vm(uid.to_owned()),
        },
        goes: marks == "x",
    }
}

/// A VM as `name:uid`, with `!` after it if it is ready.
fn vm(text: &str) -> (&str, Present<'_>) {
    let (name, uid) = text.split_once(':').expect("name:uid");
    let (uid, ready) = (uid.trim_end_matches('!'), uid.ends_with('!'));
    (name, Present { uid, ready })
}

/// The plan in words: what is made, handed over and waited for.
fn shown(plan: &Plan) -> String {
    let made = plan.create.iter().map(|(index, vm)| format!("+{index}-{vm}"));
    let handed = plan.hand_over.iter().map(|HandOver { claim, to, .. }| match to {
        Owner::Nobody => format!("{claim}=nobody"),
        Owner::Set => format!("{claim}=set"),
        Owner::Vm(uid) => format!("{claim}={uid}"),
    });
    let waiting = plan.waiting.iter().map(|(vm, claim)| format!("{vm}<{claim}"));
    made.chain(handed).chain(waiting).collect::<Vec<_>>().join(" ")
}

/// What it is | whenDeleted and whenScaled | VMs wanted | claims | VMs there are | what is planned.
const TABLE: &str = "
    made with the VM                        | keep keep     | 1 |                                     |          | +0-web-0 +1-web-0
    what is missing is made                 | keep keep     | 1 | data-web-0                          |          | +1-web-0
    there again                             | keep keep     | 1 | data-web-0 log-web-0                |          |
    a VM that runs has what it has          | keep keep     | 1 | data-web-0                          | web-0:a! |
    one that went is made again             | keep keep     | 1 | data-web-0                          | web-0:a  | +1-web-0
    VMs that are to be made come first      | keep keep     | 2 | data-web-0 data-web-1               | web-0:a  | +1-web-1 +1-web-0
    one that goes is waited for             | keep keep     | 1 | data-web-0:x log-web-0              |          | web-0<data-web-0
    but not by a VM that has it             | keep keep     | 1 | data-web-0:x log-web-0              | web-0:a  |
    kept when the set is smaller            | keep keep     | 0 | data-web-0 log-web-0                | web-0:a  |
    goes with a VM that is one too many     | keep delete   | 0 | data-web-0 log-web-0:x              | web-0:a! | data-web-0=a
    and not with the set then               | delete delete | 0 | data-web-0:s log-web-0:s            | web-0:a  | data-web-0=a log-web-0=a
    marked, and its VM goes                 | delete delete | 0 | data-web-0:a                        | web-0:a  |
    not with a VM that is made anew         | keep delete   | 1 | data-web-0 log-web-0                | web-0:a  |
    kept earlier, then the policy changes   | keep delete   | 0 | data-web-0 log-web-0                |          |
    kept earlier, and never the set's       | delete delete | 0 | data-web-0                          |          |
    kept by an earlier set of this name     | delete delete | 1 | data-web-0:s log-web-0:s data-web-7 | web-0:a  |
    kept by an earlier set, and used now    | delete keep   | 1 | data-web-0 log-web-0                |          | data-web-0=set log-web-0=set
    marked, then wanted again               | keep delete   | 1 | data-web-0:a log-web-0              | web-0:a  | data-web-0=nobody
    marked, then wanted again, with the set | delete delete | 1 | data-web-0:a log-web-0:s            | web-0:a  | data-web-0=set
    marked, then the policy changes         | keep keep     | 0 | data-web-0:a                        | web-0:a  | data-web-0=nobody
    marked, and wanted too late             | keep keep     | 1 | data-web-0:a log-web-0              |          | web-0<data-web-0
    marked for a VM of before               | keep keep     | 1 | data-web-0:a log-web-0              | web-0:b  |
    the set becomes their owner             | delete keep   | 1 | data-web-0 log-web-0:s              | web-0:a! | data-web-0=set
    also of those of a VM that goes         | delete keep   | 0 | data-web-0                          | web-0:a  | data-web-0=set
    and stops being it                      | keep keep     | 1 | data-web-0:s log-web-0              | web-0:a  | data-web-0=nobody
    also of what it kept                    | keep keep     | 0 | data-web-0:s                        |          | data-web-0=nobody
    other claims are left alone             | delete delete | 0 | other-web-0 other-web-9             | web-0:a  |
";

#[test]
fn claims_come_before_and_go_after_their_vms() {
    for row in TABLE.trim().lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [name, policy, replicas, claims, present, expected] = cells[..] else {
            panic!("{row}")
        };
        let retention = |word| match word {
            "keep" => Retention::Retain,
            "delete" => Retention::Delete,
            _ => panic!("{row}"),
        };
        let (when_deleted, when_scaled) = policy.split_once(' ').expect("two words");
        let replicas = replicas.parse().expect("a number");
        let wanted = wanted(replicas, retention(when_deleted), retention(when_scaled));
        let claims: Vec<Claim> = claims.split_whitespace().map(claim).collect();
        let plan = plan(&wanted, &claims, &present.split_whitespace().map(vm).collect());
        assert_eq!(shown(&plan), expected, "{name}");
    }
}

#[derive(Clone, Debug)]
enum Happening {
    Scale(usize),
    WhenDeleted(Retention),
    WhenScaled(Retention),
    VmDeleted(usize),
    VmGone,
    ClaimDeleted(usize),
    /// The garbage collector looks at every claim, and those that nobody has go.
    ClaimGone,
    Reconcile,
}

fn happening() -> impl Strategy<Value = Happening> {
    let retention = || prop::sample::select(vec![Retention::Retain, Retention::Delete]);
    prop_oneof![
        2 => (0_usize..5).prop_map(Happening::Scale),
        1 => retention().prop_map(Happening::WhenDeleted),
        1 => retention().prop_map(Happening::WhenScaled),
        2 => (0_usize..5).prop_map(Happening::VmDeleted),
        2 => Just(Happening::VmGone),
        1 => (0_usize..10).prop_map(Happening::ClaimDeleted),
        2 => Just(Happening::ClaimGone),
        6 => Just(Happening::Reconcile),
    ]
}

#[derive(Debug)]
struct Vm {
    name: String,
    uid: String,
    deleted: bool,
    /// When the set was last looked at, it was one too many and its claims were to go.
    condemned: bool,
}

#[derive(Debug)]
struct Volume {
    claim: Claim,
    /// Its VM went while it was condemned.
    doomed: bool,
}

#[derive(Debug)]
struct World {
    wanted: Wanted,
    vms: Vec<Vm>,
    volumes: Vec<Volume>,
    /// VMs that there ever were.
    made: usize,
}

impl World {
    fn new() -> Self {
        Self {
            wanted: wanted(2, Retention::Retain, Retention::Retain),
            vms: Vec::new(),
            volumes: Vec::new(),
            made: 0,
        }
    }

    fn vms_go(&mut self) {
        for vm in self.vms.iter().filter(|vm| vm.deleted && vm.condemned) {
            for volume in self.volumes.iter_mut().filter(|volume| volume.claim.vm == vm.name) {
                volume.doomed = true;
            }
        }
        self.vms.retain(|vm| !vm.deleted);
    }

    fn claims_go(&mut self) {
        for Volume { claim, doomed } in &mut self.volumes {
            if let Owner::Vm(uid) = &claim.owner
                && !self.vms.iter().any(|vm| vm.uid == *uid)
            {
                assert!(*doomed || claim.goes, "{claim:?} is lost");
                claim.goes = true;
            }
        }
        let Self { volumes, vms, .. } = self;
        volumes.retain(|volume| !volume.claim.goes || vms.iter().any(|vm| vm.name == volume.claim.vm));
    }

    /// The set's own steps, in their order: claims, then VMs.
    fn reconcile(&mut self) {
        for vm in &mut self.vms {
            vm.condemned = !self.wanted.vms.contains(&vm.name) && self.wanted.when_scaled == Retention::Delete;
        }
        let claims: Vec<Claim> = self.volumes.iter().map(|volume| volume.claim.clone()).collect();
        let present = self.vms.iter().map(|vm| {
            let (uid, ready) = (vm.uid.as_str(), false);
            (vm.name.as_str(), Present { uid, ready })
        });
        let plan = plan(&self.wanted, &claims, &present.collect());
        for (index, vm) in &plan.create {
            let name = name(&self.wanted.templates[*index], vm);
            assert!(
                self.volumes.iter().all(|volume| volume.claim.name != name),
                "{name} twice"
            );
            let claim = claim(&name);
            self.volumes.push(Volume { claim, doomed: false });
        }
        for HandOver { claim, vm, to } in plan.hand_over {
            let claim = self.claim(&claim);
            assert_eq!(claim.vm, vm);
            claim.owner = to;
        }
        let names: Vec<String> = self.vms.iter().map(|vm| vm.name.clone()).collect();
        for name in self.wanted.vms.clone() {
            if names.contains(&name) || plan.waiting.iter().any(|(waits, _)| *waits == name) {
                continue;
            }
            for template in self.wanted.templates.clone() {
                let claim = self.claim(&super::name(&template, &name));
                assert!(
                    !claim.goes && !matches!(claim.owner, Owner::Vm(_)),
                    "{name} is made with {claim:?}"
                );
            }
            self.made += 1;
            self.vms.push(Vm {
                name,
                uid: self.made.to_string(),
                deleted: false,
                condemned: false,
            });
        }
        for vm in &mut self.vms {
            vm.deleted |= !self.wanted.vms.contains(&vm.name);
        }
    }

    fn claim(&mut self, name: &str) -> &mut Claim {
        let found = self.volumes.iter_mut().find(|volume| volume.claim.name == name);
        &mut found.unwrap_or_else(|| panic!("there is no claim {name}")).claim
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Scale(replicas) => {
                self.wanted.vms = wanted(*replicas, Retention::Retain, Retention::Retain).vms;
            }
            Happening::WhenDeleted(retention) => self.wanted.when_deleted = *retention,
            Happening::WhenScaled(retention) => self.wanted.when_scaled = *retention,
            Happening::VmDeleted(index) => {
                if let Some(vm) = self.vms.get_mut(*index) {
                    vm.deleted = true;
                }
            }
            Happening::VmGone => self.vms_go(),
            Happening::ClaimDeleted(index) => {
                if let Some(volume) = self.volumes.get_mut(*index) {
                    volume.claim.goes = true;
                }
            }
            Happening::ClaimGone => self.claims_go(),
            Happening::Reconcile => self.reconcile(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// That no claim is lost is asserted where the garbage collector takes one.
    #[test]
    fn every_vm_has_its_claims_and_none_is_lost(happenings in prop::collection::vec(happening(), 0..80)) {
        let mut world = World::new();
        for happening in &happenings {
            world.happen(happening);
        }
        for _ in 0..4 {
            world.vms_go();
            world.claims_go();
            world.reconcile();
        }
        let mut names: Vec<&String> = world.vms.iter().map(|vm| &vm.name).collect();
        names.sort();
        prop_assert_eq!(names, world.wanted.vms.iter().collect::<Vec<_>>());
        for Volume { claim, doomed } in &world.volumes {
            prop_assert!(!doomed, "{:?} should have gone", claim);
            let is_wanted = world.wanted.vms.contains(&claim.vm);
            match (world.wanted.when_deleted, &claim.owner) {
                _ if claim.goes => {}
                (Retention::Delete, Owner::Set) | (Retention::Retain, Owner::Nobody) => {}
                (Retention::Delete, Owner::Nobody) if !is_wanted => {}
                other => prop_assert!(false, "{claim:?}: {other:?}"),
            }
        }
        let mut all = world.vms.iter().flat_map(|vm| world.wanted.templates.iter().map(|template| name(template, &vm.name)));
        prop_assert!(all.all(|name| world.volumes.iter().any(|volume| volume.claim.name == name)), "{world:?}");
    }
}
