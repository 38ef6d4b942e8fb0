//! Loading: `linux`, `initrd`, `chainloader`, `boot`.

use super::interpreter::Interpreter;
use crate::files::FileRef;
use crate::selection::Selection;

/// What has been loaded so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Loaded {
    kernel: Option<(FileRef, Option<String>)>,
    initrds: Vec<FileRef>,
}

impl Loaded {
    /// What `boot` would start.
    pub(super) fn selection(&self, title: Option<&str>) -> Option<Selection> {
        let (kernel, command_line) = self.kernel.clone()?;
        Some(Selection {
            title: title.map(str::to_owned),
            kernel,
            initrds: self.initrds.clone(),
            command_line,
        })
    }
}

impl Interpreter<'_> {
    pub(super) fn linux(&mut self, arguments: &[String]) {
        self.loaded = Loaded::default();
        let Some(name) = arguments.first() else {
            return self.fail_to_load("`linux` without a kernel");
        };
        let Some(kernel) = self.existing(name) else {
            return;
        };
        let command_line = command_line(arguments);
        if command_line.len() > self.limits.command_line_bytes {
            return self.fail_to_load(format!("the command line for {name} has {} bytes", command_line.len()));
        }
        self.loaded.kernel = Some((kernel, Some(command_line)));
    }

    pub(super) fn initrd(&mut self, names: &[String]) {
        if self.loaded.kernel.is_none() {
            return self.fail_to_load("`initrd` before a kernel was loaded");
        }
        if names.len() > self.limits.initrds {
            return self.fail_to_load("too many initrds");
        }
        let mut initrds = Vec::new();
        for name in names {
            if name.starts_with("newc:") {
                return self.fail_to_load(format!(
                    "the initrd {name} is to be made by GRUB, which is not supported"
                ));
            }
            match self.existing(name) {
                Some(file) => initrds.push(file),
                None => return,
            }
        }
        self.loaded.initrds = initrds;
    }

    /// Starts an EFI program: only a unified kernel can be started without firmware, which shows when it is opened.
    pub(super) fn chainloader(&mut self, arguments: &[String]) {
        self.loaded = Loaded::default();
        let Some(name) = arguments.iter().find(|word| !word.starts_with('-')) else {
            return self.fail_to_load("`chainloader` without a program");
        };
        if let Some(program) = self.existing(name) {
            self.loaded.kernel = Some((program, None));
        }
    }

    pub(super) fn boot_loaded(&mut self) {
        match self.loaded.selection(None) {
            Some(selection) => self.chosen = Some((self.configuration.clone(), selection)),
            None => self.fail_to_load("`boot` before a kernel was loaded"),
        }
    }

    fn existing(&mut self, name: &str) -> Option<FileRef> {
        let file = self
            .file(name)
            .filter(|file| self.files.is_file(file.volume, &file.path));
        if file.is_none() {
            let root = self.variables.get("root").to_owned();
            self.fail_to_load(format!("file {name} not found (root is {root})"));
        }
        file
    }
}

/// The command line that GRUB hands to Linux for these arguments, quoted as GRUB does.
fn command_line(arguments: &[String]) -> String {
    let mut line = "BOOT_IMAGE=".to_owned();
    for (index, argument) in arguments.iter().enumerate() {
        if index > 0 {
            line.push(' ');
        }
        let spaced = argument.contains(' ');
        if spaced {
            line.push('"');
        }
        for character in argument.chars() {
            if matches!(character, '\\' | '\'' | '"') {
                line.push('\\');
            }
            line.push(character);
        }
        if spaced {
            line.push('"');
        }
    }
    line
}
