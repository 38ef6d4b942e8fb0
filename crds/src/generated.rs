//! The files that are generated from the types, and the test that they are not stale.

use crate::{manifest, reference};

/// Each generated file: its path from the directory of this crate, and its contents.
///
/// # Errors
///
/// When a CRD cannot be written as YAML.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser::Error> {
    let virtual_machines = manifest::virtual_machines_yaml()?;
    Ok(vec![
        ("virtualmachines.yaml", virtual_machines.clone()),
        ("reference.md", reference::markdown()),
        (
            "../charts/tandem-crds/templates/virtualmachines.yaml",
            chart_template(&virtual_machines),
        ),
    ])
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
            let full = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            let stored = std::fs::read_to_string(&full).unwrap_or_default();
            assert!(
                stored == contents,
                "{path} is stale: run `cargo run -p crds --bin crdgen`"
            );
        }
    }

    #[test]
    fn the_chart_template_is_plain_yaml_for_helm() {
        let template = chart_template(&manifest::virtual_machines_yaml().expect("YAML"));
        assert!(!template.contains("{{"));
        assert_eq!(template.matches("helm.sh/resource-policy: keep").count(), 1);
    }
}
