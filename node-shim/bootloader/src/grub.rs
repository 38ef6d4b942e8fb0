//! What GRUB 2 would start: its configuration is a script, which is run here without anything that leaves the script.
//!
//! The language and its commands are those of the GNU GRUB manual 2.12, chapters 6 and 16, as far as `grub-mkconfig` and the
//! distributions use them; `blscfg` is Fedora's and RHEL's addition. Commands that change the screen, load modules or save a
//! variable do nothing. In particular a `next_entry` stays set: nothing is written to the disk.

use crate::files::{FileRef, Files, VolumeId};
use crate::limits::Limits;
use crate::selection::Selection;

mod blscfg;
mod commands;
mod condition;
mod device;
mod environment;
mod interpreter;
mod linux;
mod menu;
mod syntax;

pub use environment::parse_block;
pub use syntax::parse;

use interpreter::Interpreter;

/// Which GRUB it would be: scripts ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Started by UEFI firmware.
    Efi,
    /// Started by a BIOS.
    Pc,
}

/// Why a configuration cannot be run to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It is not in the language.
    #[error("line {line}: {why}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// It runs on and on.
    #[error("it runs more than {0} commands")]
    TooLong(u32),
    /// Its blocks, functions and files are nested too deeply.
    #[error("it is nested more than {0} deep")]
    TooDeep(u32),
    /// It has too many words or menu entries, or its variables are too long.
    #[error("its {0} are too many or too long")]
    TooLarge(&'static str),
}

/// Runs the configuration at `configuration` and says what its default entry starts, and which configuration said so: one may lead
/// to another. `prefix` is the directory that GRUB takes for its own, on the same volume.
///
/// # Errors
/// Says why nothing would be started.
pub fn select(
    files: &dyn Files,
    configuration: &FileRef,
    prefix: &str,
    platform: Platform,
    limits: &Limits,
) -> Result<(FileRef, Selection), String> {
    let mut interpreter = Interpreter::new(files, limits, configuration.volume, prefix, platform);
    interpreter.boot(configuration)
}

/// Where GRUBs look for their configuration, relative to a volume or a subvolume.
pub const CONFIGURATIONS: [&str; 4] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];

/// How GRUB would name a volume: `hd0,gpt1`.
pub fn device_name(files: &dyn Files, volume: VolumeId) -> Option<String> {
    files.volume(volume).map(device::name)
}

#[cfg(test)]
mod tests;
