use proptest::prelude::*;

use super::*;

fn exec(change: impl FnOnce(&mut Exec)) -> Request {
    let mut exec = Exec {
        command: vec!["true".into()],
        environment: BTreeMap::new(),
        directory: None,
        stdin: false,
        timeout_ms: 1000,
        output_limit_bytes: 10,
    };
    change(&mut exec);
    Request::Exec(exec)
}

fn info() -> Info {
    Info {
        hostname: "web-1".into(),
        kernel: "6.1.0".into(),
        os: Os {
            id: "debian".into(),
            version: "12".into(),
            name: "Debian GNU/Linux 12 (bookworm)".into(),
        },
        boot_id: "0f3e".into(),
        interfaces: vec![Interface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:42".into(),
            addresses: vec![Address {
                address: IpAddr::from([10, 0, 2, 2]),
                prefix_length: 24,
            }],
        }],
        interfaces_omitted: 0,
        cpus: 2,
        memory_bytes: 1 << 30,
        memory_available_bytes: 1 << 29,
    }
}

fn frame(kind: Kind, payload: impl AsRef<[u8]>) -> Vec<u8> {
    encode(kind, payload.as_ref()).unwrap()
}

fn message(value: &impl Serialize) -> Vec<u8> {
    frame(Kind::Message, serde_json::to_vec(value).unwrap())
}

#[test]
fn requests_and_responses_read_as_a_person_would_write_them() {
    for (text, request) in [
        (r#""ping""#, Request::Ping),
        (r#"{"shutdown":"powerOff"}"#, Request::Shutdown(Shutdown::PowerOff)),
        (
            r#"{"freeze":{"timeoutMs":5000}}"#,
            Request::Freeze(Freeze { timeout_ms: 5000 }),
        ),
        (
            r#"{"exec":{"command":["true"],"stdin":false,"timeoutMs":1000,"outputLimitBytes":10}}"#,
            exec(|_| ()),
        ),
    ] {
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert!(text.contains(request.name()));
    }
    for (text, response) in [
        (
            r#"{"exited":{"how":{"code":3},"droppedBytes":0}}"#,
            Response::Exited(Exited {
                how: Ending::Code(3),
                dropped_bytes: 0,
            }),
        ),
        (
            r#"{"exited":{"how":"timedOut","droppedBytes":7}}"#,
            Response::Exited(Exited {
                how: Ending::TimedOut,
                dropped_bytes: 7,
            }),
        ),
    ] {
        assert_eq!(serde_json::from_str::<Response>(text).unwrap(), response);
        assert_eq!(serde_json::to_string(&response).unwrap(), text);
    }
    let address = serde_json::to_string(&info().interfaces[0].addresses).unwrap();
    assert_eq!(address, r#"[{"address":"10.0.2.2","prefixLength":24}]"#);
}

#[test]
fn what_a_later_agent_adds_is_read_and_what_a_later_host_adds_is_refused() {
    let pong = r#"{"pong":{"protocol":2,"agent":"9","capabilities":["ping","teleport"],"frozen":false,"mood":"good"}}"#;
    assert!(matches!(serde_json::from_str(pong), Ok(Response::Pong(pong)) if pong.capabilities.len() == 2));
    let failure = r#"{"error":{"kind":"tired","message":"no"}}"#;
    assert!(
        matches!(serde_json::from_str(failure), Ok(Response::Error(failure)) if failure.kind == FailureKind::Failed)
    );
    for request in [
        r#"{"freeze":{"timeoutMs":1,"only":["/"]}}"#,
        r#""teleport""#,
        r#"{"ping":1}"#,
    ] {
        assert!(serde_json::from_str::<Request>(request).is_err(), "{request}");
    }
}

#[test]
fn requests_are_bounded() {
    let fine = [
        exec(|_| ()),
        exec(|exec| exec.timeout_ms = EXEC_MAX_MS),
        exec(|exec| exec.command = vec!["x".into(); ARGUMENTS_MAX]),
        Request::Freeze(Freeze { timeout_ms: 1 }),
        Request::Ping,
    ];
    for request in fine {
        request.check().unwrap();
    }
    for (request, part) in [
        (exec(|exec| exec.command.clear()), "words of the command is 0"),
        (
            exec(|exec| exec.command = vec!["x".into(); 1025]),
            "is 1025; write 1 to 1024",
        ),
        (exec(|exec| exec.command = vec![String::new()]), "name is empty"),
        (exec(|exec| exec.command.push("a\0b".into())), "byte 0"),
        (exec(|exec| exec.directory = Some("\0".into())), "byte 0"),
        (exec(|exec| exec.timeout_ms = 0), "timeoutMs is 0"),
        (exec(|exec| exec.timeout_ms = EXEC_MAX_MS + 1), "timeoutMs"),
        (exec(|exec| exec.output_limit_bytes = u64::MAX), "outputLimitBytes"),
        (
            exec(|exec| drop(exec.environment.insert("A=B".into(), String::new()))),
            "NAME=VALUE",
        ),
        (
            exec(|exec| drop(exec.environment.insert("A".into(), "\0".into()))),
            "byte 0",
        ),
        (
            exec(|exec| exec.environment = (0..257).map(|n| (format!("V{n}"), String::new())).collect()),
            "is 257",
        ),
        (Request::Freeze(Freeze { timeout_ms: 0 }), "timeoutMs is 0"),
        (
            Request::Freeze(Freeze {
                timeout_ms: FREEZE_MAX_MS + 1,
            }),
            "timeoutMs",
        ),
    ] {
        let excess = request.check().unwrap_err().to_string();
        assert!(excess.contains(part), "{excess}");
    }
}

#[test]
fn responses_are_bounded_and_printable() {
    let with = |change: fn(&mut Info)| {
        let mut info = info();
        change(&mut info);
        Response::Info(Box::new(info))
    };
    with(|_| ()).check().unwrap();
    for (response, part) in [
        (
            with(|info| info.hostname = "x".repeat(257)),
            "the length of the host name is 257",
        ),
        (
            with(|info| info.hostname = "\x1b[2J".into()),
            "the host name has control",
        ),
        (
            with(|info| info.os.name = "\u{9b}2J".into()),
            "the distribution's name has control",
        ),
        (
            with(|info| info.kernel = "6\u{202e}1".into()),
            "the kernel's release has control",
        ),
        (with(|info| info.boot_id = "a\nb".into()), "the boot id has control"),
        (
            with(|info| info.interfaces[0].name = "\x07".into()),
            "an interface's name",
        ),
        (
            with(|info| info.interfaces[0].mac = "x".repeat(999)),
            "an interface's hardware address",
        ),
        (
            with(|info| info.interfaces = vec![info.interfaces[0].clone(); 65]),
            "interfaces is 65",
        ),
        (
            with(|info| info.interfaces[0].addresses = vec![info.interfaces[0].addresses[0]; 65]),
            "addresses is 65",
        ),
        (
            with(|info| info.interfaces[0].addresses[0].prefix_length = 33),
            "prefix is 33",
        ),
        (
            Response::Frozen(Frozen {
                file_systems: 0,
                skipped: vec![String::new(); 65],
            }),
            "skipped is 65",
        ),
        (
            Response::Pong(Pong {
                protocol: 1,
                agent: "1".into(),
                capabilities: vec!["\x1b".into()],
                frozen: false,
            }),
            "a capability has control",
        ),
        (
            Response::Error(Failure {
                kind: FailureKind::Failed,
                message: "x".repeat(1025),
            }),
            "the explanation is 1025",
        ),
    ] {
        let excess = response.check().unwrap_err().to_string();
        assert!(excess.contains(part), "{excess}");
    }
    let explained = Response::error(FailureKind::Failed, &"\x1b[31müber\n".repeat(1000));
    explained.check().unwrap();
    assert!(
        matches!(explained, Response::Error(failure) if failure.message.starts_with("?[31müber?") && failure.message.len() > 1000)
    );
}

#[test]
fn a_header_that_is_none_is_refused_before_its_payload_comes() {
    let long = |kind: u8, length: u32| [&[kind][..], &length.to_le_bytes()].concat();
    for (bytes, error) in [
        (vec![4], FrameError::Kind(4)),
        (
            long(0, 64 * 1024 + 1),
            FrameError::Length {
                kind: Kind::Message,
                length: 64 * 1024 + 1,
            },
        ),
        (
            long(2, u32::MAX),
            FrameError::Length {
                kind: Kind::Stdout,
                length: u32::MAX as usize,
            },
        ),
    ] {
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert_eq!(decoder.next(), Err(error));
    }
    let mut decoder = Decoder::default();
    decoder.push(&long(0, 64 * 1024));
    assert_eq!(decoder.next(), Ok(None));
    assert!(encode(Kind::Stdin, &vec![0; DATA_MAX_BYTES + 1]).is_err());
    assert!(encode(Kind::Message, &vec![0; MESSAGE_MAX_BYTES + 1]).is_err());
}

type Test = Box<dyn Fn(AnswerError) -> bool>;

#[test]
fn a_host_hears_only_what_it_asked_for() {
    let done = Response::Exited(Exited {
        how: Ending::Code(0),
        dropped_bytes: 0,
    });
    let run = exec(|exec| exec.output_limit_bytes = 3);
    let hears = |request: &Request, bytes: &[Vec<u8>]| {
        let mut answers = Answers::new(request);
        answers.push(&bytes.concat());
        let mut heard = Vec::new();
        loop {
            match answers.next() {
                Ok(Some(answer)) => heard.push(answer),
                Ok(None) => return Ok(heard),
                Err(error) => return Err(error),
            }
        }
    };
    assert_eq!(
        hears(
            &run,
            &[
                frame(Kind::Stderr, "abc"),
                frame(Kind::Stdout, "de"),
                frame(Kind::Stdout, "f"),
                message(&done)
            ]
        ),
        Ok(vec![
            Answer::Stderr(b"abc".to_vec()),
            Answer::Stdout(b"de".to_vec()),
            Answer::Stdout(b"f".to_vec()),
            Answer::Response(done.clone()),
        ])
    );
    let pong = Response::Pong(Pong {
        protocol: 1,
        agent: "1".into(),
        capabilities: Vec::new(),
        frozen: false,
    });
    let is = |found: AnswerError| move |error: AnswerError| error == found;
    let cases: Vec<(&Request, Vec<Vec<u8>>, Test)> = vec![
        (
            &Request::Ping,
            vec![frame(Kind::Stdout, "x")],
            Box::new(is(AnswerError::TooMuch(Kind::Stdout))),
        ),
        (
            &run,
            vec![frame(Kind::Stdout, "abcd")],
            Box::new(is(AnswerError::TooMuch(Kind::Stdout))),
        ),
        (
            &run,
            vec![frame(Kind::Stderr, "")],
            Box::new(is(AnswerError::Empty(Kind::Stderr))),
        ),
        (
            &run,
            vec![frame(Kind::Stdin, "a")],
            Box::new(is(AnswerError::Unexpected(Kind::Stdin))),
        ),
        (&run, vec![message(&pong)], Box::new(is(AnswerError::Mismatch("exec")))),
        (
            &run,
            vec![message(&done), frame(Kind::Stdout, "a")],
            Box::new(is(AnswerError::Trailing)),
        ),
        (&run, vec![message(&done), vec![0]], Box::new(is(AnswerError::Trailing))),
        (
            &run,
            vec![vec![9]],
            Box::new(is(AnswerError::Frame(FrameError::Kind(9)))),
        ),
        (
            &run,
            vec![frame(Kind::Message, "\"\x1b[2J\"")],
            Box::new(|error| matches!(error, AnswerError::NotAResponse(why) if !why.contains('\x1b'))),
        ),
        (
            &Request::Info,
            vec![frame(Kind::Message, "[".repeat(60_000))],
            Box::new(|error| matches!(error, AnswerError::NotAResponse(_))),
        ),
    ];
    for (request, bytes, test) in cases {
        let error = hears(request, &bytes).unwrap_err();
        assert!(test(error.clone()), "{error}");
    }
}

#[test]
fn an_agent_hears_one_request_and_stdin_only_where_it_was_announced() {
    let with_stdin = exec(|exec| exec.stdin = true);
    let hears = |bytes: &[Vec<u8>]| {
        let mut questions = Questions::default();
        questions.push(&bytes.concat());
        let mut heard = Vec::new();
        loop {
            match questions.next() {
                Ok(Some(question)) => heard.push(question),
                Ok(None) => return Ok(heard),
                Err(error) => return Err(error),
            }
        }
    };
    assert_eq!(
        hears(&[message(&with_stdin), frame(Kind::Stdin, "ab"), frame(Kind::Stdin, "")]),
        Ok(vec![
            Question::Request(with_stdin.clone()),
            Question::Stdin(b"ab".to_vec()),
            Question::EndOfStdin,
        ])
    );
    for (bytes, kind) in [
        (vec![frame(Kind::Stdin, "a")], Kind::Stdin),
        (vec![message(&Request::Ping), frame(Kind::Stdin, "")], Kind::Stdin),
        (vec![message(&Request::Ping), message(&Request::Ping)], Kind::Message),
        (
            vec![message(&with_stdin), frame(Kind::Stdin, ""), frame(Kind::Stdin, "a")],
            Kind::Stdin,
        ),
        (vec![message(&with_stdin), message(&Request::Ping)], Kind::Message),
        (vec![message(&with_stdin), frame(Kind::Stdout, "a")], Kind::Stdout),
    ] {
        assert_eq!(hears(&bytes), Err(QuestionError::Unexpected(kind)));
    }
    for nonsense in ["", "{", r#""dance""#, r#"{"freeze":{"timeoutMs":0}}"#] {
        assert!(
            matches!(
                hears(&[frame(Kind::Message, nonsense)]),
                Err(QuestionError::NotARequest(_))
            ),
            "{nonsense}"
        );
    }
}

proptest! {
    #[test]
    fn frames_come_whole_however_they_are_cut(payloads in prop::collection::vec((0_usize..4, prop::collection::vec(any::<u8>(), 0..40)), 0..12), cut in 1_usize..50) {
        let kinds = [Kind::Message, Kind::Stdin, Kind::Stdout, Kind::Stderr];
        let frames: Vec<Frame> = payloads.into_iter().map(|(kind, payload)| Frame { kind: kinds[kind], payload }).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| encode(frame.kind, &frame.payload).unwrap()).collect();
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(cut) {
            decoder.push(piece);
            while let Some(frame) = decoder.next().unwrap() {
                found.push(frame);
            }
        }
        prop_assert_eq!(found, frames);
        prop_assert!(!decoder.is_within_frame());
    }
}
