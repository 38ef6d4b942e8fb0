//! `oci-image` packs files into an OCI image archive, without a container engine.
//!
//! ```text
//! oci-image --output agent.tar --name registry.tandem.local/node-agent:0.1.0 --entrypoint /node-agent \
//!   target/release/node-agent=/node-agent:755
//! ```
//!
//! The archive is what `ctr images import` and `skopeo` read: a tar of an OCI image layout (OCI image specification 1.1,
//! "Image Layout") with one layer. The same input gives the same bytes: entries are sorted and have no times.

mod archive;
mod digest;
mod entries;
mod layer;
mod sparse;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::archive::ImageConfig;
use crate::entries::{Entries, Owner, Source, Symlink};
use crate::layer::Compression;

/// Packs files into an OCI image archive.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The archive to write. It appears only when it is complete.
    #[arg(long, short)]
    output: PathBuf,
    /// Full name with tag, as a pod's `image` has it.
    #[arg(long, value_name = "REGISTRY/NAME:TAG")]
    name: archive::Name,
    /// The command that a container starts; repeated for its arguments.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Default arguments, which a pod's `args` replaces; repeated.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// User of the process, as `UID` or `UID:GID`.
    #[arg(long)]
    user: Option<String>,
    /// Environment variable; repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Label of the image; repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Owner of every file, as `UID:GID`, or `keep` for the owners on disk.
    #[arg(long, default_value = "0:0")]
    owner: Owner,
    /// Compresses the layer. Without it, importing costs no CPU.
    #[arg(long)]
    gzip: bool,
    /// Symbolic link to add; repeated.
    #[arg(long, value_name = "DEST=TARGET")]
    symlink: Vec<Symlink>,
    /// Files and directories to add. A directory is added with all that it holds: modes, symbolic links and hard links are
    /// kept, extended attributes are not.
    #[arg(value_name = "SOURCE=DEST[:MODE]")]
    sources: Vec<Source>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.sources.is_empty() && arguments.symlink.is_empty() {
        bail!("nothing to pack: name files as SOURCE=DEST");
    }
    let mut entries = Entries::new(arguments.owner);
    for source in &arguments.sources {
        entries.add_source(source)?;
    }
    for link in arguments.symlink {
        entries.add_symlink(link)?;
    }
    let config = ImageConfig {
        entrypoint: arguments.entrypoint,
        cmd: arguments.cmd,
        user: arguments.user,
        env: arguments.env,
        labels: labels(&arguments.label)?,
    };
    let compression = if arguments.gzip {
        Compression::Gzip
    } else {
        Compression::None
    };
    archive::write(&arguments.output, &arguments.name, &config, &entries, compression)
        .with_context(|| format!("failed to pack {}", arguments.output.display()))
}

fn labels(arguments: &[String]) -> Result<Vec<(String, String)>> {
    arguments
        .iter()
        .map(|label| match label.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => bail!("label {label:?} is not NAME=VALUE"),
        })
        .collect()
}
