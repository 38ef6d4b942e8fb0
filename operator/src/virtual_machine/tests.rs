//! Tests of the pure steps. Golden files are in `tests/snapshots`; review a change of them with care: pods are a contract.

mod decisions;
mod evictions;
mod fixtures;
mod hotplug;
mod hotplug_sequences;
mod live_changes;
mod pods;
mod resizes;
mod sequences;
mod statuses;
