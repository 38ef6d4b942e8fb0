//! Menus, and which entry is the default.

use std::rc::Rc;

use super::interpreter::Interpreter;
use super::linux::Loaded;
use super::syntax::Body;
use crate::files::FileRef;
use crate::selection::Selection;

/// An entry or a submenu.
#[derive(Clone, Debug)]
pub(super) struct MenuEntry {
    pub(super) title: String,
    pub(super) id: String,
    pub(super) submenu: bool,
    /// What choosing it runs.
    pub(super) body: Body,
    /// `$1` and so on while it runs.
    pub(super) arguments: Vec<String>,
    /// Where it is from.
    pub(super) configuration: FileRef,
}

impl Interpreter<'_> {
    /// Boots the entry that `$default` names, or else one of those in `$fallback`.
    pub(super) fn boot_menu(&mut self) -> Result<(FileRef, Selection), String> {
        let default = self.variables.get("default").to_owned();
        self.boot_entry(&default).or_else(|why| {
            let fallback = self.variables.get("fallback").to_owned();
            fallback
                .split_whitespace()
                .find_map(|name| self.boot_entry(name).ok())
                .ok_or(why)
        })
    }

    fn boot_entry(&mut self, name: &str) -> Result<(FileRef, Selection), String> {
        let (first, rest) = name.split_once('>').unwrap_or((name, ""));
        let Some(entry) = position(&self.menu, first)
            .and_then(|index| self.menu.get(index))
            .cloned()
        else {
            return Err(match self.take_complaint() {
                Some(complaint) => format!("its menu is empty ({complaint})"),
                None => "its menu is empty".to_owned(),
            });
        };
        let outer = std::mem::replace(&mut self.arguments, entry.arguments.clone());
        let result = self.nested(|interpreter| interpreter.run_entry(&entry, rest));
        self.arguments = outer;
        result
    }

    fn run_entry(&mut self, entry: &MenuEntry, rest: &str) -> Result<(FileRef, Selection), String> {
        self.loaded = Loaded::default();
        self.complaint = None;
        let failed = |why: &dyn std::fmt::Display| format!("its entry {:?}: {why}", entry.title);
        self.set("chosen", &entry.id).map_err(|error| failed(&error))?;
        let outer = entry.submenu.then(|| std::mem::take(&mut self.menu));
        let flow = self.run(&entry.body);
        let result = match (flow, self.chosen.take()) {
            (Err(error), _) => Err(failed(&error)),
            (Ok(_), Some(chosen)) => Ok(chosen),
            (Ok(_), None) if entry.submenu => self.boot_entry(rest).map_err(|why| failed(&why)),
            (Ok(_), None) => self
                .loaded
                .selection(Some(&entry.title))
                .map(|selection| (entry.configuration.clone(), selection))
                .ok_or_else(|| failed(&self.take_complaint().as_deref().unwrap_or("it loads no kernel"))),
        };
        if let Some(outer) = outer {
            self.menu = outer;
        }
        result
    }
}

/// The entry that `name` means: its number, title or id; the first one where there is no such entry.
fn position(menu: &[Rc<MenuEntry>], name: &str) -> Option<usize> {
    let number = name.parse::<usize>().ok().filter(|number| *number < menu.len());
    number
        .or_else(|| menu.iter().position(|entry| entry.title == name || entry.id == name))
        .or_else(|| (!menu.is_empty()).then_some(0))
}
