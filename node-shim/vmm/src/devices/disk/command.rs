//! `node-shim disk`: what becomes of what a guest wrote, while its VM does not run. A running VM has its overlays locked.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use node_shim_protocol::config::DiskSource;
use node_shim_virtio::block::{OverlayStorage, throw_away};

use super::{DiskError, open_overlay, overlay_path};
use crate::config::{self, CheckedConfig, ConfigError, Disk};

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Writes the whole disk, as the guest sees it, to a new raw file.
    Flatten {
        #[command(flatten)]
        choice: Choice,
        /// The file to make.
        #[arg(long)]
        to: PathBuf,
    },
    /// Writes what the guest wrote into a raw file of the disk's size, such as a copy of its image: that is the disk as it is now, then.
    Commit {
        #[command(flatten)]
        choice: Choice,
        /// The file to write to.
        #[arg(long)]
        into: PathBuf,
    },
    /// Throws away what the guest wrote: the VM starts from the disk's image again.
    Discard {
        #[command(flatten)]
        choice: Choice,
    },
}

/// A disk of a VM.
#[derive(Args)]
pub(crate) struct Choice {
    /// The VM's configuration: a VmConfig in JSON.
    #[arg(long)]
    config: PathBuf,
    /// Name of one of its disks.
    #[arg(long)]
    disk: String,
}

/// Why nothing was done, or not all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(ConfigError),
    /// The VM has no such disk.
    #[error("the VM has no disk `{disk}`; write the name of one of these: {names}")]
    Unknown {
        /// What was asked for.
        disk: String,
        /// Those that there are.
        names: String,
    },
    /// The disk is not above an image.
    #[error("disk `{disk}` has no overlay: only a writable disk with an image has one")]
    NoOverlay {
        /// The disk.
        disk: String,
    },
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(DiskError),
    /// The file cannot be written.
    #[error("failed to write disk `{disk}` to {path}: {source}")]
    Target {
        /// The disk.
        disk: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Does it.
pub(crate) fn run(verb: Verb) -> Result<(), CommandError> {
    match verb {
        Verb::Flatten { choice, to } => {
            let target = || OpenOptions::new().write(true).create_new(true).open(&to);
            write(&choice, &to, target, OverlayStorage::flatten_into)
        }
        Verb::Commit { choice, into } => {
            let target = || OpenOptions::new().write(true).open(&into);
            write(&choice, &into, target, OverlayStorage::commit_into)
        }
        Verb::Discard { choice } => choice.with(|config, disk| {
            if !has_overlay(disk) {
                return Err(no_overlay(disk));
            }
            throw_away(&overlay_path(&config.scratch, disk)).map_err(|source| {
                CommandError::Disk(DiskError::Storage {
                    disk: disk.name.clone(),
                    source,
                })
            })
        }),
    }
}

impl Choice {
    fn with<T>(&self, act: impl FnOnce(&CheckedConfig, &Disk) -> Result<T, CommandError>) -> Result<T, CommandError> {
        let config = config::load(&self.config).map_err(CommandError::Config)?;
        let Some(disk) = config.disks.iter().find(|disk| disk.name == self.disk) else {
            let names: Vec<_> = config.disks.iter().map(|disk| disk.name.as_str()).collect();
            return Err(CommandError::Unknown {
                disk: self.disk.clone(),
                names: names.join(", "),
            });
        };
        act(&config, disk)
    }
}

fn write(
    choice: &Choice,
    path: &std::path::Path,
    target: impl FnOnce() -> io::Result<File>,
    copy: impl FnOnce(&OverlayStorage, &File) -> io::Result<()>,
) -> Result<(), CommandError> {
    choice.with(|config, disk| {
        let overlay = open_overlay(&config.scratch, disk).map_err(CommandError::Disk)?;
        let overlay = overlay.ok_or_else(|| no_overlay(disk))?;
        let written = target().and_then(|target| copy(&overlay, &target));
        written.map_err(|source| CommandError::Target {
            disk: disk.name.clone(),
            path: path.to_owned(),
            source,
        })
    })
}

fn has_overlay(disk: &Disk) -> bool {
    matches!(disk.source, DiskSource::Image { .. }) && !disk.read_only
}

fn no_overlay(disk: &Disk) -> CommandError {
    CommandError::NoOverlay {
        disk: disk.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use node_shim_virtio::block::Storage;
    use node_shim_virtio::buffers::Buffers;

    use super::*;

    const SECTORS: usize = 256;

    /// A VM whose guest has written a sector of ones to its disk of twos.
    fn vm(place: &Path) -> PathBuf {
        fs::write(place.join("image"), vec![2; SECTORS * 512]).unwrap();
        let config = place.join("vm.json");
        let json = serde_json::json!({
            "version": node_shim_protocol::config::VERSION,
            "name": "test/vm",
            "uuid": "123e4567-e89b-12d3-a456-426614174000",
            "cpu": {"cores": 1},
            "memory": {"sizeBytes": 64 << 20},
            "boot": {"disk": {"name": "root"}},
            "disks": [
                {"name": "root", "source": {"image": {"path": place.join("image"), "format": "raw"}}},
                {"name": "data", "source": {"empty": {"sizeBytes": 4096}}},
            ],
            "interfaces": [],
            "shutdown": {"gracePeriodSeconds": 1},
            "scratch": place,
        });
        fs::write(&config, json.to_string()).unwrap();
        let checked = config::load(&config).unwrap();
        let overlay = open_overlay(place, &checked.disks[0]).unwrap().unwrap();
        overlay.write_at(&mut Buffers::over(&mut [1; 512]), 512).unwrap();
        overlay.flush().unwrap();
        config
    }

    fn choice(config: &Path, disk: &str) -> Choice {
        Choice {
            config: config.to_owned(),
            disk: disk.to_owned(),
        }
    }

    fn expected() -> Vec<u8> {
        let mut disk = vec![2; SECTORS * 512];
        disk[512..1024].fill(1);
        disk
    }

    #[test]
    fn a_flattened_disk_is_what_the_guest_sees() {
        let place = tempfile::tempdir().unwrap();
        let config = vm(place.path());
        let to = place.path().join("flat");
        let flatten = || {
            run(Verb::Flatten {
                choice: choice(&config, "root"),
                to: to.clone(),
            })
        };
        flatten().unwrap();
        assert!(fs::read(&to).unwrap() == expected());
        let again = flatten().unwrap_err().to_string();
        assert!(again.contains("File exists"), "{again}");
    }

    #[test]
    fn a_commit_brings_a_copy_of_the_image_up_to_date() {
        let place = tempfile::tempdir().unwrap();
        let config = vm(place.path());
        let into = place.path().join("copy");
        fs::copy(place.path().join("image"), &into).unwrap();
        let commit = || {
            run(Verb::Commit {
                choice: choice(&config, "root"),
                into: into.clone(),
            })
        };
        commit().unwrap();
        assert!(fs::read(&into).unwrap() == expected());
        fs::write(&into, b"short").unwrap();
        let refused = commit().unwrap_err().to_string();
        assert!(refused.contains("another size"), "{refused}");
    }

    #[test]
    fn a_discarded_overlay_leaves_the_image() {
        let place = tempfile::tempdir().unwrap();
        let config = vm(place.path());
        run(Verb::Discard {
            choice: choice(&config, "root"),
        })
        .unwrap();
        let to = place.path().join("flat");
        run(Verb::Flatten {
            choice: choice(&config, "root"),
            to: to.clone(),
        })
        .unwrap();
        assert!(fs::read(&to).unwrap() == fs::read(place.path().join("image")).unwrap());
    }

    #[test]
    fn a_disk_without_an_overlay_and_one_that_is_not_there_are_named() {
        let place = tempfile::tempdir().unwrap();
        let config = vm(place.path());
        for (disk, message) in [
            ("data", "disk `data` has no overlay"),
            ("x", "one of these: root, data"),
        ] {
            let error = run(Verb::Discard {
                choice: choice(&config, disk),
            });
            let error = error.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
