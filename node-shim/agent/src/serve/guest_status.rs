//! Writes what the guests do into `status.guest` and `status.acknowledgedTarget` of their VirtualMachines, by server-side apply of these fields
//! alone, and hands `status.target` and the disks and interfaces of `status.targetDisks` and `status.targetInterfaces` to the conversation with the guest's VMM.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crds::VirtualMachine;
use crds::guest::FIELD_MANAGER;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use node_shim_protocol::agent::{AttachDisk, Resize};
use serde_json::json;
use tokio::sync::mpsc;

use super::board::{Board, DiskOrder, Fields, InterfaceOrder, Outcome, VmName, WantedDisk, Write, vm_name};
use super::report::{ConnectionId, DiskQuestion, LenderLink, PodId, Report, ShimLink, What};

/// Longest time for one write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Writes at the same time.
const CONCURRENT_WRITES: usize = 8;

/// Follows the VirtualMachines of `node_name` and the guests' reports, and writes what has changed.
pub(super) async fn run(
    client: Client,
    node_name: String,
    mut reports: mpsc::Receiver<Report>,
) -> Result<(), super::ServeError> {
    let of_node = watcher::Config::default().fields(&format!("status.nodeName={node_name}"));
    let events = watch(Api::<VirtualMachine>::all(client.clone()), of_node).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut board = Board::begin(Instant::now());
    let mut conversations = Conversations::default();
    let mut listed = BTreeSet::new();
    let mut writing = FuturesUnordered::new();
    loop {
        let due = board.due(Instant::now(), CONCURRENT_WRITES - writing.len());
        for (connection, resize) in due.orders {
            conversations.ask(connection, resize);
        }
        for (connection, order) in due.disks {
            conversations.ask_disk(connection, order);
        }
        for (connection, order) in due.interfaces {
            conversations.ask_interface(connection, order);
        }
        for connection in due.returned {
            conversations.give_back(connection);
        }
        writing.extend(due.writes.into_iter().map(|write| apply(&client, write)));
        let next = due.next;
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(event) => observe(&mut board, &mut listed, event),
                Err(error) => tracing::warn!("the watch of this node's VirtualMachines was interrupted: {error}"),
            },
            Some((write, outcome)) = writing.next() => board.ended(&write.vm, &write.uid, outcome, Instant::now()),
            report = reports.recv() => match report {
                Some(report) => {
                    conversations.follow(&report);
                    board.report(report, Instant::now());
                }
                // The conversations are over: the agent is ending.
                None => return Ok(()),
            },
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
        }
    }
}

/// Where sizes and disks for guests go, and where disks come from.
#[derive(Default)]
struct Conversations {
    shims: BTreeMap<ConnectionId, ShimLink>,
    lenders: BTreeMap<ConnectionId, (PodId, LenderLink)>,
}

impl Conversations {
    fn follow(&mut self, report: &Report) {
        match &report.what {
            What::Connected(link) => {
                self.shims.insert(report.connection, link.clone());
            }
            What::Lent(link) => {
                let lender = (report.pod.clone(), link.clone());
                self.lenders.insert(report.connection, lender);
            }
            What::HungUp => {
                self.shims.remove(&report.connection);
                self.lenders.remove(&report.connection);
            }
            What::Plugged(plugged) => self.forget_disk(report.connection, &plugged.name),
            What::Guest(_) | What::Resized(_) | What::Interface(_) | What::Withdrawn => {}
        }
    }

    /// A size that was not sent yet is overtaken. One that ends will say so, and the next one of the pod is asked anew.
    fn ask(&self, connection: ConnectionId, resize: Resize) {
        if let Some(shim) = self.shims.get(&connection) {
            shim.sizes.send_replace(Some(resize));
        }
    }

    fn ask_disk(&self, connection: ConnectionId, order: DiskOrder) {
        let question = match order {
            DiskOrder::Detach(name) => DiskQuestion::Detach(name),
            DiskOrder::Attach(WantedDisk { name, lender }) => {
                // The board knows of no lender that is not here; of two conversations of a pod the later one counts.
                let link = self.lenders.values().rev().find(|(pod, _)| *pod == lender);
                let Some((_, LenderLink { options, disk, .. })) = link else {
                    return tracing::error!(disk = name, %lender, "nobody lends this disk: a defect");
                };
                let request = AttachDisk {
                    name,
                    lender: lender.uid,
                    options: options.clone(),
                };
                DiskQuestion::Attach(request, disk.clone())
            }
        };
        if let Some(shim) = self.shims.get(&connection) {
            shim.disks.send_replace(Some(question));
        }
    }

    /// A question that was answered has a descriptor, which would keep the disk in use: by now the shim has its own, or wants none.
    fn forget_disk(&self, connection: ConnectionId, disk: &str) {
        if let Some(shim) = self.shims.get(&connection) {
            shim.disks.send_if_modified(|question| {
                if matches!(question, Some(DiskQuestion::Attach(asked, _)) if asked.name == disk) {
                    *question = None;
                }
                false
            });
        }
    }

    fn ask_interface(&self, connection: ConnectionId, order: InterfaceOrder) {
        if let Some(shim) = self.shims.get(&connection) {
            shim.interfaces.send_replace(Some(order));
        }
    }

    fn give_back(&self, connection: ConnectionId) {
        if let Some((_, lender)) = self.lenders.get(&connection) {
            lender.returned.send_replace(true);
        }
    }
}

fn observe(board: &mut Board, listed: &mut BTreeSet<VmName>, event: Event<VirtualMachine>) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(vm) => {
            listed.extend(vm_name(&vm));
            board.observe(&vm);
        }
        Event::InitDone => board.retain(listed),
        Event::Apply(vm) => board.observe(&vm),
        Event::Delete(vm) => board.forget(&vm),
    }
}

async fn apply(client: &Client, write: Write) -> (Write, Outcome) {
    let VmName { namespace, name } = &write.vm;
    let api = Api::<VirtualMachine>::namespaced(client.clone(), namespace);
    let patch = patch(&write);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&patch);
    let applied = tokio::time::timeout(WRITE_TIMEOUT, api.patch_status(name, &parameters, &patch)).await;
    let outcome = match applied {
        Ok(Ok(_)) => Outcome::Done,
        // 409: the UID is another's. 404: deleted.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => Outcome::Gone,
        Ok(Err(error)) => {
            tracing::warn!(%namespace, %name, "failed to write the guest's status, trying again: {error}");
            Outcome::Failed
        }
        Err(_) => {
            tracing::warn!(%namespace, %name, "failed to write the guest's status within {} s, trying again", WRITE_TIMEOUT.as_secs());
            Outcome::Failed
        }
    };
    (write, outcome)
}

/// The whole of what this field manager owns. The UID is a precondition: a VM of the same name that came later is left alone.
fn patch(write: &Write) -> serde_json::Value {
    let Fields { guest, acknowledged } = &write.fields;
    let mut status = serde_json::Map::new();
    status.extend(guest.as_ref().map(|guest| ("guest".to_owned(), json!(guest))));
    status.extend(
        acknowledged
            .as_ref()
            .map(|target| ("acknowledgedTarget".to_owned(), json!(target))),
    );
    json!({
        "apiVersion": VirtualMachine::api_version(&()),
        "kind": VirtualMachine::kind(&()),
        "metadata": { "name": write.vm.name, "uid": write.uid },
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crds::guest;
    use crds::status::AcknowledgedTarget;
    use node_shim_protocol::agent::{DiskOptions, GuestState, GuestStatus, Plugged};
    use tokio::sync::watch as latest;

    use super::super::identity::PodName;
    use super::super::report::PodId;
    use super::*;

    fn write(acknowledged: Option<AcknowledgedTarget>) -> Write {
        Write {
            vm: VmName {
                namespace: "shop".into(),
                name: "web".into(),
            },
            uid: "u1".into(),
            fields: Fields {
                guest: Some(guest::GuestStatus {
                    vcpus: Some(2),
                    ..guest::GuestStatus::default()
                }),
                acknowledged,
            },
        }
    }

    /// A field that is left out of an apply is one that its manager gives up.
    #[test]
    fn both_fields_are_applied_together_and_nothing_else() {
        let target = AcknowledgedTarget {
            pod_uid: "p1".into(),
            sequence: 3,
            refusal: None,
        };
        let object = |status: serde_json::Value| {
            json!({
                "apiVersion": "tandem.dev/v1alpha1",
                "kind": "VirtualMachine",
                "metadata": { "name": "web", "uid": "u1" },
                "status": status,
            })
        };
        let both = json!({ "guest": { "vcpus": 2 }, "acknowledgedTarget": { "podUID": "p1", "sequence": 3 } });
        assert_eq!(patch(&write(Some(target))), object(both));
        assert_eq!(patch(&write(None)), object(json!({ "guest": { "vcpus": 2 } })));
    }

    #[test]
    fn a_size_goes_to_its_conversation_for_as_long_as_that_lasts() {
        let report = |what| Report {
            pod: PodId {
                name: PodName {
                    namespace: "shop".into(),
                    name: "web".into(),
                },
                uid: "p1".into(),
            },
            connection: ConnectionId(7),
            what,
        };
        let size = |sequence| Resize {
            sequence,
            vcpus: 2,
            memory_bytes: 1 << 30,
        };
        let (sizes_to, mut sizes) = latest::channel(None);
        let (disks_to, disks) = latest::channel(None);
        let (interfaces_to, _) = latest::channel(None);
        let mut conversations = Conversations::default();
        conversations.follow(&report(What::Connected(ShimLink {
            version: node_shim_protocol::agent::VERSION,
            sizes: sizes_to,
            disks: disks_to,
            interfaces: interfaces_to,
        })));
        conversations.ask(ConnectionId(7), size(1));
        conversations.ask(ConnectionId(8), size(9));
        conversations.ask(ConnectionId(7), size(2));
        assert_eq!(*sizes.borrow_and_update(), Some(size(2)), "the last one counts");
        // The same again is news too: it is asked for again.
        conversations.ask(ConnectionId(7), size(2));
        assert!(sizes.has_changed().unwrap());
        let plugged = |name: &str| {
            What::Plugged(Plugged {
                name: name.into(),
                failure: None,
                status: GuestStatus {
                    state: GuestState::Running,
                    boot_time_ms: 1,
                    vcpus: 2,
                    memory_bytes: 1 << 30,
                    resets: 0,
                    kernel: None,
                    hindrance: None,
                    disks: Vec::new(),
                    interfaces: Vec::new(),
                },
            })
        };
        let file = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        let disk = AttachDisk {
            name: "data".into(),
            lender: "v1".into(),
            options: DiskOptions::default(),
        };
        let question = DiskQuestion::Attach(disk, Arc::clone(&file));
        conversations.shims[&ConnectionId(7)].disks.send_replace(Some(question));
        conversations.follow(&report(plugged("other")));
        assert!(disks.borrow().is_some(), "not answered yet");
        conversations.follow(&report(plugged("data")));
        assert_eq!(Arc::strong_count(&file), 1, "nothing keeps the disk in use");
        conversations.follow(&report(What::HungUp));
        conversations.ask(ConnectionId(7), size(3));
        assert!(sizes.has_changed().is_err(), "nobody is left who could say it");
    }
}
