//! A hostile host before an agent: whatever it sends, there is one request within its bounds, and stdin only where it was announced.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_protocol::guest::{EXEC_MAX_MS, FREEZE_MAX_MS, OUTPUT_MAX_BYTES, Question, Questions, Request};

fn check(request: &Request) {
    match request {
        Request::Ping | Request::Info | Request::Shutdown(_) | Request::Thaw | Request::Online => {}
        Request::Exec(exec) => {
            assert!(exec.command.first().is_some_and(|name| !name.is_empty()));
            assert!((1..=EXEC_MAX_MS).contains(&exec.timeout_ms) && exec.output_limit_bytes <= OUTPUT_MAX_BYTES);
            // What execve(2) could not be given.
            let variables = exec.environment.iter().flat_map(|(name, value)| [name, value]);
            assert!(!exec.command.iter().chain(variables).any(|text| text.contains('\0')));
        }
        Request::Freeze(freeze) => assert!((1..=FREEZE_MAX_MS).contains(&freeze.timeout_ms)),
    }
    let text = serde_json::to_string(request).expect("a request is JSON");
    assert_eq!(&serde_json::from_str::<Request>(&text).expect("its own text"), request);
}

// The first byte says how the rest is cut.
fuzz_target!(|bytes: &[u8]| {
    let [cut, stream @ ..] = bytes else { return };
    let mut questions = Questions::default();
    let (mut requested, mut stdin_open) = (false, false);
    for piece in stream.chunks(usize::from(*cut) * 64 + 1) {
        questions.push(piece);
        loop {
            match questions.next() {
                Ok(Some(Question::Request(request))) => {
                    assert!(!requested, "two requests");
                    check(&request);
                    requested = true;
                    stdin_open = matches!(request, Request::Exec(exec) if exec.stdin);
                }
                Ok(Some(Question::Stdin(bytes))) => assert!(stdin_open && !bytes.is_empty()),
                Ok(Some(Question::EndOfStdin)) => assert!(std::mem::take(&mut stdin_open)),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
