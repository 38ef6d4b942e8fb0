//! `node-shim-bench`: measures `node-shim` beside QEMU, in turn, and prints one table.
//!
//! ```text
//! native FIGURE...    this machine's own /dev/kvm, with the polling guest  --+
//! machine FIGURE...   a machine with KVM, with an unmodified Linux guest   --+--> samples, a line each --> table
//! ```
//!
//! `hack/bench` builds what this needs and calls it.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use self::figure::Figure;
use self::sample::Sample;

mod figure;
mod machine;
mod monitor;
mod native;
mod profile;
mod sample;
mod table;
mod vm;

/// Measures node-shim beside QEMU.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Figures of this machine's own `/dev/kvm`: memory, start, restore, binary, block, net. And `hostile`, which is none.
    Native {
        /// The `node-shim` that is measured.
        #[arg(long)]
        shim: PathBuf,
        /// The polling guest.
        #[arg(long)]
        guest: PathBuf,
        /// Where disks and snapshots of a few GiB are made [default: the directory for temporary files]
        #[arg(long)]
        directory: Option<PathBuf>,
        /// How often each is measured: for block and net, rounds of all of them.
        #[arg(long)]
        rounds: Option<u32>,
        /// What to measure.
        #[arg(required = true)]
        figures: Vec<native::Group>,
    },
    /// Figures of an unmodified Linux guest: boot, fio, iperf.
    Machine {
        /// The `node-shim` that is measured.
        #[arg(long)]
        shim: PathBuf,
        /// Directory with the guest: `vmlinux`, `initrd`.
        #[arg(long)]
        guest: PathBuf,
        /// How often each is measured.
        #[arg(long)]
        rounds: Option<u32>,
        /// What to measure.
        #[arg(required = true)]
        figures: Vec<machine::Group>,
    },
    /// Answers bytes over TCP, for `ask`.
    Answer {
        /// Where to listen.
        address: String,
    },
    /// Sends bytes over TCP, one after the other's answer, and prints how many a second.
    Ask {
        /// Of `answer`.
        address: String,
        /// For how long.
        seconds: u32,
    },
    /// Makes a table of the samples on standard input; other lines are ignored.
    Table {
        /// As Markdown.
        #[arg(long)]
        markdown: bool,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Native {
            shim,
            guest,
            directory,
            rounds,
            figures,
        } => {
            let directory = directory.unwrap_or_else(std::env::temp_dir);
            let bench = native::Bench {
                shim,
                guest,
                directory,
                rounds,
            };
            figures
                .iter()
                .try_for_each(|group| bench.measure(*group).with_context(|| group.name()))
        }
        Command::Machine {
            shim,
            guest,
            rounds,
            figures,
        } => {
            let bench = machine::Bench { shim, guest, rounds };
            figures
                .iter()
                .try_for_each(|group| bench.measure(*group).with_context(|| group.name()))
        }
        Command::Answer { address } => machine::answer(&address),
        Command::Ask { address, seconds } => {
            println!("{}", machine::ask(&address, seconds)?);
            Ok(())
        }
        Command::Table { markdown } => {
            let mut samples = Vec::new();
            for line in io::stdin().lock().split(b'\n') {
                // A serial console is not only text.
                let line = line.context("failed to read the samples")?;
                samples.extend(Sample::parse(&String::from_utf8_lossy(&line)));
            }
            print!("{}", table::render(&samples, markdown));
            Ok(())
        }
    }
}

/// Says a sample, on standard output.
fn report(figure: Figure, monitor: &str, value: f64) {
    let sample = Sample {
        figure,
        monitor: monitor.to_owned(),
        value,
    };
    say(&sample);
}

/// Says a line on standard output: a sample, or a profile, which `hack/bench` shows below the table.
fn say(line: &impl std::fmt::Display) {
    println!("{line}");
    // Standard output may be a pipe that somebody watches; if nobody does, the next line fails.
    let _ = io::stdout().flush();
}
