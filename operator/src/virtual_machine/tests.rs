//! Tests of the pure steps. Golden files are in `tests/snapshots`; review a change of them with care: pods are a contract.

mod decisions;
mod fixtures;
mod pods;
mod sequences;
mod statuses;
