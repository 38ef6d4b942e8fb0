use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use node_shim_protocol::guest::{self, Answer, Answers, Ending, Exec, Exited, Freeze, Kind, Request, encode};

use super::*;
use crate::freeze::Freezer;
use crate::options::Options;

/// Longer than anything here takes, on a machine that is busy with something else.
const LONG_MS: u64 = 60_000;

fn agent(disabled: &[&'static str]) -> Arc<Agent> {
    let options = Options {
        disabled: disabled.to_vec(),
    };
    Arc::new(Agent::new(options, Freezer::new("/nonexistent/marker".into())))
}

/// The host's end of a connection that is served.
fn connect(agent: &Arc<Agent>) -> UnixStream {
    let (host, guest) = UnixStream::pair().unwrap();
    let agent = Arc::clone(agent);
    thread::spawn(move || serve(&agent, guest.into()));
    host.set_read_timeout(Some(Duration::from_millis(LONG_MS))).unwrap();
    host
}

fn send(host: &mut UnixStream, request: &Request) {
    host.write_all(&encode(Kind::Message, &serde_json::to_vec(request).unwrap()).unwrap())
        .unwrap();
}

/// What the guest says until it closes the connection.
#[derive(Debug, Default)]
struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    response: Option<Response>,
}

fn hear(host: &mut UnixStream, request: &Request) -> Said {
    let mut answers = Answers::new(request);
    let mut said = Said::default();
    let mut bytes = [0; 4096];
    loop {
        while let Some(answer) = answers.next().unwrap() {
            match answer {
                Answer::Stdout(bytes) => said.stdout.extend(bytes),
                Answer::Stderr(bytes) => said.stderr.extend(bytes),
                Answer::Response(response) => {
                    said.response = Some(response);
                    // The guest waits for that, and then nothing more comes.
                    host.shutdown(Shutdown::Write).unwrap();
                }
            }
        }
        match host.read(&mut bytes) {
            Ok(0) => return said,
            // It has left something unread that nobody needs any more.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return said,
            count => answers.push(&bytes[..count.unwrap()]),
        }
    }
}

fn ask(agent: &Arc<Agent>, request: &Request) -> Said {
    let mut host = connect(agent);
    send(&mut host, request);
    hear(&mut host, request)
}

fn exec(words: &[&str]) -> Exec {
    Exec {
        command: words.iter().map(ToString::to_string).collect(),
        environment: BTreeMap::new(),
        directory: None,
        stdin: false,
        timeout_ms: LONG_MS,
        output_limit_bytes: 1 << 20,
    }
}

fn shell(script: &str) -> Exec {
    exec(&["sh", "-c", script])
}

/// As `Said::response` has it.
#[allow(clippy::unnecessary_wraps, reason = "it is compared with what may be missing")]
fn ended(how: Ending) -> Option<Response> {
    Some(Response::Exited(Exited { how, dropped_bytes: 0 }))
}

fn failure(said: &Said) -> (FailureKind, String) {
    match &said.response {
        Some(Response::Error(failure)) => (failure.kind, failure.message.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ping_says_what_the_owner_lets_the_host_do() {
    for (disabled, capabilities) in [
        (&[][..], "ping exec info shutdown freeze online thaw"),
        (&["exec", "freeze"], "ping info shutdown online"),
    ] {
        let said = ask(&agent(disabled), &Request::Ping);
        let Some(Response::Pong(pong)) = said.response else {
            panic!("{said:?}")
        };
        assert_eq!(
            (pong.protocol, pong.frozen, pong.capabilities.join(" ").as_str()),
            (1, false, capabilities)
        );
    }
}

#[test]
fn what_the_owner_has_switched_off_is_refused() {
    let agent = agent(&["exec", "freeze", "shutdown", "info", "online"]);
    let freeze = Request::Freeze(Freeze { timeout_ms: 1 });
    for request in [
        Request::Exec(shell("exit 0")),
        freeze,
        Request::Thaw,
        Request::Shutdown(guest::Shutdown::PowerOff),
        Request::Info,
        Request::Online,
    ] {
        let (kind, message) = failure(&ask(&agent, &request));
        assert_eq!(kind, FailureKind::Disabled, "{message}");
    }
}

#[test]
fn a_command_ends_as_it_wants_to() {
    let agent = agent(&[]);
    for (script, how, stdout, stderr) in [
        ("echo out; echo err >&2", Ending::Code(0), "out\n", "err\n"),
        ("exit 7", Ending::Code(7), "", ""),
        ("kill -9 $$", Ending::Signal(9), "", ""),
        ("pwd; echo \"$GREETING\"", Ending::Code(0), "/usr\nhello\n", ""),
        ("cat", Ending::Code(0), "", ""),
        // Who is left in the background is not waited for, though it holds the pipes.
        ("echo first; sleep 20 & echo last", Ending::Code(0), "first\nlast\n", ""),
    ] {
        let mut command = shell(script);
        command.directory = Some("/usr".into());
        command.environment.insert("GREETING".into(), "hello".into());
        let began = Instant::now();
        let said = ask(&agent, &Request::Exec(command));
        assert_eq!(said.response, ended(how), "{script}");
        assert_eq!(
            (said.stdout.as_slice(), said.stderr.as_slice()),
            (stdout.as_bytes(), stderr.as_bytes()),
            "{script}"
        );
        assert!(began.elapsed() < Duration::from_secs(15), "{script}");
    }
}

#[test]
fn a_command_that_cannot_run_is_told_apart() {
    let agent = agent(&[]);
    let mut nowhere = exec(&["true"]);
    nowhere.directory = Some("/nonexistent".into());
    for (command, kind) in [
        (exec(&["no-such-program"]), FailureKind::NotFound),
        (exec(&["/etc/passwd/x"]), FailureKind::NotFound),
        (exec(&["/etc/passwd"]), FailureKind::NotExecutable),
        (exec(&["/etc"]), FailureKind::NotExecutable),
        (nowhere, FailureKind::Invalid),
    ] {
        let (found, message) = failure(&ask(&agent, &Request::Exec(command.clone())));
        assert_eq!(found, kind, "{command:?}: {message}");
    }
}

#[test]
fn stdin_goes_to_the_command_and_comes_back_whole() {
    let mut command = exec(&["cat"]);
    command.stdin = true;
    command.output_limit_bytes = 4 << 20;
    let request = Request::Exec(command);
    let mut host = connect(&agent(&[]));
    send(&mut host, &request);
    // More than all buffers on the way hold, both ways.
    let data: Vec<u8> = (0..3_000_000_u32)
        .map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)])
        .collect();
    let (mut writer, sent) = (host.try_clone().unwrap(), data.clone());
    let feeder = thread::spawn(move || {
        for piece in sent.chunks(10_000) {
            writer.write_all(&encode(Kind::Stdin, piece).unwrap()).unwrap();
        }
        writer.write_all(&encode(Kind::Stdin, &[]).unwrap()).unwrap();
    });
    let said = hear(&mut host, &request);
    feeder.join().unwrap();
    assert_eq!(said.response, ended(Ending::Code(0)));
    assert!(said.stdout == data, "{} bytes of {}", said.stdout.len(), data.len());
}

#[test]
fn stdin_that_comes_with_the_request_is_not_waited_for() {
    let mut command = exec(&["cat"]);
    command.stdin = true;
    let request = Request::Exec(command);
    let message = encode(Kind::Message, &serde_json::to_vec(&request).unwrap()).unwrap();
    let stdin = [
        encode(Kind::Stdin, b"all of it").unwrap(),
        encode(Kind::Stdin, b"").unwrap(),
    ]
    .concat();
    let mut host = connect(&agent(&[]));
    let began = Instant::now();
    host.write_all(&[message, stdin].concat()).unwrap();
    let said = hear(&mut host, &request);
    assert_eq!(
        (said.response, said.stdout.as_slice()),
        (ended(Ending::Code(0)), &b"all of it"[..])
    );
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_command_need_not_read_its_stdin() {
    let mut command = shell("exec <&-; echo deaf; exit 3");
    command.stdin = true;
    let request = Request::Exec(command);
    let mut host = connect(&agent(&[]));
    send(&mut host, &request);
    let mut writer = host.try_clone().unwrap();
    // As much as nobody takes; that the connection ends meanwhile is no surprise.
    thread::spawn(move || {
        let frame = encode(Kind::Stdin, &[7; 16 * 1024]).unwrap();
        while writer.write_all(&frame).is_ok() {}
    });
    let said = hear(&mut host, &request);
    assert_eq!(
        (said.response, said.stdout.as_slice()),
        (ended(Ending::Code(3)), &b"deaf\n"[..])
    );
}

#[test]
fn output_over_the_limit_is_read_and_dropped() {
    let mut command = shell("head -c 300000 /dev/zero; head -c 10 /dev/zero >&2");
    command.output_limit_bytes = 1000;
    let said = ask(&agent(&[]), &Request::Exec(command));
    assert_eq!((said.stdout.len(), said.stderr.len()), (1000, 10));
    let Some(Response::Exited(exited)) = said.response else {
        panic!("{said:?}")
    };
    assert_eq!((exited.how, exited.dropped_bytes), (Ending::Code(0), 299_000));
}

#[test]
fn what_a_command_has_said_last_is_heard() {
    let agent = agent(&[]);
    for _ in 0..20 {
        // As much as its pipe holds, and it has ended before a part of that is read.
        let said = ask(
            &agent,
            &Request::Exec(exec(&["dd", "if=/dev/zero", "bs=60000", "count=1", "status=none"])),
        );
        assert_eq!((said.response, said.stdout.len()), (ended(Ending::Code(0)), 60_000));
    }
}

/// Whether a process with this number is there, and no zombie.
fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn await_death(pid: &str) {
    let deadline = Instant::now() + Duration::from_millis(LONG_MS);
    while is_alive(pid) {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        // Nothing tells of the end of somebody else's child.
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_command_and_what_it_started_end_with_its_time() {
    let mut command = shell("sleep 1000 & echo $! $$; wait");
    command.timeout_ms = 1500;
    let said = ask(&agent(&[]), &Request::Exec(command));
    assert_eq!(said.response, ended(Ending::TimedOut));
    let text = String::from_utf8(said.stdout).unwrap();
    assert_eq!(text.split_whitespace().count(), 2, "{text}");
    text.split_whitespace().for_each(await_death);
}

/// Has a command run that says its number and its child's first, and returns those.
fn run_sleepers(host: &mut UnixStream, request: &Request) -> String {
    send(host, request);
    let mut answers = Answers::new(request);
    let mut text = String::new();
    let mut bytes = [0; 100];
    while !text.ends_with('\n') {
        let count = host.read(&mut bytes).unwrap();
        answers.push(&bytes[..count]);
        while let Some(Answer::Stdout(bytes)) = answers.next().unwrap() {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
    assert!(text.split_whitespace().all(is_alive), "{text}");
    text
}

const SLEEPERS: &str = "sleep 1000 & echo $! $$; wait";

#[test]
fn a_command_ends_with_its_connection() {
    let mut host = connect(&agent(&[]));
    let numbers = run_sleepers(&mut host, &Request::Exec(shell(SLEEPERS)));
    drop(host);
    numbers.split_whitespace().for_each(await_death);
}

/// As vsock has it: a side that ends is seen by what it ends, which may come after much that nobody reads.
#[test]
fn a_command_ends_with_its_connection_also_where_it_reads_nothing() {
    let mut command = shell(SLEEPERS);
    command.stdin = true;
    let mut host = connect(&agent(&[]));
    let numbers = run_sleepers(&mut host, &Request::Exec(command));
    // More than the pipe holds, and less than the socket holds besides.
    for _ in 0..8 {
        host.write_all(&encode(Kind::Stdin, &[0; 16 * 1024]).unwrap()).unwrap();
    }
    host.shutdown(Shutdown::Write).unwrap();
    numbers.split_whitespace().for_each(await_death);
}

#[test]
fn a_host_that_does_not_read_holds_up_the_command_and_no_memory() {
    let mut command = shell("yes");
    command.output_limit_bytes = 64 << 20;
    command.timeout_ms = 1000;
    let request = Request::Exec(command);
    let mut host = connect(&agent(&[]));
    send(&mut host, &request);
    // Everything on the way is full long before its time is over; only then is it read.
    let mut first = [0; 5];
    host.read_exact(&mut first).unwrap();
    thread::sleep(Duration::from_millis(1500));
    let mut answers = Answers::new(&request);
    let mut rest = first.to_vec();
    let (mut total, mut last) = (0, None);
    while last.is_none() {
        answers.push(&rest);
        while let Some(answer) = answers.next().unwrap() {
            match answer {
                Answer::Stdout(bytes) | Answer::Stderr(bytes) => total += bytes.len(),
                Answer::Response(response) => last = Some(response),
            }
        }
        rest = vec![0; 4096];
        let count = if last.is_none() {
            host.read(&mut rest).unwrap()
        } else {
            0
        };
        assert!(count > 0 || last.is_some(), "no response");
        rest.truncate(count);
    }
    assert_eq!(last, ended(Ending::TimedOut));
    assert!(total < 8 << 20, "{total} bytes");
}

#[test]
fn what_is_sent_is_not_lost_for_a_slow_reader() {
    let request = Request::Exec(shell("echo late"));
    let mut host = connect(&agent(&[]));
    send(&mut host, &request);
    // The response is there, but neither side closes before it is read.
    let mut peeked = [0; 8];
    while rustix::net::recv(&host, &mut peeked, rustix::net::RecvFlags::PEEK)
        .unwrap()
        .0
        < 8
    {}
    thread::sleep(Duration::from_millis(300));
    let mut set = [rustix::event::PollFd::new(&host, rustix::event::PollFlags::RDHUP)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(
        rustix::event::poll(&mut set, Some(&now)),
        Ok(0),
        "the guest has closed the connection"
    );
    assert_eq!(hear(&mut host, &request).stdout, b"late\n");
}

#[test]
fn nonsense_is_answered_with_what_is_wrong_with_it() {
    for (bytes, part) in [
        (encode(Kind::Message, b"{").unwrap(), "no request"),
        (encode(Kind::Message, br#""teleport""#).unwrap(), "unknown variant"),
        (
            encode(Kind::Message, br#"{"freeze":{"timeoutMs":0}}"#).unwrap(),
            "timeoutMs is 0",
        ),
        (encode(Kind::Stdin, b"x").unwrap(), "Stdin"),
        (vec![9], "unknown kind 9"),
        (vec![0, 255, 255, 255, 255], "4294967295 bytes"),
        (
            [
                encode(
                    Kind::Message,
                    &serde_json::to_vec(&Request::Exec(exec(&["sleep", "1000"]))).unwrap(),
                )
                .unwrap(),
                encode(Kind::Stdin, b"x").unwrap(),
            ]
            .concat(),
            "Stdin",
        ),
    ] {
        let mut host = connect(&agent(&[]));
        let began = Instant::now();
        host.write_all(&bytes).unwrap();
        let (kind, message) = failure(&hear(&mut host, &Request::Ping));
        assert_eq!(kind, FailureKind::Invalid);
        assert!(message.contains(part), "{message}");
        assert!(began.elapsed() < Duration::from_secs(15), "{message}");
    }
}

#[test]
fn a_host_that_goes_away_early_ends_its_session() {
    let (host, guest) = UnixStream::pair().unwrap();
    let agent = agent(&[]);
    let session = thread::spawn(move || serve(&agent, guest.into()));
    drop(host);
    session.join().unwrap();
}
