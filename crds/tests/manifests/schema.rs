//! What a CRD's schema itself asks for, besides its CEL rules: as far as `k8s.io/kube-openapi/pkg/validation` checks it, in its words.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use regex::Regex;
use serde_json::Value;

/// What an object can fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// A CEL rule, by its message: the same rule is in several places.
    Rule { message: String },
    /// A pattern of the field at this path; `[]` and `{}` stand for items and keys.
    Pattern { path: String, pattern: String },
    /// The values that the field at this path can have.
    Enumeration { path: String },
    /// A bound, or something that is to be unique.
    Bound,
    /// A type, a field that is missing or unknown: the API server then looks at no rule.
    Shape,
}

/// What is wrong with an object.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) check: Check,
    /// What the API server says.
    pub(crate) message: String,
}

/// Each rule, pattern and enumeration of a schema.
pub(crate) fn checks(schema: &Value, path: &str, found: &mut BTreeSet<Check>) {
    found.extend(own_rules(schema));
    if let Some(pattern) = schema["pattern"].as_str() {
        found.insert(Check::Pattern {
            path: path.to_owned(),
            pattern: pattern.to_owned(),
        });
    }
    if schema["enum"].is_array() {
        found.insert(Check::Enumeration { path: path.to_owned() });
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        checks(field, &format!("{path}.{name}"), found);
    }
    for (key, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            checks(&schema[key], &format!("{path}{mark}"), found);
        }
    }
}

/// The rules of a schema, and not of what is in it.
pub(crate) fn own_rules(schema: &Value) -> impl Iterator<Item = Check> {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    rules.map(|rule| Check::Rule {
        message: rule["message"].as_str().expect("each rule has a message").to_owned(),
    })
}

/// Where in an object something is: as a person reads it, and as a check is found by it.
struct Place {
    shown: String,
    general: String,
}

impl Place {
    fn field(&self, name: &str) -> Self {
        let dot = if self.shown.is_empty() { "" } else { "." };
        Self {
            shown: format!("{}{dot}{name}", self.shown),
            general: format!("{}{dot}{name}", self.general),
        }
    }
}

/// What the schema finds wrong with an object.
pub(crate) fn faults(schema: &Value, object: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let root = Place {
        shown: String::new(),
        general: String::new(),
    };
    look(schema, object, &root, &mut faults);
    faults
}

fn look(schema: &Value, value: &Value, place: &Place, faults: &mut Vec<Fault>) {
    let mut say = |check, message: String| faults.push(Fault { check, message });
    let shown = &place.shown;
    let fits = match (schema["type"].as_str(), value) {
        (Some("object"), Value::Object(_))
        | (Some("array"), Value::Array(_))
        | (Some("string"), Value::String(_))
        | (Some("boolean"), Value::Bool(_)) => true,
        (Some("integer"), Value::Number(number)) => number.is_i64(),
        (None, Value::Number(_) | Value::String(_)) => schema["x-kubernetes-int-or-string"] == true,
        _ => false,
    };
    if !fits {
        say(
            Check::Shape,
            format!("{shown} in body must be of type {}", schema["type"]),
        );
        return;
    }
    if let Some(values) = schema["enum"].as_array().filter(|values| !values.contains(value)) {
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        let path = place.general.clone();
        say(
            Check::Enumeration { path },
            format!(
                "{shown}: Unsupported value: {value}: supported values: {}",
                values.join(", ")
            ),
        );
    }
    match value {
        Value::String(text) => string(schema, text, place, &mut say),
        Value::Number(number) => {
            let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
            let number = number.as_f64().unwrap_or_default();
            if let Some(least) = least.filter(|least| number < *least) {
                say(
                    Check::Bound,
                    format!("{shown} in body should be greater than or equal to {least}"),
                );
            }
            if let Some(most) = most.filter(|most| number > *most) {
                say(
                    Check::Bound,
                    format!("{shown} in body should be less than or equal to {most}"),
                );
            }
        }
        Value::Array(items) => list(schema, items, place, faults),
        Value::Object(fields) => object(schema, fields, place, faults),
        Value::Bool(_) | Value::Null => {}
    }
}

fn string(schema: &Value, text: &str, place: &Place, say: &mut impl FnMut(Check, String)) {
    let shown = &place.shown;
    if let Some(pattern) = schema["pattern"].as_str()
        && !Regex::new(pattern).expect("a pattern").is_match(text)
    {
        let check = Check::Pattern {
            path: place.general.clone(),
            pattern: pattern.to_owned(),
        };
        say(check, format!("{shown} in body should match '{pattern}'"));
    }
    let length = text.chars().count() as u64;
    if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
        say(Check::Bound, format!("{shown}: Too long"));
    }
    if schema["minLength"].as_u64().is_some_and(|least| length < least) {
        say(
            Check::Bound,
            format!("{shown} in body should be at least {} chars long", schema["minLength"]),
        );
    }
    if schema["format"] == "date-time" && text.parse::<Timestamp>().is_err() {
        say(Check::Bound, format!("{shown} in body must be of type date-time"));
    }
}

fn list(schema: &Value, items: &[Value], place: &Place, faults: &mut Vec<Fault>) {
    let mut say = |message| {
        faults.push(Fault {
            check: Check::Bound,
            message,
        });
    };
    if schema["maxItems"]
        .as_u64()
        .is_some_and(|most| items.len() as u64 > most)
    {
        say(format!("{}: Too many", place.shown));
    }
    let mut seen = BTreeSet::new();
    for item in items {
        let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        let keys: Vec<String> = keys
            .filter_map(|key| Some(item.get(key.as_str()?)?.to_string()))
            .collect();
        if !keys.is_empty() && !seen.insert(keys) {
            say(format!("{}: Duplicate value: {item}", place.shown));
        }
    }
    for (index, item) in items.iter().enumerate() {
        let place = Place {
            shown: format!("{}[{index}]", place.shown),
            general: format!("{}[]", place.general),
        };
        look(&schema["items"], item, &place, faults);
    }
}

fn object(schema: &Value, fields: &serde_json::Map<String, Value>, place: &Place, faults: &mut Vec<Fault>) {
    let shape = |message| Fault {
        check: Check::Shape,
        message,
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().expect("a name");
        if !fields.contains_key(name) {
            faults.push(shape(format!("{}: Required value", place.field(name).shown)));
        }
    }
    for (name, value) in fields {
        let inner = place.field(name);
        let known = &schema["properties"][name.as_str()];
        if known.is_object() {
            look(known, value, &inner, faults);
        } else if schema["additionalProperties"].is_object() {
            let general = format!("{}{{}}", place.general);
            look(
                &schema["additionalProperties"],
                value,
                &Place { general, ..inner },
                faults,
            );
        } else if !place.shown.is_empty() && place.shown != "metadata" {
            faults.push(shape(format!("unknown field \"{}\"", inner.shown)));
        }
    }
}
