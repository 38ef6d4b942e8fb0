//! `blscfg`: menu entries from files of the Boot Loader Specification, as Fedora's and RHEL's GRUB makes them.

use std::cmp::Ordering;

use super::interpreter::Interpreter;
use super::menu::MenuEntry;
use super::{ScriptError, device, syntax};
use crate::bls::{self, Entry};
use crate::files::{FileRef, Found, join, parent};
use crate::version::compare_rpm;

/// Where the files are, on `$root`.
const DIRECTORY: &str = "/loader/entries";

impl Interpreter<'_> {
    /// Adds an entry for each file, newest first.
    pub(super) fn blscfg(&mut self, directory: &str) -> Result<(), ScriptError> {
        let Some(directory) = self.entries_directory(directory) else {
            self.fail("no directory with entries for `blscfg`");
            return Ok(());
        };
        let mut entries: Vec<(String, Entry)> = self
            .files
            .list(directory.volume, &directory.path)
            .into_iter()
            .filter(|name| name.rsplit_once('.').is_some_and(|(_, extension)| extension == "conf"))
            .take(self.limits.entries)
            .filter_map(|name| {
                let path = join(&directory.path, &name);
                let text = self.files.text(directory.volume, &path, self.limits)?;
                let entry = bls::parse(&name, &text, self.limits)?;
                (!entry.foreign).then_some((path, entry))
            })
            .collect();
        entries.sort_by(|(_, one), (_, other)| order(&other.name, &one.name));
        let device = self
            .files
            .volume(directory.volume)
            .map(device::name)
            .unwrap_or_default();
        for (path, entry) in entries {
            let Some(script) = self.script(&entry, &device) else {
                continue;
            };
            let body = match syntax::parse(&script, self.limits) {
                Ok(body) => body,
                // One entry that is wrong does not spoil the others.
                Err(error) => {
                    self.fail(format!("{path}: {error}"));
                    continue;
                }
            };
            let title = entry.title.as_deref().unwrap_or(&entry.name);
            let title = self.variables.expand(title);
            self.add_entry(MenuEntry {
                arguments: vec![title.clone()],
                title,
                id: entry.name,
                submenu: false,
                body,
                configuration: FileRef {
                    volume: directory.volume,
                    path,
                },
            })?;
        }
        Ok(())
    }

    /// The directory that the argument, `$blsdir` or custom says.
    fn entries_directory(&self, argument: &str) -> Option<FileRef> {
        let (_, prefix) = device::split(self.variables.get("prefix"));
        // GRUB's own directory is in `/boot`, wherever that is.
        let beside_prefix = join(parent(prefix), DIRECTORY.trim_start_matches('/'));
        [
            argument,
            self.variables.get("blsdir"),
            DIRECTORY,
            &beside_prefix,
            "/boot/loader/entries",
        ]
        .into_iter()
        .filter(|name| !name.is_empty())
        .filter_map(|name| self.file(name))
        .find(|file| self.files.find(file.volume, &file.path) == Some(Found::Directory))
    }

    /// What choosing the entry runs. Its files are on the volume it is from.
    fn script(&self, entry: &Entry, device: &str) -> Option<String> {
        let on_device = |path: &str| {
            if path.starts_with('(') {
                path.to_owned()
            } else {
                format!("({device}){path}")
            }
        };
        let Some(linux) = entry.linux.as_deref() else {
            let program = self.variables.expand(entry.efi.as_deref()?);
            return Some(format!("chainloader {}\n", on_device(&program)));
        };
        let options = if entry.options.is_empty() {
            self.variables.get("default_kernelopts")
        } else {
            &entry.options
        };
        let linux = on_device(&self.variables.expand(linux));
        let mut script = format!("linux {linux} {}\n", self.variables.expand(options));
        let initrds = self.variables.expand(&entry.initrds.join(" "));
        if !initrds.trim().is_empty() {
            script.push_str("initrd");
            for path in initrds.split_whitespace() {
                script.push(' ');
                script.push_str(&on_device(path));
            }
            script.push('\n');
        }
        Some(script)
    }
}

/// Compares names as those of RPM packages: name, version, release.
fn order(one: &str, other: &str) -> Ordering {
    let parts = |name: &str| {
        let (rest, release) = name.rsplit_once('-').unwrap_or(("", name));
        let (name, version) = rest.rsplit_once('-').unwrap_or(("", rest));
        [name.to_owned(), version.to_owned(), release.to_owned()]
    };
    parts(one)
        .iter()
        .zip(&parts(other))
        .map(|(one, other)| compare_rpm(one, other))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_first_and_the_rescue_kernel_last() {
        let mut names = [
            "0ab1-0-rescue",
            "0ab1-6.9.4-200.fc44.x86_64",
            "0ab1-6.10.1-200.fc44.x86_64",
            "0ab1-6.10.1-1000.fc44.x86_64",
            "0ab1-6.10.1-200.fc43.x86_64",
        ];
        names.sort_by(|one, other| order(other, one));
        assert_eq!(
            names,
            [
                "0ab1-6.10.1-1000.fc44.x86_64",
                "0ab1-6.10.1-200.fc44.x86_64",
                "0ab1-6.10.1-200.fc43.x86_64",
                "0ab1-6.9.4-200.fc44.x86_64",
                "0ab1-0-rescue",
            ]
        );
    }
}
