//! The table of manifests that the API server must refuse, `refused.yaml`, which says how to read it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::place::{put, with};

/// Name of each object.
pub(crate) const NAME: &str = "refused";

/// The table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    /// The spec of a sound object of each kind.
    sound: BTreeMap<String, Value>,
    /// What makes it unsound, by kind.
    cases: BTreeMap<String, Vec<Case>>,
}

/// A manifest that must be refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// What is wrong with it.
    #[serde(rename = "case")]
    pub(crate) name: String,
    /// What the object is before it is updated, if that is what must be refused.
    stored: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    set: BTreeMap<String, Value>,
    #[serde(default)]
    long: BTreeMap<String, usize>,
    /// What the message must say.
    pub(crate) says: String,
}

impl Table {
    /// The table that is compiled in.
    ///
    /// # Panics
    /// When it cannot be read: the test is wrong.
    pub(crate) fn read() -> Self {
        serde_saphyr::from_str(include_str!("refused.yaml")).expect("refused.yaml")
    }

    /// Every kind with its cases.
    pub(crate) fn cases(&self) -> impl Iterator<Item = (&str, &Case)> {
        self.cases
            .iter()
            .flat_map(|(kind, cases)| cases.iter().map(move |case| (kind.as_str(), case)))
    }

    /// A sound object of a kind.
    pub(crate) fn sound(&self, kind: &str) -> Value {
        json!({
            "apiVersion": "tandem.dev/v1alpha1",
            "kind": kind,
            "metadata": { "name": NAME },
            "spec": self.sound[kind],
        })
    }

    /// The object that is stored before the case's update, if it is one.
    pub(crate) fn stored(&self, kind: &str, case: &Case) -> Option<Value> {
        case.stored.as_ref().map(|changes| with(self.sound(kind), changes))
    }

    /// The manifest that must be refused.
    pub(crate) fn refused(&self, kind: &str, case: &Case) -> Value {
        let mut manifest = with(self.stored(kind, case).unwrap_or_else(|| self.sound(kind)), &case.set);
        for (pointer, bytes) in &case.long {
            // Two bytes each, where the API server counts characters.
            let text = if pointer.ends_with("commandLine") {
                "ü".repeat(bytes / 2)
            } else {
                "x".repeat(*bytes)
            };
            put(&mut manifest, pointer, json!(text));
        }
        manifest
    }
}
