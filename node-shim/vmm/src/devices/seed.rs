//! The cloud-init seed: its texts read, and made into a disk.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use node_shim_protocol::config::{CLOUD_INIT_MAX_BYTES, CloudInit, Text};
use node_shim_virtio::block::Block;
use node_shim_virtio::seed::{Seed, SeedError};

/// Why cloud-init data cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloudInitError {
    /// A file is missing or unreadable.
    #[error("failed to read cloudInit.{field} from {path}: {source}; see that the Secret has this key")]
    Read {
        /// `userData` or `networkData`.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A text is longer than a Secret could hold.
    #[error("cloudInit.{field} is longer than {CLOUD_INIT_MAX_BYTES} bytes; make it shorter")]
    TooLong {
        /// `userData` or `networkData`.
        field: &'static str,
    },
    /// The disk cannot be made.
    #[error(transparent)]
    Disk(SeedError),
}

/// Makes the seed.
pub(crate) fn disk(cloud_init: &CloudInit) -> Result<Block, CloudInitError> {
    let read_optional = |field, text: &Option<Text>| text.as_ref().map(|text| read(field, text)).transpose();
    let user_data = read_optional("userData", &cloud_init.user_data)?;
    let network_config = read_optional("networkData", &cloud_init.network_data)?;
    let seed = Seed {
        instance_id: &cloud_init.instance_id,
        host_name: &cloud_init.hostname,
        user_data: user_data.as_deref(),
        network_config: network_config.as_deref(),
    };
    let storage = seed.disk().map_err(CloudInitError::Disk)?;
    Ok(Block::in_memory("seed", "cidata", storage))
}

fn read(field: &'static str, text: &Text) -> Result<Vec<u8>, CloudInitError> {
    let bytes = match text {
        Text::Inline(text) => text.clone().into_bytes(),
        Text::File(path) => {
            let mut bytes = Vec::new();
            File::open(path)
                .and_then(|file| file.take(CLOUD_INIT_MAX_BYTES + 1).read_to_end(&mut bytes))
                .map_err(|source| CloudInitError::Read {
                    field,
                    path: path.clone(),
                    source,
                })?;
            bytes
        }
    };
    if bytes.len() as u64 > CLOUD_INIT_MAX_BYTES {
        return Err(CloudInitError::TooLong { field });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud_init(user_data: Text) -> CloudInit {
        CloudInit {
            instance_id: "i-1".to_owned(),
            hostname: "web".to_owned(),
            user_data: Some(user_data),
            network_data: None,
        }
    }

    #[test]
    fn user_data_are_bounded_wherever_they_are() {
        let most = usize::try_from(CLOUD_INIT_MAX_BYTES).unwrap();
        for (length, fits) in [(0, true), (most, true), (most + 1, false)] {
            let text = "x".repeat(length);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &text).unwrap();
            for source in [Text::Inline(text), Text::File(file.path().to_owned())] {
                let result = disk(&cloud_init(source));
                assert_eq!(result.is_ok(), fits, "{length}");
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = disk(&cloud_init(Text::File("/nowhere/userdata".into())))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("userData") && error.contains("/nowhere/userdata"),
            "{error}"
        );
    }
}
