//! Puts values at places of a manifest.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A manifest with other values at these places.
pub(crate) fn with(mut manifest: Value, changes: &BTreeMap<String, Value>) -> Value {
    for (pointer, value) in changes {
        put(&mut manifest, pointer, value.clone());
    }
    manifest
}

/// Puts a value at a JSON pointer (RFC 6901) and makes the objects on the way; null takes the place away.
pub(crate) fn put(manifest: &mut Value, pointer: &str, value: Value) {
    let mut place = manifest;
    let mut steps = pointer.split('/').skip(1).peekable();
    while let Some(step) = steps.next() {
        let key = step.replace("~1", "/").replace("~0", "~");
        if value.is_null() && steps.peek().is_none() {
            place.as_object_mut().expect("an object").remove(&key);
            return;
        }
        place = match place {
            Value::Array(list) => {
                let index: usize = key.parse().expect("an index");
                if index == list.len() {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
                if other.is_null() {
                    *other = Value::Object(Map::new());
                }
                other
                    .as_object_mut()
                    .expect("an object")
                    .entry(key)
                    .or_insert(Value::Null)
            }
        };
    }
    *place = value;
}
