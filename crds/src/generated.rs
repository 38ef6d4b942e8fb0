//! The files that are generated from the types, and the test that they are not stale.

use crate::{manifest, reference};

/// Each generated file: its path from the directory of this crate, and its contents.
///
/// # Errors
///
/// When a CRD cannot be written as YAML.
pub fn files() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    let mut files = vec![("reference.md".to_owned(), reference::markdown())];
    for (name, crd) in manifest::all() {
        let yaml = manifest::yaml(&crd)?;
        files.push((
            format!("../charts/tandem-crds/templates/{name}.yaml"),
            chart_template(&yaml),
        ));
        files.push((format!("{name}.yaml"), yaml));
    }
    Ok(files)
}

/// The CRD as a chart's template: Helm keeps it, and so every VM, when the chart is uninstalled.
fn chart_template(yaml: &str) -> String {
    // Helm would read {{ in a description as its own; none has it, and the test below makes sure.
    yaml.replacen(
        "metadata:\n",
        "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n",
        1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_not_stale() {
        for (path, contents) in files().expect("YAML") {
            let full = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(&path);
            let stored = std::fs::read_to_string(&full).unwrap_or_default();
            assert!(
                stored == contents,
                "{path} is stale: run `cargo run -p crds --bin crdgen`"
            );
        }
    }

    #[test]
    fn the_chart_template_is_plain_yaml_for_helm() {
        for (_, crd) in manifest::all() {
            let template = chart_template(&manifest::yaml(&crd).expect("YAML"));
            assert!(!template.contains("{{"));
            assert_eq!(template.matches("helm.sh/resource-policy: keep").count(), 1);
        }
    }
}
