//! The archive: an OCI image layout (OCI image specification 1.1, "Image Layout") as a tar.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Map, Value, json};
use tar::{EntryType, Header};
use tempfile::NamedTempFile;
use thiserror::Error;

use crate::digest::Digest;
use crate::entries::Entries;
use crate::layer::{self, Compression, Layer};
use crate::sparse::SparseFile;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Why an archive could not be written.
#[derive(Debug, Error)]
pub(crate) enum ArchiveError {
    #[error("{0:?} is not REGISTRY/NAME:TAG")]
    Name(String),
    #[error("failed to read the layer's files")]
    Layer(#[source] io::Error),
    #[error("a file of the layer changed while it was packed; pack again")]
    Changed,
    #[error("failed to write the archive")]
    Write(#[source] io::Error),
}

/// An image's full name, with its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    full: String,
    tag_start: usize,
}

impl Name {
    fn tag(&self) -> &str {
        &self.full[self.tag_start..]
    }
}

impl FromStr for Name {
    type Err = ArchiveError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |text: &str, more: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|char| char.is_ascii_alphanumeric() || more.contains(char))
        };
        text.rsplit_once(':')
            .filter(|(path, tag)| {
                word(tag, "._-") && path.contains('/') && path.split('/').all(|part| word(part, "._-:"))
            })
            .map(|(path, _)| Self {
                full: text.to_owned(),
                tag_start: path.len() + 1,
            })
            .ok_or_else(|| ArchiveError::Name(text.to_owned()))
    }
}

/// How a container of the image starts (OCI image specification, "Image Configuration").
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageConfig {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    /// `UID` or `UID:GID`.
    pub(crate) user: Option<String>,
    /// `NAME=VALUE`.
    pub(crate) env: Vec<String>,
    pub(crate) labels: Vec<(String, String)>,
}

impl ImageConfig {
    fn json(&self, layer: &Layer) -> Value {
        let Self {
            entrypoint,
            cmd,
            user,
            env,
            labels,
        } = self;
        let mut config = Map::new();
        let mut set = |name: &str, empty: bool, value: Value| {
            if !empty {
                config.insert(name.to_owned(), value);
            }
        };
        set("Entrypoint", entrypoint.is_empty(), json!(entrypoint));
        set("Cmd", cmd.is_empty(), json!(cmd));
        set("User", user.is_none(), json!(user));
        set("Env", env.is_empty(), json!(env));
        set(
            "Labels",
            labels.is_empty(),
            json!(labels.iter().cloned().collect::<BTreeMap<_, _>>()),
        );
        json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [layer.tar.name()] },
        })
    }
}

/// Writes the archive to `output`, which appears only when it is complete.
///
/// The layer is made twice: the first time for its digest, which its place in the archive is named after. So nothing of it
/// is held in memory or in a second file.
pub(crate) fn write(
    output: &Path,
    name: &Name,
    config: &ImageConfig,
    entries: &Entries,
    compression: Compression,
) -> Result<(), ArchiveError> {
    let layer = layer::write(entries, compression, io::sink()).map_err(ArchiveError::Layer)?;
    let config = config.json(&layer).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &Digest::of(config.as_bytes())),
        "layers": [descriptor(compression.media_type(), &layer.blob)],
    })
    .to_string();
    let mut of_manifest = descriptor(MANIFEST, &Digest::of(manifest.as_bytes()));
    // The first annotation is what containerd names the image after, the second what skopeo and others select by.
    of_manifest["annotations"] =
        json!({ "io.containerd.image.name": name.full, "org.opencontainers.image.ref.name": name.tag() });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [of_manifest] }).to_string();

    let directory = output
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let temporary = NamedTempFile::new_in(directory).map_err(ArchiveError::Write)?;
    let file = temporary.as_file().try_clone().map_err(ArchiveError::Write)?;
    let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, SparseFile::new(file)));
    (|| {
        append(
            &mut tar,
            "oci-layout",
            json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes(),
        )?;
        append(&mut tar, "index.json", index.as_bytes())?;
        for blob in [&manifest, &config] {
            append(&mut tar, &blob_path(&Digest::of(blob.as_bytes())), blob.as_bytes())?;
        }
        io::Result::Ok(())
    })()
    .map_err(ArchiveError::Write)?;
    append_layer(&mut tar, entries, compression, &layer)?;
    finish(tar, temporary, output).map_err(ArchiveError::Write)
}

fn descriptor(media_type: &str, digest: &Digest) -> Value {
    json!({ "mediaType": media_type, "digest": digest.name(), "size": digest.size })
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex)
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(content.len() as u64), path, content)
}

fn append_layer<W: Write>(
    tar: &mut tar::Builder<W>,
    entries: &Entries,
    compression: Compression,
    expected: &Layer,
) -> Result<(), ArchiveError> {
    let mut header = header(expected.blob.size);
    header
        .set_path(blob_path(&expected.blob))
        .map_err(ArchiveError::Write)?;
    header.set_cksum();
    let output = tar.get_mut();
    output.write_all(header.as_bytes()).map_err(ArchiveError::Write)?;
    let written = layer::write(entries, compression, &mut *output).map_err(ArchiveError::Layer)?;
    if written != *expected {
        return Err(ArchiveError::Changed);
    }
    // An entry of a tar ends at a whole record of 512 bytes (POSIX ustar).
    let padding = expected.blob.size.next_multiple_of(512) - expected.blob.size;
    io::copy(&mut io::Read::take(io::repeat(0), padding), output).map_err(ArchiveError::Write)?;
    Ok(())
}

fn finish(tar: tar::Builder<BufWriter<SparseFile>>, temporary: NamedTempFile, output: &Path) -> io::Result<()> {
    let file: File = tar
        .into_inner()?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .finish()?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()?;
    temporary.persist(output)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_registry_and_a_tag() {
        let tag = |text: &str| text.parse::<Name>().ok().map(|name| name.tag().to_owned());
        assert_eq!(tag("registry.tandem.local/node-agent:0.1.0").as_deref(), Some("0.1.0"));
        assert_eq!(tag("127.0.0.1:5000/a/b:1").as_deref(), Some("1"));
        for wrong in [
            "node-agent:1",
            "registry/node-agent",
            "registry/node-agent:",
            "registry//a:1",
            "r/a:1/b",
            "r/a b:1",
        ] {
            assert_eq!(tag(wrong), None, "{wrong}");
        }
    }
}
