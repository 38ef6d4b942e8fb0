//! The spec that a pod was made from, kept as an annotation of the pod, so that it can be said what has changed since.

use std::collections::BTreeMap;

use crds::{Quantity, VirtualMachineSpec, applies, disk::Disk};
use serde_json::{Map, Value};

use crate::digest;

/// Longest text that is kept as it is. A longer one (user data, a command line) is kept as its digest: the configuration has it already.
const MAX_TEXT_BYTES: usize = 64;
/// Fields that say when the VM runs, and for how long, rather than what it is: no pod has them.
const WITHOUT_POD: [&str; 3] = ["runPolicy", "restartedAt", "evictionPolicy"];
/// Names of fields that hold quantities: `1Gi` and `1024Mi` are the same.
const QUANTITIES: [&str; 6] = ["size", "maxSize", "request", "bytesPerSecond", "bytesBurst", "cpu"];

/// A spec as it is kept with a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot(Value);

impl Snapshot {
    /// The snapshot of a spec whose instance type is filled in.
    pub(crate) fn of(spec: &VirtualMachineSpec) -> Self {
        let mut fields = serde_json::to_value(spec).unwrap_or_default();
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|name, _| !WITHOUT_POD.contains(&name.as_str()));
        }
        shorten(&mut fields);
        Self(fields)
    }

    /// The snapshot that a pod carries.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(Value::is_object).map(Self)
    }

    /// The snapshot as text.
    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }

    /// The same with the metadata that a pod has now.
    pub(crate) fn with_pod_metadata_of(&self, other: &Self) -> Self {
        let mut fields = self.0.clone();
        if let Some(fields) = fields.as_object_mut() {
            match other.0.get("podMetadata") {
                Some(metadata) => fields.insert("podMetadata".to_owned(), metadata.clone()),
                None => fields.remove("podMetadata"),
            };
        }
        Self(fields)
    }

    /// Whether the VM's CPUs were dedicated.
    pub(crate) fn is_dedicated(&self) -> bool {
        self.0.pointer("/cpu/dedicated") == Some(&Value::Bool(true))
    }

    /// Name of the VM's instance type.
    pub(crate) fn instance_type(&self) -> Option<&str> {
        self.0.pointer("/instanceType/name").and_then(Value::as_str)
    }

    /// Keys of the pod's own labels or annotations.
    pub(crate) fn metadata_keys(&self, kind: &str) -> Vec<String> {
        let map = self
            .0
            .pointer(&format!("/podMetadata/{kind}"))
            .and_then(Value::as_object);
        map.into_iter().flat_map(Map::keys).cloned().collect()
    }

    /// Paths below `spec` of every field in which `wanted` differs, in order: an item of a list has its name in brackets.
    pub(crate) fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut paths = Vec::new();
        compare("", &self.0, &wanted.0, &mut paths);
        paths.sort();
        paths.dedup();
        paths
    }
}

/// Paths below `spec` of the fields in which a disk differs from what it was, as JSON, when its volume pod was made.
pub(crate) fn disk_differences(made: &str, wanted: &Disk) -> Vec<String> {
    let made: Value = serde_json::from_str(made).unwrap_or_default();
    let mut paths = Vec::new();
    let path = format!("disks[{}]", wanted.name);
    compare(
        &path,
        &made,
        &serde_json::to_value(wanted).unwrap_or_default(),
        &mut paths,
    );
    paths.sort();
    paths
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > MAX_TEXT_BYTES => {
            *text = format!("sha256:{}", digest::of(text));
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Adds the paths below `path` of the fields in which two values differ. The schema bounds how deep it goes: what it does not know is one field.
fn compare(path: &str, running: &Value, wanted: &Value, paths: &mut Vec<String>) {
    if running == wanted || same_quantity(path, running, wanted) {
        return;
    }
    if applies::find(path).is_some() {
        paths.push(path.to_owned());
        return;
    }
    match (running, wanted) {
        (Value::Object(_) | Value::Null, Value::Object(_) | Value::Null) => {
            let (running, wanted) = (fields(running), fields(wanted));
            for name in running.keys().chain(wanted.keys()) {
                let inner = if path.is_empty() {
                    (*name).clone()
                } else {
                    format!("{path}.{name}")
                };
                compare(&inner, value(&running, name), value(&wanted, name), paths);
            }
        }
        (Value::Array(_) | Value::Null, Value::Array(_) | Value::Null) => items(path, running, wanted, paths),
        _ => paths.push(path.to_owned()),
    }
}

/// Compares two lists by the names of their items. A list whose items are the same in another order differs as a whole.
fn items(path: &str, running: &Value, wanted: &Value, paths: &mut Vec<String>) {
    let (Some(running), Some(wanted)) = (by_name(running), by_name(wanted)) else {
        paths.push(path.to_owned());
        return;
    };
    let before = paths.len();
    let lookup = |list: &[(String, &Value)], name: &str| {
        list.iter()
            .find(|(other, _)| other == name)
            .map_or(Value::Null, |(_, item)| (*item).clone())
    };
    for (name, _) in running.iter().chain(&wanted) {
        let inner = format!("{path}[{name}]");
        match (lookup(&running, name), lookup(&wanted, name)) {
            (Value::Null, _) | (_, Value::Null) => paths.push(inner),
            (running, wanted) => compare(&inner, &running, &wanted, paths),
        }
    }
    let names = |list: &[(String, &Value)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if paths.len() == before && names(&running) != names(&wanted) {
        paths.push(path.to_owned());
    }
}

/// The items of a list with their names; `None` when one has none.
fn by_name(list: &Value) -> Option<Vec<(String, &Value)>> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|item| Some((item.get("name")?.as_str()?.to_owned(), item)))
        .collect()
}

fn fields(value: &Value) -> BTreeMap<&String, &Value> {
    value.as_object().into_iter().flatten().collect()
}

fn value<'a>(fields: &BTreeMap<&String, &'a Value>, name: &String) -> &'a Value {
    fields.get(name).copied().unwrap_or(&Value::Null)
}

fn same_quantity(path: &str, running: &Value, wanted: &Value) -> bool {
    let name = path.rsplit('.').next().unwrap_or_default();
    let millis = |value: &Value| Quantity(value.as_str()?.to_owned()).millis().ok();
    QUANTITIES.contains(&name) && millis(running).is_some() && millis(running) == millis(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn snapshot(change: impl FnOnce(&mut Value)) -> Snapshot {
        let mut spec = json!({
            "runPolicy": "Always",
            "cpu": { "cores": 2 },
            "memory": { "size": "1Gi" },
            "disks": [{ "name": "a", "emptyDisk": { "size": "1Gi" } }, { "name": "b", "emptyDisk": { "size": "1Gi" } }],
            "cloudInit": { "userData": "u".repeat(1000) },
            "podMetadata": { "labels": { "app": "web" } },
        });
        change(&mut spec);
        Snapshot::of(&serde_json::from_value(spec).expect("a spec"))
    }

    #[test]
    fn differences_are_named_by_field_and_item() {
        let table: [(&str, Value, &[&str]); 12] = [
            ("/runPolicy", json!("Halted"), &[]),
            ("/cpu/cores", json!(4), &["cpu.cores"]),
            ("/cpu", json!({ "cores": 2, "dedicated": true }), &["cpu.dedicated"]),
            ("/memory/size", json!("1024Mi"), &[]),
            ("/memory/size", json!("2Gi"), &["memory.size"]),
            ("/disks/1/emptyDisk/size", json!("2Gi"), &["disks[b].emptyDisk.size"]),
            (
                "/disks/1",
                json!({ "name": "b", "image": { "image": "i" } }),
                &["disks[b].emptyDisk.size", "disks[b].image.image"],
            ),
            ("/disks/1/name", json!("c"), &["disks[b]", "disks[c]"]),
            (
                "/disks",
                json!([{ "name": "b", "emptyDisk": { "size": "1Gi" } }, { "name": "a", "emptyDisk": { "size": "1Gi" } }]),
                &["disks"],
            ),
            ("/cloudInit/userData", json!("v".repeat(1000)), &["cloudInit.userData"]),
            ("/podMetadata/labels", json!({ "app": "db" }), &["podMetadata.labels"]),
            (
                "/interfaces",
                json!([{ "name": "n", "masquerade": {} }]),
                &["interfaces[n]"],
            ),
        ];
        for (pointer, value, expected) in table {
            let wanted = snapshot(|spec| {
                let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
                let parent = spec.pointer_mut(parent).expect("is there");
                if let Value::Array(items) = parent {
                    items[name.parse::<usize>().expect("an index")] = value.clone();
                } else {
                    parent[name] = value.clone();
                }
            });
            assert_eq!(snapshot(|_| {}).differences(&wanted), expected, "{pointer}");
        }
    }

    #[test]
    fn long_texts_are_kept_as_digests() {
        let text = snapshot(|_| {}).text();
        assert!(text.len() < 512 && text.contains("sha256:"), "{text}");
        assert_eq!(Snapshot::parse(&text), Some(snapshot(|_| {})));
    }
}
