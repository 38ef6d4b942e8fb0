//! What names a text that is too long to be kept.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// SHA-256 of a text, as 64 lower-case hexadecimal digits.
pub(crate) fn of(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}
