use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::agent::Agent;
use guest_agent::freeze::Freezer;
use guest_agent::options::Options;
use node_shim_protocol::guest::{Ending, Exec, Exited, Kind, Request, Response, encode};

use super::command::{self, Verb};
use super::connection::{GuestError, Streams, ask};

/// Longer than anything here takes, on a machine that is busy with something else.
const LONG: Duration = Duration::from_mins(1);

/// A VMM's vsock socket, and behind it a guest whose port does `guest` with each connection.
struct Vsock {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn vsock(guest: impl Fn(UnixStream) + Send + Sync + 'static) -> Vsock {
    raw_vsock(move |mut stream| {
        // As `node_shim_virtio::vsock` reads it: what follows the line is the guest's.
        let mut line = Vec::new();
        let mut reader = BufReader::with_capacity(1, &stream);
        reader.read_until(b'\n', &mut line).unwrap();
        assert_eq!(line, b"CONNECT 847\n");
        stream.write_all(b"OK 1073741824\n").unwrap();
        guest(stream);
    })
}

fn raw_vsock(vmm: impl Fn(UnixStream) + Send + Sync + 'static) -> Vsock {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let vmm = Arc::new(vmm);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let vmm = Arc::clone(&vmm);
            thread::spawn(move || vmm(stream.unwrap()));
        }
    });
    Vsock {
        _directory: directory,
        path,
    }
}

/// A guest with the real agent in it.
fn guest() -> Vsock {
    let agent = Agent::new(Options::default(), Freezer::new("/nonexistent/marker".into()));
    vsock(move |stream| guest_agent::serve(&agent, stream.into()))
}

fn ask_quietly(vsock: &Vsock, request: &Request, patience: Duration) -> Result<Response, GuestError> {
    let mut output = |_, _: &[u8]| Ok(());
    let mut streams = Streams {
        stdin: None,
        output: &mut output,
    };
    ask(&vsock.path, request, patience, &mut streams)
}

fn exec(words: &[&str], stdin: bool) -> Request {
    Request::Exec(Exec {
        command: words.iter().map(ToString::to_string).collect(),
        environment: std::collections::BTreeMap::new(),
        directory: None,
        stdin,
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
    })
}

#[test]
fn the_agent_answers() {
    let guest = guest();
    let pong = ask_quietly(&guest, &Request::Ping, LONG).unwrap();
    assert!(matches!(pong, Response::Pong(pong) if pong.capabilities.contains(&"exec".to_owned())));
    let info = ask_quietly(&guest, &Request::Info, LONG).unwrap();
    assert!(matches!(info, Response::Info(info) if info.cpus > 0));
    assert!(
        matches!(ask_quietly(&guest, &Request::Thaw, LONG), Ok(Response::Error(_))),
        "nothing is frozen"
    );
}

#[test]
fn a_command_has_its_input_and_output() {
    let guest = guest();
    let (input, mut feed) = UnixStream::pair().unwrap();
    let data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).take(1 << 20).collect();
    let sent = data.clone();
    // Its end is the end of the input.
    let feeder = thread::spawn(move || feed.write_all(&sent).unwrap());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut output = |kind, bytes: &[u8]| {
        if kind == Kind::Stdout { &mut stdout } else { &mut stderr }.extend_from_slice(bytes);
        Ok(())
    };
    let mut streams = Streams {
        stdin: Some(input.as_fd()),
        output: &mut output,
    };
    let request = exec(&["sh", "-c", "printf '\\033[31m' >&2; cat; exit 3"], true);
    let response = ask(&guest.path, &request, LONG, &mut streams).unwrap();
    feeder.join().unwrap();
    let exited = Exited {
        how: Ending::Code(3),
        dropped_bytes: 0,
    };
    assert_eq!(response, Response::Exited(exited));
    assert!(stdout == data, "{} bytes", stdout.len());
    assert_eq!(stderr, b"\x1b[31m", "what a command writes is passed on as it is");
}

#[test]
fn exit_codes_are_those_of_the_command() {
    let guest = guest();
    let exec = |words: &[&str], timeout| Verb::Exec {
        timeout,
        env: vec![("CODE".into(), "9".into())],
        directory: Some("/".into()),
        stdin: false,
        output_limit_bytes: 0,
        command: words.iter().map(ToString::to_string).collect(),
    };
    for (words, timeout, code) in [
        (&["true"][..], 60, 0),
        (&["sh", "-c", "exit $CODE"], 60, 9),
        (&["sh", "-c", "kill -TERM $$"], 60, 143),
        (&["sleep", "1000"], 1, 124),
        (&["/etc"], 60, 126),
        (&["no-such-program"], 60, 127),
        (&[""], 60, 125),
    ] {
        assert_eq!(command::run(&guest.path, exec(words, timeout)), code, "{words:?}");
    }
    assert_eq!(command::run(&guest.path, Verb::Ping { timeout: 60 }), 0);
    assert_eq!(command::run(&guest.path, Verb::Thaw { timeout: 60 }), 1);
    let nobody = PathBuf::from("/nonexistent/vsock.sock");
    assert_eq!(command::run(&nobody, Verb::Ping { timeout: 60 }), 2);
    assert_eq!(command::run(&nobody, exec(&["true"], 60)), 125);
}

#[test]
fn a_guest_without_an_agent_is_told_from_one_that_does_not_answer() {
    let refusing = raw_vsock(|mut stream| {
        let mut line = [0; 12];
        stream.read_exact(&mut line).unwrap();
    });
    assert!(matches!(
        ask_quietly(&refusing, &Request::Ping, LONG),
        Err(GuestError::NobodyThere)
    ));
    let patience = Duration::from_millis(200);
    let silent = vsock(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let paused = raw_vsock(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    for vsock in [silent, paused] {
        let began = Instant::now();
        assert!(matches!(
            ask_quietly(&vsock, &Request::Ping, patience),
            Err(GuestError::Late(_))
        ));
        assert!(began.elapsed() >= patience);
    }
    let other = raw_vsock(|mut stream| drop(stream.write_all(&[b'x'; 100])));
    assert!(matches!(
        ask_quietly(&other, &Request::Ping, LONG),
        Err(GuestError::Connection(_))
    ));
}

#[test]
fn a_hostile_guest_is_cut_off() {
    let pong = br#"{"pong":{"protocol":1,"agent":"\u001b[2J","capabilities":[],"frozen":false}}"#;
    for (bytes, part) in [
        (Vec::new(), "without an answer"),
        (vec![0, 1], "without an answer"),
        (vec![7], "unknown kind 7"),
        (vec![0, 1, 0, 1, 0], "65537 bytes"),
        (encode(Kind::Stdout, b"x").unwrap(), "more Stdout than it was asked for"),
        (encode(Kind::Message, b"\"done\"").unwrap(), "none to `ping`"),
        (encode(Kind::Message, &vec![b'['; 60_000]).unwrap(), "no response"),
        (
            encode(Kind::Message, pong).unwrap(),
            "the agent's version has control characters",
        ),
    ] {
        let guest = vsock(move |mut stream| {
            let mut request = [0; 11];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let error = ask_quietly(&guest, &Request::Ping, LONG).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(!error.contains('\x1b'), "{error:?}");
    }
    // One that says something for ever, and never what was asked for.
    let endless = vsock(|mut stream| while stream.write_all(&encode(Kind::Stdout, b"x").unwrap()).is_ok() {});
    let error = ask_quietly(&endless, &exec(&["true"], false), LONG)
        .unwrap_err()
        .to_string();
    assert!(error.contains("more Stdout"), "{error}");
}
