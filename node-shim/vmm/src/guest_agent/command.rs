//! The verbs of `node-shim control guest`, and their exit codes.
//!
//! A kubelet's exec probe that runs a command in the guest is `node-shim control guest exec -- COMMAND`, and one that asks whether the guest
//! lives at all `node-shim control guest ping`.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use node_shim_protocol::guest::{
    EXEC_MAX_MS, Ending, Exec, Exited, FREEZE_MAX_MS, FailureKind, Freeze, Kind, OUTPUT_MAX_BYTES, Request, Response,
    Shutdown,
};

use super::connection::{GuestError, Streams, ask};
use crate::log;

/// How long past a command's own time its end may take to be told.
const GRACE: Duration = Duration::from_secs(10);
/// The exit codes of timeout(1), env(1) and shells for what no command has said itself.
const TIMED_OUT: u8 = 124;
const NOT_RUN: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const BY_SIGNAL: u8 = 128;

/// What to ask the agent in the guest for.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Verb {
    /// Whether it is there, and what it does.
    Ping {
        /// Seconds that the caller waits; whether there is an answer is said a little before.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
        timeout: u64,
    },
    /// What the guest says of itself: host name, system, addresses, CPUs, memory.
    Info {
        /// Seconds that it has to answer.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
        timeout: u64,
    },
    /// Runs a command in the guest. Its exit code is this one's; 124: its time was over, 125: the agent did not run it, 126: it is not
    /// executable, 127: there is none, 128 + n: signal n ended it.
    Exec {
        /// Seconds after which the command is killed.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=EXEC_MAX_MS / 1000))]
        timeout: u64,
        /// Sets a variable. May be given again.
        #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
        env: Vec<(String, String)>,
        /// The guest's directory to run it in [default: /]
        #[arg(long)]
        directory: Option<String>,
        /// Passes stdin on. Without it the command's is empty.
        #[arg(long, short = 'i')]
        stdin: bool,
        /// Bytes of stdout, and as many of stderr, that are passed on. The rest is left out.
        #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(..=OUTPUT_MAX_BYTES))]
        output_limit_bytes: u64,
        /// The command and its arguments, after `--`.
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Has the guest's own init power the machine off.
    Shutdown {
        /// Start it again instead.
        #[arg(long)]
        reboot: bool,
        /// Seconds that it has to answer.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
        timeout: u64,
    },
    /// Holds up all writes to the guest's disks, so that they can be copied.
    Freeze {
        /// Seconds after which the guest thaws them by itself.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=FREEZE_MAX_MS / 1000))]
        thaw_after: u64,
        /// Seconds that it has to answer, in which it writes out what it has in memory.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
        timeout: u64,
    },
    /// Lets them go on. Fails when the guest has thawed them by itself: what was copied is not whole then.
    Thaw {
        /// Seconds that it has to answer.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
        timeout: u64,
    },
    /// Takes CPUs and memory into use that were plugged. The agent does so by itself when they come.
    Online {
        /// Seconds that it has to answer.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
        timeout: u64,
    },
}

/// `NAME=VALUE`.
fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write NAME=VALUE".to_owned()),
    }
}

/// How long to wait for an answer, so that there is time to say that none came before the caller, a kubelet, ends us.
fn answer_time(timeout: Duration) -> Duration {
    timeout.saturating_sub((timeout / 2).min(Duration::from_secs(5)))
}

/// What is asked for, and how long an answer may take.
fn request(verb: Verb) -> (Request, Duration) {
    let within = |seconds: u64, request| (request, Duration::from_secs(seconds));
    match verb {
        Verb::Ping { timeout } => (Request::Ping, answer_time(Duration::from_secs(timeout))),
        Verb::Info { timeout } => within(timeout, Request::Info),
        Verb::Exec {
            timeout,
            env,
            directory,
            stdin,
            output_limit_bytes,
            command,
        } => {
            let exec = Exec {
                command,
                environment: env.into_iter().collect(),
                directory,
                stdin,
                timeout_ms: timeout.saturating_mul(1000),
                output_limit_bytes,
            };
            (Request::Exec(exec), Duration::from_secs(timeout) + GRACE)
        }
        Verb::Shutdown { reboot, timeout } => {
            let how = if reboot { Shutdown::Reboot } else { Shutdown::PowerOff };
            within(timeout, Request::Shutdown(how))
        }
        Verb::Freeze { thaw_after, timeout } => {
            let timeout_ms = thaw_after.saturating_mul(1000);
            within(timeout, Request::Freeze(Freeze { timeout_ms }))
        }
        Verb::Thaw { timeout } => within(timeout, Request::Thaw),
        Verb::Online { timeout } => within(timeout, Request::Online),
    }
}

/// Asks, prints the answer, and returns the exit code: 0 when it was done, 1 when the guest says that it was not, 2 when nobody answered;
/// that of a command is its own.
pub(crate) fn run(vsock: &Path, verb: Verb) -> u8 {
    let (request, patience) = request(verb);
    let is_exec = matches!(request, Request::Exec(_));
    match ask_with_stdio(vsock, &request, patience) {
        Ok(Response::Exited(exited)) => {
            if exited.dropped_bytes > 0 {
                log::line(format_args!("{} bytes of output were left out", exited.dropped_bytes));
            }
            code_of(exited)
        }
        Ok(Response::Error(failure)) if is_exec => {
            log::line(format_args!("{}", failure.message));
            code_of_failure(failure.kind)
        }
        Ok(response) => match print(&response) {
            Ok(()) => u8::from(matches!(response, Response::Error(_))),
            Err(error) => complain(&GuestError::Pass(error), is_exec),
        },
        Err(error) => complain(&error, is_exec),
    }
}

fn ask_with_stdio(vsock: &Path, request: &Request, patience: Duration) -> Result<Response, GuestError> {
    let has_stdin = matches!(request, Request::Exec(exec) if exec.stdin);
    let stdin: Option<BorrowedFd<'_>> = has_stdin.then(rustix::stdio::stdin);
    let mut output = |kind, bytes: &[u8]| match kind {
        Kind::Stderr => io::stderr().write_all(bytes),
        Kind::Stdout | Kind::Stdin | Kind::Message => {
            let mut stdout = io::stdout();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
    };
    let mut streams = Streams {
        stdin,
        output: &mut output,
    };
    ask(vsock, request, patience, &mut streams)
}

/// Its texts have no control characters: `Response::check` let none pass.
fn print(response: &Response) -> io::Result<()> {
    let text = serde_json::to_string(response)?;
    writeln!(io::stdout(), "{text}")
}

fn complain(error: &GuestError, is_exec: bool) -> u8 {
    log::line(format_args!("{error}"));
    if is_exec { NOT_RUN } else { 2 }
}

const fn code_of(exited: Exited) -> u8 {
    match exited.how {
        Ending::Code(code) => code,
        Ending::Signal(signal) => BY_SIGNAL.saturating_add(signal),
        Ending::TimedOut => TIMED_OUT,
    }
}

const fn code_of_failure(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::NotFound => NOT_FOUND,
        FailureKind::NotExecutable => NOT_EXECUTABLE,
        FailureKind::Invalid | FailureKind::Disabled | FailureKind::Refused | FailureKind::Failed => NOT_RUN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_shells() {
        let code = |how| code_of(Exited { how, dropped_bytes: 0 });
        for (how, expected) in [
            (Ending::Code(0), 0),
            (Ending::Code(255), 255),
            (Ending::Signal(9), 137),
            (Ending::Signal(255), 255),
            (Ending::TimedOut, 124),
        ] {
            assert_eq!(code(how), expected, "{how:?}");
        }
        assert_eq!(code_of_failure(FailureKind::NotFound), 127);
        assert_eq!(code_of_failure(FailureKind::NotExecutable), 126);
        assert_eq!(code_of_failure(FailureKind::Disabled), 125);
    }

    #[test]
    fn variables_have_names() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }
}
