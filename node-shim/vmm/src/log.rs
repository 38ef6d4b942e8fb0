//! Our own few lines on stderr. The guest's console has stdout to itself.

use std::fmt::Arguments;
use std::io::Write;

/// Writes a line. A terminal may be raw, so it ends with a carriage return too.
pub(crate) fn line(text: Arguments<'_>) {
    // There is nowhere to complain about stderr.
    let _ = std::io::stderr().write_all(format!("node-shim: {text}\r\n").as_bytes());
}
