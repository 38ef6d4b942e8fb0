//! A person's terminal: a command run on a pseudo-terminal of its own.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::cluster::PATIENCE;

/// A command on a pseudo-terminal (`script` of Debian's bsdutils makes it).
pub struct Terminal {
    _process: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    seen: String,
}

impl Terminal {
    /// Starts a shell command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &str) -> Result<Self> {
        let mut process = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run script (Debian package bsdutils)")?;
        let stdin = process.stdin.take().context("no standard input")?;
        let stdout = process.stdout.take().context("no standard output")?;
        Ok(Self {
            _process: process,
            stdin,
            stdout,
            seen: String::new(),
        })
    }

    /// Types this.
    ///
    /// # Errors
    /// When the command has ended.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        self.stdin.write_all(text.as_bytes()).await?;
        Ok(self.stdin.flush().await?)
    }

    /// Reads until the screen has shown this, since the last call.
    ///
    /// # Errors
    /// When the command ends first or [`PATIENCE`] does, with what was shown.
    pub async fn expect(&mut self, text: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut chunk = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            match tokio::time::timeout_at(deadline, self.stdout.read(&mut chunk)).await {
                Ok(Ok(length)) if length > 0 => self.seen.push_str(&String::from_utf8_lossy(&chunk[..length])),
                Ok(_) => bail!("the command ended before it showed {text:?}; it showed {:?}", self.seen),
                Err(_) => bail!("the terminal never showed {text:?}; it showed {:?}", self.seen),
            }
        }
    }
}
