//! A disk: its source and its options.

use crds::{
    Quantity,
    disk::{ClaimDisk, Disk, EMPTY_DISK_STEP_BYTES, MAX_EMPTY_DISK_BYTES, VolumeMode},
};

use super::{DiskSource, Invalid, ValidDisk, inside_image, limits, size};

/// Characters of a FAT file system's label.
const LABEL_CHARACTERS: usize = 11;
/// The label of the disk that cloud-init and Ignition read.
const SEED_LABEL: &str = "cidata";

/// Checks a disk.
pub(super) fn disk(disk: &Disk) -> Result<ValidDisk, Invalid> {
    let source = source(disk)?;
    check_options(disk, &source)?;
    Ok(ValidDisk {
        name: disk.name.clone(),
        read_only: is_of_files(&source) || disk.read_only.unwrap_or(false),
        serial: disk.serial.clone(),
        limits: limits(&format!("disk {:?}", disk.name), disk.limits.as_ref())?,
        cache: disk.cache.unwrap_or_default(),
        io: disk.io,
        discard: disk.discard.unwrap_or_default(),
        source,
    })
}

fn source(disk: &Disk) -> Result<DiskSource, Invalid> {
    let sources = (
        &disk.image,
        &disk.persistent_volume_claim,
        &disk.empty_disk,
        &disk.config_map,
        &disk.secret,
    );
    match sources {
        (Some(image), None, None, None, None) => Ok(DiskSource::Image {
            image: image.image.clone(),
            path: inside_image(&format!("path of disk {:?}", disk.name), image.path())?,
            format: image.format,
            pull_policy: image.pull_policy.unwrap_or_default(),
        }),
        (None, Some(claim), None, None, None) => in_claim(disk, claim),
        (None, None, Some(empty), None, None) => Ok(DiskSource::Empty {
            size_bytes: size_bytes(disk, &empty.size)?,
        }),
        (None, None, None, Some(config_map), None) => Ok(DiskSource::ConfigMap {
            name: config_map.name.clone(),
        }),
        (None, None, None, None, Some(secret)) => Ok(DiskSource::Secret {
            name: secret.secret_name.clone(),
        }),
        _ => Err(Invalid::DiskSource(disk.name.clone())),
    }
}

fn in_claim(disk: &Disk, claim: &ClaimDisk) -> Result<DiskSource, Invalid> {
    if claim.size.is_some() && disk.read_only == Some(true) {
        return Err(Invalid::ReadOnlySize(disk.name.clone()));
    }
    match claim.volume_mode.unwrap_or_default() {
        VolumeMode::Block if claim.path.is_some() || claim.size.is_some() => {
            Err(Invalid::BlockClaim(disk.name.clone()))
        }
        VolumeMode::Block => Ok(DiskSource::ClaimDevice {
            claim: claim.claim_name.clone(),
        }),
        VolumeMode::Filesystem => Ok(DiskSource::ClaimFile {
            claim: claim.claim_name.clone(),
            path: inside_image(&format!("path of disk {:?}", disk.name), claim.path())?,
            size_bytes: claim.size.as_ref().map(|size| size_bytes(disk, size)).transpose()?,
        }),
    }
}

fn size_bytes(disk: &Disk, size: &Quantity) -> Result<u64, Invalid> {
    size::bytes(
        &format!("size of disk {:?}", disk.name),
        size,
        1 << 20..=MAX_EMPTY_DISK_BYTES,
        EMPTY_DISK_STEP_BYTES,
        "a whole number of MiB from 1Mi to 16Ti, for example 10Gi",
    )
}

/// What is in memory has no options, and what is shared no cache of its own.
fn check_options(disk: &Disk, source: &DiskSource) -> Result<(), Invalid> {
    let refused: &[(&'static str, bool)] = match source {
        DiskSource::ClaimFile { .. } | DiskSource::ClaimDevice { .. } | DiskSource::Empty { .. } => &[],
        DiskSource::Image { .. } => &[("cache", disk.cache.is_some()), ("discard", disk.discard.is_some())],
        DiskSource::ConfigMap { .. } | DiskSource::Secret { .. } => &[
            ("cache", disk.cache.is_some()),
            ("discard", disk.discard.is_some()),
            ("io", disk.io.is_some()),
            ("limits", disk.limits.is_some()),
            ("readOnly: false", disk.read_only == Some(false)),
        ],
    };
    match refused.iter().find(|(_, there)| *there) {
        Some((field, _)) => Err(Invalid::DiskOption {
            field,
            disk: disk.name.clone(),
        }),
        None => Ok(()),
    }
}

/// Labels of the file systems that are made of `ConfigMap`s and Secrets: the guest finds them by these, so they must differ.
pub(super) fn check_labels(disks: &[ValidDisk], has_seed: bool) -> Result<(), Invalid> {
    let mut seen: Vec<(String, &str)> = Vec::new();
    for disk in disks.iter().filter(|disk| is_of_files(&disk.source)) {
        let label = disk.label();
        if has_seed && label == SEED_LABEL {
            return Err(Invalid::SeedLabel(disk.name.clone()));
        }
        if let Some((_, other)) = seen.iter().find(|(other, _)| *other == label) {
            return Err(Invalid::SameLabel {
                one: (*other).to_owned(),
                other: disk.name.clone(),
                label,
            });
        }
        seen.push((label, &disk.name));
    }
    Ok(())
}

impl ValidDisk {
    /// The label of the file system that is made for it, where one is.
    pub(crate) fn label(&self) -> String {
        self.name.chars().take(LABEL_CHARACTERS).collect()
    }
}

/// Whether a file system is made for it.
const fn is_of_files(source: &DiskSource) -> bool {
    matches!(source, DiskSource::ConfigMap { .. } | DiskSource::Secret { .. })
}

/// Two disks may be two files of a claim, and nothing else of the same one.
pub(super) fn check_claims(disks: &[ValidDisk]) -> Result<(), Invalid> {
    for (index, disk) in disks.iter().enumerate() {
        let Some(claim) = disk.source.claim() else { continue };
        let same = |other: &&ValidDisk| {
            let two_files = match (&disk.source, &other.source) {
                (DiskSource::ClaimFile { path, .. }, DiskSource::ClaimFile { path: other, .. }) => path != other,
                (_, _) => false,
            };
            other.source.claim() == Some(claim) && !two_files
        };
        if let Some(other) = disks[..index].iter().find(same) {
            return Err(Invalid::SameClaim {
                one: other.name.clone(),
                other: disk.name.clone(),
                claim: claim.to_owned(),
            });
        }
    }
    Ok(())
}
