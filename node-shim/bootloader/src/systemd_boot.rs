//! What systemd-boot would start: `loader/loader.conf`, entries of the Boot Loader Specification and unified kernels, on the EFI
//! system partition and on the extended boot loader partition.
//!
//! EFI variables (the saved entry, the one-time entry) are not on the disk and so are not known.

use std::cmp::Ordering;

use crate::bls::{self, Entry};
use crate::files::{FileRef, Files, VolumeId, join};
use crate::limits::Limits;
use crate::selection::Selection;
use crate::unified::{self, os_release_value};
use crate::version::compare_uapi;

/// Where unified kernels are.
const UNIFIED_DIRECTORY: &str = "/EFI/Linux";

/// An entry of the menu: what it is sorted by, and what it starts.
#[derive(Clone, Debug)]
struct Candidate {
    file: FileRef,
    entry: Entry,
}

/// The entries of these volumes in the order in which they would be tried: the default one, then the rest as the menu has them.
/// Each comes with its configuration file.
///
/// # Errors
/// Where there are no entries.
pub fn select(
    files: &dyn Files,
    volumes: &[VolumeId],
    directory: &str,
    limits: &Limits,
) -> Result<Vec<(FileRef, Selection)>, String> {
    let mut candidates = Vec::new();
    for volume in volumes {
        type_one(files, *volume, &join(directory, "entries"), limits, &mut candidates);
        type_two(files, *volume, limits, &mut candidates);
    }
    if candidates.is_empty() {
        return Err(format!(
            "no entries in {directory}/entries and no kernels in {UNIFIED_DIRECTORY}"
        ));
    }
    candidates.sort_by(|one, other| order(&one.entry, &other.entry));
    let configuration = volumes
        .iter()
        .find_map(|volume| files.text(*volume, &join(directory, "loader.conf"), limits));
    if let Some(pattern) = configuration.as_deref().and_then(default_pattern)
        && let Some(index) = candidates
            .iter()
            .position(|candidate| is_named(&candidate.entry, &pattern))
    {
        candidates[..=index].rotate_right(1);
    }
    Ok(candidates.into_iter().filter_map(selection).collect())
}

fn type_one(files: &dyn Files, volume: VolumeId, directory: &str, limits: &Limits, found: &mut Vec<Candidate>) {
    for name in files.list(volume, directory) {
        if found.len() == limits.entries {
            return;
        }
        if !name.to_ascii_lowercase().ends_with(".conf") {
            continue;
        }
        let path = join(directory, &name);
        let entry = files
            .text(volume, &path, limits)
            .and_then(|text| bls::parse(&name, &text, limits));
        if let Some(entry) = entry
            && !entry.foreign
            && (entry.linux.is_some() || entry.efi.is_some())
        {
            found.push(Candidate {
                file: FileRef { volume, path },
                entry,
            });
        }
    }
}

fn type_two(files: &dyn Files, volume: VolumeId, limits: &Limits, found: &mut Vec<Candidate>) {
    for name in files.list(volume, UNIFIED_DIRECTORY) {
        if found.len() == limits.entries {
            return;
        }
        let Some(stem) = name
            .to_ascii_lowercase()
            .strip_suffix(".efi")
            .map(|stem| name[..stem.len()].to_owned())
        else {
            continue;
        };
        let path = join(UNIFIED_DIRECTORY, &name);
        let Some(os_release) = os_release(files, volume, &path, limits) else {
            continue;
        };
        let (id, tries_left) = bls::boot_counter(&stem);
        let value = |keys: &[&str]| keys.iter().find_map(|key| os_release_value(&os_release, key));
        let entry = Entry {
            id: id.to_owned(),
            name: stem.clone(),
            title: value(&["PRETTY_NAME", "NAME"]),
            version: value(&["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"]),
            sort_key: value(&["IMAGE_ID", "ID"]),
            efi: Some(path.clone()),
            tries_left,
            ..Entry::default()
        };
        found.push(Candidate {
            file: FileRef { volume, path },
            entry,
        });
    }
}

/// `os-release` of a unified kernel, whose file is only read in part; `None` where it is none.
fn os_release(files: &dyn Files, volume: VolumeId, path: &str, limits: &Limits) -> Option<String> {
    struct At<'files>(&'files dyn Files, VolumeId, &'files str);
    impl unified::ReadAt for At<'_> {
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0
                .read_part(self.1, self.2, offset, buffer)
                .ok_or_else(|| std::io::ErrorKind::NotFound.into())
        }
    }
    let file = At(files, volume, path);
    let unified::Program::UnifiedKernel(kernel) = unified::identify(&file).ok()? else {
        return None;
    };
    let range = kernel.os_release;
    let length = (range.end - range.start).min(limits.configuration_bytes.min(1 << 16));
    let mut text = vec![0; usize::try_from(length).ok()?];
    let bytes = files.read_part(volume, path, range.start, &mut text)?;
    text.truncate(bytes);
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// What `default` in `loader.conf` says, unless it is only in an EFI variable.
fn default_pattern(configuration: &str) -> Option<String> {
    let value = configuration
        .lines()
        .filter_map(|line| line.trim().split_once([' ', '\t']))
        .rfind(|(key, _)| *key == "default")
        .map(|(_, value)| value.trim())?;
    (!value.is_empty() && !value.starts_with('@')).then(|| value.to_owned())
}

fn is_named(entry: &Entry, pattern: &str) -> bool {
    let pattern = pattern.to_lowercase();
    [&entry.id, &entry.name].into_iter().any(|name| {
        let name = name.to_lowercase();
        matches(&pattern, &name)
            || ["conf", "efi"]
                .iter()
                .any(|suffix| matches(&pattern, &format!("{name}.{suffix}")))
    })
}

/// Shell patterns with `*` and `?`, in time that is a product of both lengths.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    // Which beginnings of the pattern match what was seen of the text.
    let mut reached: Vec<bool> = Vec::with_capacity(pattern.len() + 1);
    reached.push(true);
    for (index, character) in pattern.iter().enumerate() {
        reached.push(*character == '*' && reached[index]);
    }
    for character in text.chars() {
        let mut next = vec![false; pattern.len() + 1];
        for (index, wanted) in pattern.iter().enumerate() {
            next[index + 1] = match wanted {
                '*' => reached[index + 1] || next[index],
                '?' => reached[index],
                other => reached[index] && *other == character,
            };
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

/// The menu's order: what has failed too often comes last; entries with a sort key come first, by it and the machine, and then the newest first.
fn order(one: &Entry, other: &Entry) -> Ordering {
    let failed = |entry: &Entry| entry.tries_left == Some(0);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    failed(one)
        .cmp(&failed(other))
        .then_with(|| other.sort_key.is_some().cmp(&one.sort_key.is_some()))
        .then_with(|| {
            if one.sort_key.is_none() {
                return Ordering::Equal;
            }
            text(&one.sort_key)
                .cmp(&text(&other.sort_key))
                .then_with(|| text(&one.machine_id).cmp(&text(&other.machine_id)))
                .then_with(|| compare_uapi(&text(&other.version), &text(&one.version)))
        })
        .then_with(|| compare_uapi(&other.id, &one.id))
}

fn selection(candidate: Candidate) -> Option<(FileRef, Selection)> {
    let Candidate { file, entry } = candidate;
    let on_volume = |path: &str| FileRef {
        volume: file.volume,
        path: join("/", path),
    };
    let selection = match (&entry.linux, &entry.efi) {
        (Some(linux), _) => Selection {
            title: entry.title,
            kernel: on_volume(linux),
            initrds: entry.initrds.iter().map(|path| on_volume(path)).collect(),
            command_line: Some(entry.options),
        },
        (None, Some(efi)) => Selection {
            title: entry.title,
            kernel: on_volume(efi),
            initrds: Vec::new(),
            command_line: Some(entry.options).filter(|options| !options.is_empty()),
        },
        (None, None) => return None,
    };
    Some((file, selection))
}

#[cfg(test)]
mod tests;
