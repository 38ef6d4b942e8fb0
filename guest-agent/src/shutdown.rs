//! `shutdown`: the guest's own init ends services and the machine, as it does when somebody logged in asks it to.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use node_shim_protocol::guest::{FailureKind, Response, Shutdown};

use crate::process::Process;

/// Where an init and its programs are.
const PATH: &str = "/sbin:/usr/sbin:/bin:/usr/bin";
/// How long a program may take to tell init.
const PATIENCE: Duration = Duration::from_secs(30);
/// Made by systemd when it is init (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";
/// Most bytes of a program's complaints.
const COMPLAINT_BYTES: u64 = 512;

/// What tells init, the best first. systemd's own comes before those that may be leftovers of another init; sysvinit and `OpenRC` have
/// `shutdown`, and busybox's init has neither.
fn commands(how: Shutdown, has_systemd: bool) -> Vec<&'static [&'static str]> {
    let (systemd, shutdown, busybox): (&[_], &[_], &[_]) = match how {
        Shutdown::PowerOff => (&["systemctl", "poweroff"], &["shutdown", "-P", "now"], &["poweroff"]),
        Shutdown::Reboot => (&["systemctl", "reboot"], &["shutdown", "-r", "now"], &["reboot"]),
    };
    has_systemd
        .then_some(systemd)
        .into_iter()
        .chain([shutdown, busybox])
        .collect()
}

/// Tells init.
pub(crate) fn tell_init(how: Shutdown) -> Response {
    let mut complaint = String::new();
    for words in commands(how, Path::new(SYSTEMD).is_dir()) {
        match tell(words) {
            Ok(()) => return Response::Done,
            Err(error) => complaint = format!("{complaint}; `{}`: {error}", words.join(" ")),
        }
    }
    let why = format!("no program of the guest's could tell its init{complaint}; press the power button instead");
    Response::error(FailureKind::Failed, &why)
}

fn tell(words: &[&str]) -> Result<(), String> {
    let said = |error: std::io::Error| error.to_string();
    let (name, arguments) = words.split_first().ok_or("no program")?;
    let mut command = Command::new(name);
    command.args(arguments).env("PATH", PATH).current_dir("/");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut process = Process::spawn(&mut command).map_err(said)?;
    let stderr = process.child().stderr.take();
    if process.wait(Instant::now() + PATIENCE).map_err(said)?.is_none() {
        process.end();
        return Err(format!("it did not end within {} s", PATIENCE.as_secs()));
    }
    let status = process.reap().map_err(said)?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    if let Some(stderr) = stderr {
        // What it left running may hold the pipe: only what is there now is read.
        let _ = rustix::io::ioctl_fionbio(&stderr, true);
        let _ = stderr.take(COMPLAINT_BYTES).read_to_end(&mut text);
    }
    Err(format!("{status}, {}", String::from_utf8_lossy(&text).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_told_by_its_own_program_first() {
        let names = |how, systemd| {
            commands(how, systemd)
                .into_iter()
                .map(|words| words.join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(Shutdown::PowerOff, true),
            ["systemctl poweroff", "shutdown -P now", "poweroff"]
        );
        assert_eq!(
            names(Shutdown::Reboot, true),
            ["systemctl reboot", "shutdown -r now", "reboot"]
        );
        assert_eq!(names(Shutdown::PowerOff, false), ["shutdown -P now", "poweroff"]);
        assert_eq!(names(Shutdown::Reboot, false), ["shutdown -r now", "reboot"]);
    }

    #[test]
    fn what_a_program_complains_of_is_told() {
        assert_eq!(tell(&["true"]), Ok(()));
        assert_eq!(
            tell(&["sh", "-c", "echo not you >&2; exit 3"]),
            Err("exit status: 3, not you".into())
        );
        assert!(tell(&["no-such-program"]).unwrap_err().contains("No such file"));
        // A child that holds the pipe is not waited for.
        let began = Instant::now();
        assert_eq!(
            tell(&["sh", "-c", "sleep 20 & echo busy >&2; exit 1"]),
            Err("exit status: 1, busy".into())
        );
        assert!(began.elapsed() < Duration::from_secs(15));
    }
}
