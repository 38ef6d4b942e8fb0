//! Figures of an unmodified Linux guest, in whatever machine this runs in that has KVM: in `hack/bench`, an emulated one.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;

/// Figures that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Start to init.
    Boot,
    /// Block IO by fio.
    Fio,
    /// TCP and UDP by iperf3.
    Iperf,
}

impl Group {
    /// For errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Fio => "fio",
            Self::Iperf => "iperf",
        }
    }
}

/// What is measured with what.
pub(crate) struct Bench {
    pub(crate) shim: PathBuf,
    pub(crate) guest: PathBuf,
    pub(crate) rounds: Option<u32>,
}

impl Bench {
    /// Measures some figures.
    pub(crate) fn measure(&self, _group: Group) -> Result<()> {
        bail!("not yet {:?} {:?} {:?}", self.shim, self.guest, self.rounds)
    }
}
