//! The field reference, `crds/reference.md`, from the same schema as the CRD.

use std::fmt::Write as _;

use serde_json::Value;

use crate::{
    applies::{self, Field},
    conditions::{ConditionType, Reason},
    manifest,
};

/// The reference as Markdown.
pub fn markdown() -> String {
    let mut out = format!("<!-- {} -->\n\n", manifest::GENERATED);
    for (_, crd) in manifest::all() {
        kind(&mut out, &crd);
    }
    changes(&mut out);
    out.push_str("## Condition types\n\n| type | it is True when |\n|---|---|\n");
    for (condition, meaning) in ConditionType::ALL {
        let _ = writeln!(out, "| `{}` | {} |", condition.as_str(), meaning.trim());
    }
    out.push_str("\n## Condition reasons\n\n| reason | meaning |\n|---|---|\n");
    for (reason, meaning) in Reason::ALL {
        let _ = writeln!(out, "| `{}` | {} |", reason.as_str(), meaning.trim());
    }
    out
}

/// The tables of one kind.
fn kind(out: &mut String, crd: &Value) {
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let text = |path: &str| crd.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let _ = writeln!(
        out,
        "# {} `tandem.dev/v1alpha1`\n\n{} Short name: `{}`.{}\n",
        text("/spec/names/kind"),
        schema["description"].as_str().unwrap_or_default(),
        text("/spec/names/shortNames/0"),
        rules(schema),
    );
    for part in ["spec", "status"] {
        if !schema["properties"][part].is_object() {
            continue;
        }
        let part_rules = rules(&schema["properties"][part]);
        let _ = writeln!(
            out,
            "## {part}\n{part_rules}\n\n| field | type | meaning |\n|---|---|---|"
        );
        fields(out, "", &schema["properties"][part]);
        out.push('\n');
    }
}

/// When a change of each field of a VM's spec applies.
fn changes(out: &mut String) {
    out.push_str(
        "# What applies when\n\nA VM that runs takes a change of its spec at once where the table says *live*. Everything else waits for the next start: \
         `status.pendingChanges` and the condition `RestartRequired` name it until then, and `spec.restartedAt` asks for a start.\n\n\
         | field of `spec` | applies | |\n|---|---|---|\n",
    );
    for Field { path, applies, note } in applies::FIELDS {
        let _ = writeln!(out, "| `{path}` | {} | {note} |", applies.as_str());
    }
    out.push('\n');
}

/// Rows of every field of an object schema, required fields first.
fn fields(out: &mut String, prefix: &str, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let required = |name: &str| {
        schema["required"]
            .as_array()
            .is_some_and(|names| names.iter().any(|n| n == name))
    };
    let (first, rest): (Vec<_>, Vec<_>) = properties.iter().partition(|(name, _)| required(name));
    for (name, field) in first.into_iter().chain(rest) {
        let path = format!("{prefix}{name}");
        let mark = if required(name) { ", required" } else { "" };
        let text = field["description"]
            .as_str()
            .unwrap_or("")
            .replace('\n', " ")
            .replace('|', "\\|");
        let rules = rules(field);
        let _ = writeln!(out, "| `{path}` | {}{mark} | {text}{rules} |", type_name(field));
        if !manifest::EMBEDDED.contains(&name.as_str()) {
            fields(out, &format!("{path}."), field);
            fields(out, &format!("{path}[]."), &field["items"]);
        }
    }
}

fn rules(field: &Value) -> String {
    let own = field["x-kubernetes-validations"].as_array().into_iter().flatten();
    let items = field["items"]["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten();
    let messages = own.chain(items).filter_map(|rule| rule["message"].as_str());
    messages.fold(String::new(), |mut all, message| {
        let _ = write!(all, "<br>Else: *{}*", message.replace('|', "\\|"));
        all
    })
}

fn type_name(field: &Value) -> String {
    if let Some(values) = field["enum"].as_array() {
        return values
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(" \\| ");
    }
    let name = field["type"].as_str().unwrap_or("integer or string");
    let bounds = match (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        (Some(minimum), Some(maximum)) => format!(" {minimum} to {maximum}"),
        (None | Some(_), None) | (None, Some(_)) => String::new(),
    };
    match name {
        "array" => format!("list of {}, at most {}", type_name(&field["items"]), field["maxItems"]),
        "object" if field["additionalProperties"].is_object() => "map of strings".to_owned(),
        other => format!("{other}{bounds}"),
    }
}
