//! The commands that decide what is started.

use super::interpreter::{Flow, Interpreter};
use super::menu::MenuEntry;
use super::syntax::Body;
use super::{ScriptError, condition, device, environment};
use crate::files::{FileRef, VolumeId};

/// Commands that succeed and change nothing that matters here.
const NO_EFFECT: [&str; 36] = [
    "acpi",
    "background_color",
    "background_image",
    "badram",
    "clear",
    "cpuid",
    "cutmem",
    "date",
    "echo",
    "efi-watchdog",
    "export",
    "fwsetup",
    "gptsync",
    "insmod",
    "keymap",
    "loadfont",
    "ls",
    "lsefi",
    "lsmod",
    "lspci",
    "nativedisk",
    "parttool",
    "password",
    "password_pbkdf2",
    "play",
    "rmmod",
    "save_env",
    "serial",
    "sleep",
    "terminal_input",
    "terminal_output",
    "terminfo",
    "true",
    "trust",
    "videoinfo",
    "zfs-bootfs",
];

impl Interpreter<'_> {
    /// Runs a command that is not one of the script's functions.
    pub(super) fn builtin(
        &mut self,
        name: &str,
        arguments: &[String],
        block: Option<&Body>,
    ) -> Result<Flow, ScriptError> {
        self.succeeded = true;
        let first = arguments.first().map_or("", String::as_str);
        match name {
            "[" => {
                let test = arguments.strip_suffix(&["]".to_owned()]).unwrap_or(arguments);
                self.test(test);
            }
            "test" => self.test(arguments),
            "set" => {
                if let Some((name, value)) = first.split_once('=') {
                    self.set(name, value)?;
                }
            }
            "unset" => arguments.iter().for_each(|name| self.variables.unset(name)),
            "setparams" => self.arguments = arguments.to_vec(),
            "shift" => {
                let count = first.parse().unwrap_or(1_usize).min(self.arguments.len());
                self.arguments.drain(..count);
            }
            "false" => self.succeeded = false,
            "break" => return Ok(Flow::Break(first.parse().unwrap_or(1))),
            "continue" => return Ok(Flow::Continue(first.parse().unwrap_or(1))),
            "return" => {
                self.succeeded = matches!(first, "" | "0");
                return Ok(Flow::Return);
            }
            "menuentry" | "hiddenentry" | "submenu" => self.menu_entry(name == "submenu", arguments, block)?,
            "source" | "." => return self.source(first),
            "configfile" | "normal" => return Ok(self.configfile(first)),
            "search" => self.search(&SearchOptions::parse(arguments))?,
            "search.fs_uuid" | "search.fs_label" | "search.file" => {
                let key = match name {
                    "search.fs_uuid" => Key::Uuid,
                    "search.fs_label" => Key::Label,
                    _ => Key::File,
                };
                let options = SearchOptions {
                    key: Some(key),
                    what: Some(first),
                    variable: arguments.get(1).map_or("root", String::as_str),
                };
                self.search(&options)?;
            }
            "probe" => self.probe(arguments)?,
            "load_env" => self.load_env(arguments)?,
            "blscfg" => self.blscfg(first)?,
            "linux" | "linux16" | "linuxefi" => self.linux(arguments),
            "initrd" | "initrd16" | "initrdefi" => self.initrd(arguments),
            "chainloader" => self.chainloader(arguments),
            "boot" => {
                self.boot_loaded();
                return Ok(Flow::End);
            }
            "exit" | "halt" | "reboot" | "normal_exit" => {
                self.fail(format!("it ends with `{name}`"));
                return Ok(Flow::End);
            }
            other => match other.split_once('=') {
                // What an unquoted value was split into after its first word is dropped.
                Some((name, value)) if is_name(name) => self.set(name, value)?,
                _ if NO_EFFECT.contains(&other) => {}
                // What asks for a key, the machine or the firmware has no answer here; GRUB may lack the command as well.
                _ => self.fail(format!("no command `{other}`")),
            },
        }
        Ok(Flow::Next)
    }

    fn test(&mut self, words: &[String]) {
        let files = self.files;
        self.succeeded = condition::holds(words, &|name| {
            let file = self.file(name)?;
            files.find(file.volume, &file.path)
        });
    }

    fn menu_entry(&mut self, submenu: bool, arguments: &[String], block: Option<&Body>) -> Result<(), ScriptError> {
        let Some(body) = block else {
            self.fail("a menu entry without a block");
            return Ok(());
        };
        let mut title = None;
        let mut id = None;
        let mut words = arguments.iter();
        let mut rest = Vec::new();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next().cloned(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
                "--unrestricted" => {}
                option if option.starts_with("--id=") => id = option.strip_prefix("--id=").map(str::to_owned),
                option if option.starts_with("--") => {}
                _ if title.is_none() => {
                    title = Some(word.clone());
                    rest.push(word.clone());
                }
                _ => rest.push(word.clone()),
            }
        }
        let Some(title) = title else {
            self.fail("a menu entry without a title");
            return Ok(());
        };
        self.add_entry(MenuEntry {
            id: id.unwrap_or_else(|| title.clone()),
            title,
            submenu,
            body: body.clone(),
            arguments: rest,
            configuration: self.configuration.clone(),
        })
    }

    fn source(&mut self, name: &str) -> Result<Flow, ScriptError> {
        let flow = match self.file(name) {
            Some(file) => self.run_file(&file)?,
            None => None,
        };
        Ok(flow.unwrap_or_else(|| {
            self.fail(format!("{name} cannot be read"));
            Flow::Next
        }))
    }

    fn configfile(&mut self, name: &str) -> Flow {
        let default = format!("{}/grub.cfg", self.variables.get("prefix"));
        let name = if name.is_empty() { &default } else { name };
        let Some(file) = self.file(name) else {
            self.fail(format!("{name} is on no volume of this disk"));
            return Flow::Next;
        };
        match self.nested(|interpreter| interpreter.boot(&file)) {
            Ok(chosen) => {
                self.chosen = Some(chosen);
                Flow::End
            }
            Err(why) => {
                self.fail_to_load(why);
                Flow::Next
            }
        }
    }

    fn search(&mut self, options: &SearchOptions<'_>) -> Result<(), ScriptError> {
        let found = match (options.key, options.what) {
            (Some(key), Some(what)) => self.find_volume(key, what),
            _ => None,
        };
        if let Some(name) = found.and_then(|id| self.files.volume(id)).map(device::name) {
            return self.set(options.variable, &name);
        }
        self.fail(format!("no volume for `search {}`", options.what.unwrap_or("")));
        Ok(())
    }

    fn find_volume(&self, key: Key, what: &str) -> Option<VolumeId> {
        self.files.ids().into_iter().find(|id| {
            let Some(volume) = self.files.volume(*id) else {
                return false;
            };
            match key {
                Key::Uuid => volume.uuid.eq_ignore_ascii_case(what),
                Key::Label => volume.label.as_deref() == Some(what),
                Key::File => self.files.find(*id, what).is_some(),
            }
        })
    }

    /// `probe --set VARIABLE --fs-uuid (device)`.
    fn probe(&mut self, arguments: &[String]) -> Result<(), ScriptError> {
        let mut variable = None;
        let mut what = "";
        let mut device = "";
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--set" | "-s" => variable = words.next(),
                _ if word.starts_with("--set=") => variable = word.strip_prefix("--set="),
                _ if word.starts_with('-') => what = word,
                _ => device = word,
            }
        }
        let volume = device::find(self.files, device).and_then(|id| self.files.volume(id));
        let value = volume.and_then(|volume| match what {
            "--fs-uuid" | "-u" => Some(volume.uuid.clone()),
            "--label" | "-l" => volume.label.clone(),
            "--fs" | "-f" => Some(volume.file_system.to_owned()),
            "--part-uuid" => volume.partition_uuid.clone(),
            _ => None,
        });
        match (variable, value) {
            (Some(variable), Some(value)) => self.set(variable, &value),
            (None, Some(_)) => Ok(()),
            (_, None) => {
                self.fail(format!("no answer to `probe {what} {device}`"));
                Ok(())
            }
        }
    }

    /// `load_env [--file FILE] [--skip-sig] [VARIABLE]...`.
    fn load_env(&mut self, arguments: &[String]) -> Result<(), ScriptError> {
        let mut file = format!("{}/grubenv", self.variables.get("prefix"));
        let mut wanted = Vec::new();
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--file" | "-f" => words.next().unwrap_or_default().clone_into(&mut file),
                _ if word.starts_with("--file=") => word["--file=".len()..].clone_into(&mut file),
                _ if word.starts_with('-') => {}
                name => wanted.push(name),
            }
        }
        let block = self
            .file(&file)
            .and_then(|FileRef { volume, path }| self.files.text(volume, &path, self.limits))
            .and_then(|text| environment::parse_block(&text));
        let Some(block) = block else {
            self.fail(format!("{file} is not an environment block"));
            return Ok(());
        };
        for (name, value) in block {
            if wanted.is_empty() || wanted.contains(&name.as_str()) {
                self.set(&name, &value)?;
            }
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

#[derive(Clone, Copy, Debug)]
enum Key {
    Uuid,
    Label,
    File,
}

/// `search [--set[=VARIABLE]] (--fs-uuid | --label | --file) [HINTS] NAME`.
#[derive(Clone, Debug)]
struct SearchOptions<'words> {
    key: Option<Key>,
    what: Option<&'words str>,
    variable: &'words str,
}

impl<'words> SearchOptions<'words> {
    fn parse(arguments: &'words [String]) -> Self {
        let mut options = Self {
            key: None,
            what: None,
            variable: "root",
        };
        let mut names = Vec::new();
        let mut bare_set = false;
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--fs-uuid" | "-u" => options.key = Some(Key::Uuid),
                "--label" | "--fs-label" | "-l" => options.key = Some(Key::Label),
                "--file" | "-f" => options.key = Some(Key::File),
                "--set" | "-s" => bare_set = true,
                // A hint is only where to look first.
                "--hint" | "-h" => drop(words.next()),
                _ if word.starts_with("--set=") => options.variable = &word["--set=".len()..],
                _ if word.starts_with('-') => {}
                name => names.push(name),
            }
        }
        // `--set root UUID` and `--set UUID` are both in use.
        match (bare_set, names.as_slice()) {
            (true, [variable, what, ..]) => {
                options.variable = variable;
                options.what = Some(what);
            }
            (_, [what, ..]) => options.what = Some(what),
            (_, []) => {}
        }
        options
    }
}
