//! The end of the process: the terminal restored, the reason in the termination message, on stderr and in the exit code.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use node_shim_protocol::{ExitReason, Termination, paths};

use crate::{log, terminal};

/// Longest message in bytes: with its quotes and escapes it fits into the kubelet's 4096.
const MESSAGE_MAX_BYTES: usize = 1500;

/// Where the termination message goes, open because nothing is opened any more when it is written.
static LOG: OnceLock<File> = OnceLock::new();
/// Whether a thread is already ending the process.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Says where the termination message goes: `--termination-log`, else the kubelet's file where there is one.
pub(crate) fn set_log(path: Option<PathBuf>) {
    let default = || Some(PathBuf::from(paths::TERMINATION_LOG)).filter(|path| path.exists());
    // One that cannot be opened changes nothing else: the exit code and stderr say as much.
    if let Some(path) = path.or_else(default)
        && let Ok(file) = open_log(&path)
    {
        // Set once, from main.
        let _ = LOG.set(file);
    }
}

/// Makes a panic in any thread the end of the process.
pub(crate) fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let message = format!("a defect of node-shim: {panic}; please report it");
        end(ExitReason::Internal, &message);
    }));
}

/// Ends the process.
pub(crate) fn end(reason: ExitReason, message: &str) -> ! {
    if ENDING.swap(true, Ordering::SeqCst) {
        // Another thread ends the process: this one has nothing to add.
        loop {
            std::thread::park();
        }
    }
    terminal::restore();
    log::finish();
    let line = line(reason, message);
    // Nobody is left to tell when these fail; the exit code still says why.
    let _ = writeln!(std::io::stderr(), "node-shim: {line}");
    if let Some(file) = LOG.get() {
        let _ = file.set_len(0).and_then(|()| file.write_all_at(line.as_bytes(), 0));
    }
    std::process::exit(i32::from(reason.code()));
}

/// Ends the process from a signal handler: nothing here allocates or waits. `message` is ASCII text without quotes, backslashes or control
/// characters.
pub(crate) fn end_in_handler(reason: ExitReason, message: &str) -> ! {
    terminal::restore();
    let parts = ["{\"reason\":\"", reason.name(), "\",\"message\":\"", message, "\"}"];
    let stderr = rustix::stdio::stderr();
    // Nobody is left to tell when these fail; the exit code still says why.
    let _ = rustix::io::write(stderr, b"node-shim: ");
    let mut at = 0;
    if let Some(file) = LOG.get() {
        let _ = file.set_len(0);
    }
    for part in parts {
        let _ = rustix::io::write(stderr, part.as_bytes());
        if let Some(file) = LOG.get() {
            let _ = file.write_all_at(part.as_bytes(), at);
            at += part.len() as u64;
        }
    }
    let _ = rustix::io::write(stderr, b"\n");
    // SAFETY: ends the process at once, without anything that was to run at its exit.
    unsafe { libc::_exit(i32::from(reason.code())) }
}

/// Opens the file. The kubelet's is there already and somebody else's: asking to create it could be refused where writing is not
/// (`fs.protected_regular`).
fn open_log(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().write(true).open(path);
    file.or_else(|_| File::create(path))
}

/// The termination message, one line of JSON.
fn line(reason: ExitReason, message: &str) -> String {
    let termination = Termination {
        reason,
        message: shortened(message),
    };
    serde_json::to_string(&termination).unwrap_or_else(|_| format!("{{\"reason\":\"{reason:?}\",\"message\":\"\"}}"))
}

/// The message on one line, without control characters, and not too long.
fn shortened(message: &str) -> String {
    let mut short = String::new();
    for c in message.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if short.len() + c.len_utf8() > MESSAGE_MAX_BYTES {
            break;
        }
        short.push(c);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_one_line_of_json_within_the_kubelets_limit() {
        for message in ["short\nwith \"quotes\"", &"\u{0}\"\\".repeat(5000), &"ä€".repeat(5000)] {
            let line = line(ExitReason::InvalidConfig, message);
            assert!(line.len() <= 4096 && !line.contains('\n'), "{} bytes", line.len());
            let back: Termination = serde_json::from_str(&line).unwrap();
            assert_eq!(back.reason, ExitReason::InvalidConfig);
        }
    }
}
