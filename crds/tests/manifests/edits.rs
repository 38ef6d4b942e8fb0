//! The table of edits of a VM that runs, `edits.yaml`, which says how to read it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::place::with;

/// The table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    spec: Value,
    pub(crate) edits: Vec<Edit>,
}

/// An edit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edit {
    /// What it is.
    #[serde(rename = "edit")]
    pub(crate) name: String,
    set: BTreeMap<String, Value>,
    /// Fields that wait for a restart, in order.
    #[serde(default)]
    pub(crate) restart: Vec<String>,
    /// Fields that reach the VM at once.
    #[serde(default)]
    pub(crate) live: Vec<String>,
}

impl Table {
    /// The table that is compiled in.
    ///
    /// # Panics
    /// When it cannot be read: the test is wrong.
    pub(crate) fn read() -> Self {
        serde_saphyr::from_str(include_str!("edits.yaml")).expect("edits.yaml")
    }

    /// The VM before each edit.
    pub(crate) fn before(&self, namespace: &str, name: &str) -> Value {
        vm(namespace, name, &self.spec)
    }

    /// The VM after an edit.
    pub(crate) fn after(&self, namespace: &str, name: &str, edit: &Edit) -> Value {
        vm(namespace, name, &with(self.spec.clone(), &edit.set))
    }
}

fn vm(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    })
}
