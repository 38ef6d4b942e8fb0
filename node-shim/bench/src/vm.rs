//! A monitor that runs, and its guest's console.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A process that is killed when it is dropped, and after a while in any case.
pub(crate) struct Vm {
    child: Arc<Mutex<Child>>,
    pid: u32,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: std::path::PathBuf,
    /// The last line of its guest's.
    last_line: String,
    /// Just before it was started.
    pub(crate) started: Instant,
    _alive: Sender<()>,
}

impl Vm {
    /// Starts a monitor, with its standard error in a file of `directory`.
    pub(crate) fn start(mut command: Command, directory: &Path, limit: Duration) -> Result<Self> {
        let errors = directory.join("errors");
        let stderr = File::create(&errors).with_context(|| format!("failed to create {}", errors.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("failed to run {}", command.get_program().display()))?;
        let (input, output) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
        let pid = child.id();
        let child = Arc::new(Mutex::new(child));
        let (alive, dropped) = channel();
        let watched = Arc::clone(&child);
        std::thread::spawn(move || {
            if dropped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // Its output ends, and whoever waits for that says so.
                let _ = watched.lock().unwrap_or_else(PoisonError::into_inner).kill();
            }
        });
        let output = BufReader::new(output);
        Ok(Self {
            child,
            pid,
            input,
            output,
            errors,
            last_line: String::new(),
            started,
            _alive: alive,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What it said on standard error.
    pub(crate) fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// How it ended, and the end of what it and its guest said.
    fn ended(&self) -> String {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has ended stays as it ended; one that only stopped talking has no more to say.
        let status = child.kill().and_then(|()| child.wait());
        drop(child);
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let after = self.started.elapsed().as_secs();
        let errors = self.errors();
        let lines: Vec<&str> = errors.lines().collect();
        let errors = lines[lines.len().saturating_sub(5)..].join("\n");
        format!(
            "the monitor ended after {after} s ({status}): {errors}\nits guest's last line: {}",
            self.last_line
        )
    }

    /// Waits for the first byte of the guest's output.
    pub(crate) fn first_byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        let result = self.output.read_exact(&mut byte);
        result.with_context(|| self.ended())?;
        Ok(byte[0])
    }

    /// Waits for a line of the guest's.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.output
            .read_until(b'\n', &mut line)
            .context("failed to read the console")?;
        if line.is_empty() {
            bail!(self.ended());
        }
        self.last_line = String::from_utf8_lossy(&line).trim_end().to_owned();
        Ok(self.last_line.clone())
    }

    /// Waits for a line that begins like this, and returns the rest of it.
    pub(crate) fn line_after(&mut self, start: &str) -> Result<String> {
        loop {
            let line = self.line()?;
            if let Some(rest) = line.strip_prefix(start) {
                return Ok(rest.to_owned());
            }
            if line.starts_with("error ") || line.starts_with("panic ") {
                bail!("the guest says: {line}");
            }
        }
    }

    /// Says a line to the guest.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("failed to write to the console")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}
