//! Writes the files that are generated from the API types: `crds/virtualmachines.yaml` and `crds/reference.md`, and the chart's copy of
//! the CRD. Run it in the repository after every change of a type.
#![forbid(unsafe_code)]

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, contents) in crds::generated::files()? {
        let path = crate_dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, contents).map_err(|error| format!("failed to write {}: {error}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
