//! Variables, and the block that keeps some of them between boots.

use std::collections::BTreeMap;

use super::ScriptError;

/// First line of the block (`grub-editenv`).
const SIGNATURE: &str = "# GRUB Environment Block\n";

/// A script's variables.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables {
    values: BTreeMap<String, String>,
    bytes: usize,
}

impl Variables {
    pub(super) fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Sets a variable, unless all of them together would have more than `limit` bytes.
    pub(super) fn set(&mut self, name: &str, value: &str, limit: usize) -> Result<(), ScriptError> {
        self.unset(name);
        let bytes = self.bytes + name.len() + value.len();
        if bytes > limit {
            return Err(ScriptError::TooLarge("variables"));
        }
        self.bytes = bytes;
        self.values.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    pub(super) fn unset(&mut self, name: &str) {
        if let Some(value) = self.values.remove(name) {
            self.bytes -= name.len() + value.len();
        }
    }

    /// Text with every `$name` replaced, as `blscfg` does in entries.
    pub(super) fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            let end = after
                .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            if name.is_empty() {
                expanded.push('$');
            } else {
                expanded.push_str(self.get(name));
            }
            rest = after;
        }
        expanded.push_str(rest);
        expanded
    }
}

/// The variables in `grubenv`; `None` where it is no such block.
pub fn parse_block(block: &str) -> Option<Vec<(String, String)>> {
    let mut rest = block.strip_prefix(SIGNATURE)?.chars().peekable();
    let mut found = Vec::new();
    while rest.peek().is_some() {
        let mut line = String::new();
        while let Some(character) = rest.next() {
            match character {
                '\n' => break,
                // A backslash keeps the next character, even the end of a line.
                '\\' => line.extend(rest.next()),
                other => line.push(other),
            }
        }
        // Other lines are comments: the block is filled up with `#`.
        if !line.starts_with('#')
            && let Some((name, value)) = line.split_once('=')
        {
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    Some(found)
}
