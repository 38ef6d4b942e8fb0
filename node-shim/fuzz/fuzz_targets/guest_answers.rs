//! A hostile guest in the place of its agent: whatever it sends, a host hears no more than it asked for, in texts that can be printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_protocol::guest::{Answer, Answers, Exec, Freeze, Request, Response, Shutdown};

/// Bytes of output that the command may send.
const LIMIT: u64 = 100;

fn request(number: u8) -> Request {
    match number % 7 {
        0 => Request::Ping,
        1 => Request::Info,
        2 => Request::Shutdown(Shutdown::PowerOff),
        3 => Request::Freeze(Freeze { timeout_ms: 1 }),
        4 => Request::Thaw,
        5 => Request::Online,
        _ => Request::Exec(Exec {
            command: vec!["true".into()],
            environment: std::collections::BTreeMap::new(),
            directory: None,
            stdin: false,
            timeout_ms: 1,
            output_limit_bytes: LIMIT,
        }),
    }
}

fn check(response: &Response) {
    let text = serde_json::to_string(response).expect("a response is JSON");
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert_eq!(
        &serde_json::from_str::<Response>(&text).expect("its own text"),
        response
    );
}

// The first byte is the request's number, the second one says how the rest is cut.
fuzz_target!(|bytes: &[u8]| {
    let [number, cut, stream @ ..] = bytes else { return };
    let request = request(*number);
    let mut answers = Answers::new(&request);
    let (mut stdout, mut stderr, mut ended) = (0, 0, false);
    for piece in stream.chunks(usize::from(*cut) * 64 + 1) {
        answers.push(piece);
        loop {
            match answers.next() {
                Ok(Some(answer)) => {
                    assert!(!ended, "something after the end");
                    match answer {
                        Answer::Stdout(bytes) => stdout += bytes.len() as u64,
                        Answer::Stderr(bytes) => stderr += bytes.len() as u64,
                        Answer::Response(response) => {
                            assert!(request.is_answered_by(&response));
                            check(&response);
                            ended = true;
                        }
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().chars().any(char::is_control), "{error}");
                    return;
                }
            }
        }
    }
    assert!(stdout.max(stderr) <= LIMIT && (stdout == 0 || matches!(request, Request::Exec(_))));
});
