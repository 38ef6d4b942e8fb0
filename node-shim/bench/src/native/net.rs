//! Frames of the polling guest, through a tap.

use anyhow::{Result, bail};

use super::Bench;

pub(super) fn measure(_bench: &Bench) -> Result<()> {
    bail!("not yet")
}
