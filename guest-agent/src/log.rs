//! Lines on stderr, which is the journal or a file: not while that may be on a file system that is frozen, because then who writes stands
//! still, and who stands still thaws nothing.

use std::fmt::Arguments;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static MUTE: AtomicBool = AtomicBool::new(false);

/// Writes a line, unless muted.
pub fn line(text: Arguments<'_>) {
    if !MUTE.load(Ordering::Relaxed) {
        // There is nowhere to complain about stderr.
        let _ = std::io::stderr().write_all(format!("tandem-guest-agent: {text}\n").as_bytes());
    }
}

/// Switches lines off or on.
pub(crate) fn set_mute(mute: bool) {
    MUTE.store(mute, Ordering::Relaxed);
}
