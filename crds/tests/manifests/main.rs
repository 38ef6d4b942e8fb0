//! Every rule of the CRDs has a manifest that breaks it, and says what to write instead. Tried here as the API server would, without one.

mod edits;
mod place;
mod refused;
mod schema;

use std::collections::BTreeSet;

use crds::{
    applies::{self, Applies},
    manifest,
};
use kube::core::cel::{CompiledSchema, ErrorKind, ValidationErrors, Validator, compile_schema};
use serde_json::Value;

use self::{
    refused::{Case, Table},
    schema::{Check, Fault},
};

/// A kind as the API server knows it.
struct Kind {
    name: String,
    schema: Value,
    rules: CompiledSchema,
}

impl Kind {
    fn all() -> Vec<Self> {
        let crds = manifest::all().into_iter();
        crds.map(|(_, crd)| {
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            Self {
                name: crd["spec"]["names"]["kind"].as_str().expect("a kind").to_owned(),
                schema: schema.clone(),
                rules: compile_schema(schema),
            }
        })
        .collect()
    }

    /// What is wrong with an object, by the schema and by its rules.
    fn faults(&self, object: &Value, old: Option<&Value>) -> Vec<Fault> {
        let mut faults = schema::faults(&self.schema, object);
        if faults.iter().all(|fault| fault.check != Check::Shape) {
            let broken = Validator::new().validate_compiled(&self.rules, object, old);
            for error in broken.err().map(ValidationErrors::into_vec).unwrap_or_default() {
                assert_eq!(error.kind, ErrorKind::ValidationFailure, "{error}");
                let message = error.message.clone();
                faults.push(Fault {
                    check: Check::Rule { message },
                    message: error.message,
                });
            }
        }
        faults
    }
}

/// Every case of the table with its kind and what is wrong with its manifest.
fn tried<'a>(kinds: &'a [Kind], table: &'a Table) -> impl Iterator<Item = (&'a Kind, &'a Case, Vec<Fault>)> {
    table.cases().map(|(name, case)| {
        let kind = kinds.iter().find(|kind| kind.name == name);
        let kind = kind.unwrap_or_else(|| panic!("there is no kind {name}"));
        let stored = table.stored(name, case);
        if let Some(stored) = &stored {
            let faults = kind.faults(stored, None);
            assert!(faults.is_empty(), "{}: cannot even be stored: {faults:?}", case.name);
        }
        let faults = kind.faults(&table.refused(name, case), stored.as_ref());
        (kind, case, faults)
    })
}

#[test]
fn sound_manifests_are_sound() {
    let table = Table::read();
    for kind in Kind::all() {
        let faults = kind.faults(&table.sound(&kind.name), None);
        assert!(faults.is_empty(), "{}: {faults:?}", kind.name);
    }
}

#[test]
fn every_case_is_refused_for_what_it_says() {
    let (kinds, table) = (Kind::all(), Table::read());
    for (_, case, faults) in tried(&kinds, &table) {
        assert!(
            faults.iter().any(|fault| fault.message.contains(&case.says)),
            "{}: nothing says {:?}: {faults:#?}",
            case.name,
            case.says
        );
    }
}

/// A check of a set's template or of an instance type is that of the VM's spec, which is the same type; and a rule is the same wherever it is.
fn normalized(kind: &str, check: Check) -> (String, Check) {
    let prefix = match kind {
        "VirtualMachineSet" => "spec.template.spec.",
        _ => "spec.",
    };
    let of_vm = |path: &str| path.strip_prefix(prefix).map(|rest| format!("spec.{rest}"));
    let vm = || "VirtualMachine".to_owned();
    match check {
        Check::Rule { .. } => (vm(), check),
        Check::Pattern { ref path, ref pattern } => match of_vm(path) {
            Some(path) => (
                vm(),
                Check::Pattern {
                    path,
                    pattern: pattern.clone(),
                },
            ),
            None => (kind.to_owned(), check),
        },
        Check::Enumeration { ref path } => match of_vm(path) {
            Some(path) => (vm(), Check::Enumeration { path }),
            None => (kind.to_owned(), check),
        },
        Check::Bound | Check::Shape => (kind.to_owned(), check),
    }
}

#[test]
fn every_rule_pattern_and_enumeration_has_a_case() {
    let (kinds, table) = (Kind::all(), Table::read());
    let mut uncovered: BTreeSet<(String, Check)> = BTreeSet::new();
    for kind in &kinds {
        let mut checks: BTreeSet<Check> = schema::own_rules(&kind.schema).collect();
        schema::checks(&kind.schema["properties"]["spec"], "spec", &mut checks);
        uncovered.extend(checks.into_iter().map(|check| normalized(&kind.name, check)));
    }
    assert!(uncovered.len() > 80, "only {} checks were found", uncovered.len());
    for (kind, case, faults) in tried(&kinds, &table) {
        for fault in faults.into_iter().filter(|fault| fault.message.contains(&case.says)) {
            uncovered.remove(&normalized(&kind.name, fault.check));
        }
    }
    assert!(
        uncovered.is_empty(),
        "write cases into crds/tests/manifests/refused.yaml that break these: {uncovered:#?}"
    );
}

#[test]
fn each_case_has_a_name_of_its_own() {
    let table = Table::read();
    let mut names = BTreeSet::new();
    for (_, case) in table.cases() {
        assert!(names.insert(&case.name), "{} twice", case.name);
    }
}

#[test]
fn every_edit_is_sound() {
    let kinds = Kind::all();
    let kind = kinds
        .iter()
        .find(|kind| kind.name == "VirtualMachine")
        .expect("the kind");
    let table = edits::Table::read();
    let before = kind.faults(&table.before("default", "web"), None);
    assert!(before.is_empty(), "{before:?}");
    for edit in &table.edits {
        let faults = kind.faults(&table.after("default", "web", edit), None);
        assert!(faults.is_empty(), "{}: {faults:?}", edit.name);
    }
}

/// Fields whose edits need more than one object, or end the run: e2e/tests/e2e/contract.rs has a case for each.
const ELSEWHERE: [&str; 2] = ["instanceType.name", "restartedAt"];

#[test]
fn every_field_is_edited_and_goes_the_way_it_is_marked() {
    let table = edits::Table::read();
    let mut edited = BTreeSet::from(ELSEWHERE);
    for edit in &table.edits {
        let ways = edit.restart.iter().map(|path| (path, Applies::Restart));
        for (path, applies) in ways.chain(edit.live.iter().map(|path| (path, Applies::Live))) {
            // An item that comes or goes is named as a whole.
            let names = ["", ".name"];
            let found: Vec<_> = names
                .iter()
                .filter_map(|name| applies::find(&format!("{path}{name}")))
                .collect();
            assert!(!found.is_empty(), "{}: there is no field {path}", edit.name);
            for field in found {
                // What is live is so within what its note says, else with the next start; but one edit has to show it.
                let beyond = applies == Applies::Restart && field.applies == Applies::Live;
                assert!(field.applies == applies || beyond, "{}: {path}", edit.name);
                if !beyond {
                    edited.insert(field.path);
                }
            }
        }
    }
    let all: BTreeSet<&str> = applies::FIELDS.iter().map(|field| field.path).collect();
    let missing: Vec<_> = all.difference(&edited).collect();
    assert!(
        missing.is_empty(),
        "write edits into crds/tests/manifests/edits.yaml that change these: {missing:#?}"
    );
}
