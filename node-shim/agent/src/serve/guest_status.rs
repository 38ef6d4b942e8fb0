//! Writes what the guests do into `status.guest` of their VirtualMachines, by server-side apply of that one field.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crds::VirtualMachine;
use crds::guest::FIELD_MANAGER;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;

use super::board::{Board, Outcome, Report, VmName, Write, vm_name};

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
    let mut board = Board::default();
    let mut listed = BTreeSet::new();
    let mut writing = FuturesUnordered::new();
    loop {
        let (writes, next) = board.due(Instant::now(), CONCURRENT_WRITES - writing.len());
        writing.extend(writes.into_iter().map(|write| apply(&client, write)));
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(event) => observe(&mut board, &mut listed, event),
                Err(error) => tracing::warn!("the watch of this node's VirtualMachines was interrupted: {error}"),
            },
            Some((write, outcome)) = writing.next() => board.ended(&write.vm, &write.uid, outcome, Instant::now()),
            report = reports.recv() => match report {
                Some(report) => board.report(report, Instant::now()),
                // The conversations are over: the agent is ending.
                None => return Ok(()),
            },
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
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
            tracing::warn!(%namespace, %name, "failed to write status.guest, trying again: {error}");
            Outcome::Failed
        }
        Err(_) => {
            tracing::warn!(%namespace, %name, "failed to write status.guest within {} s, trying again", WRITE_TIMEOUT.as_secs());
            Outcome::Failed
        }
    };
    (write, outcome)
}

/// The whole of what this field manager owns. The UID is a precondition: a VM of the same name that came later is left alone.
fn patch(write: &Write) -> serde_json::Value {
    json!({
        "apiVersion": VirtualMachine::api_version(&()),
        "kind": VirtualMachine::kind(&()),
        "metadata": { "name": write.vm.name, "uid": write.uid },
        "status": { "guest": write.guest },
    })
}
