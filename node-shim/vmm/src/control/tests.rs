use std::time::Duration;

use super::*;

fn server() -> (tempfile::TempDir, Server, Poll) {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::bind(&directory.path().join("control.sock")).unwrap();
    let poll = Poll::new().unwrap();
    server.watch(&poll).unwrap();
    (directory, server, poll)
}

/// Waits for what happens next and lets the server deal with it.
fn step(server: &mut Server, poll: &Poll) -> Vec<(ClientId, Received)> {
    let mut received = Vec::new();
    for source in poll.wait(Some(Duration::from_secs(5))).unwrap() {
        // Nothing else is in the set than clients and the listener.
        if let Source::ControlClient(id) = source {
            received.push((id, server.receive(poll, id)));
        } else {
            server.accept(poll);
        }
    }
    received
}

fn response(client: &OwnedFd) -> Option<Response> {
    packet::receive(client).unwrap().map(|(response, _)| response)
}

#[test]
fn a_request_is_read_answered_and_followed_by_the_next() {
    let (_directory, mut server, poll) = server();
    let client = packet::connect(&server.path).unwrap();
    step(&mut server, &poll);
    for request in [Request::Status, Request::Pause] {
        packet::send(&client, &request, &[]).unwrap();
        let (id, received) = step(&mut server, &poll).pop().unwrap();
        assert!(matches!(received, Received::Request(got, descriptors) if got == request && descriptors.is_empty()));
        // Until it is answered nothing more is read.
        packet::send(&client, &Request::Resume, &[]).unwrap();
        assert!(poll.wait(Some(Duration::ZERO)).unwrap().is_empty());
        server.answer(&poll, id, &Response::Done);
        assert_eq!(response(&client), Some(Response::Done));
        let (id, _) = step(&mut server, &poll).pop().unwrap();
        server.answer(&poll, id, &Response::Done);
        assert_eq!(response(&client), Some(Response::Done));
    }
}

#[test]
fn nonsense_is_answered_and_the_client_stays() {
    let (_directory, mut server, poll) = server();
    let client = packet::connect(&server.path).unwrap();
    step(&mut server, &poll);
    let long = vec![b' '; MAX_PACKET_BYTES + 1];
    for nonsense in [b"{".as_slice(), b"\"launch\"", b"\xff\xff", &long] {
        rustix::net::send(&client, nonsense, SendFlags::empty()).unwrap();
        assert!(matches!(step(&mut server, &poll).pop().unwrap().1, Received::Nothing));
        let Some(Response::Error(failure)) = response(&client) else {
            panic!("no error for {nonsense:?}")
        };
        assert_eq!(failure.kind, FailureKind::Invalid);
    }
    packet::send(&client, &Request::Status, &[]).unwrap();
    assert!(matches!(
        step(&mut server, &poll).pop().unwrap().1,
        Received::Request(..)
    ));
}

#[test]
fn clients_are_bounded_and_a_place_becomes_free() {
    let (_directory, mut server, poll) = server();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS_MAX {
        clients.push(packet::connect(&server.path).unwrap());
        step(&mut server, &poll);
    }
    let late = packet::connect(&server.path).unwrap();
    step(&mut server, &poll);
    assert!(matches!(response(&late), Some(Response::Error(failure)) if failure.kind == FailureKind::Refused));
    assert_eq!(response(&late), None, "and the connection is closed");
    clients.pop();
    step(&mut server, &poll);
    let next = packet::connect(&server.path).unwrap();
    step(&mut server, &poll);
    packet::send(&next, &Request::Status, &[]).unwrap();
    assert_eq!(step(&mut server, &poll).len(), 1);
}

#[test]
fn a_client_that_does_not_read_is_disconnected_and_blocks_nobody() {
    let (_directory, mut server, poll) = server();
    let client = packet::connect(&server.path).unwrap();
    step(&mut server, &poll);
    let big = Response::error(FailureKind::Failed, "x".repeat(MAX_PACKET_BYTES / 2));
    packet::send(&client, &Request::Status, &[]).unwrap();
    let (id, _) = step(&mut server, &poll).pop().unwrap();
    for _ in 0..64 {
        server.answer(&poll, id, &big);
    }
    assert!(server.clients.is_empty());
}

#[test]
fn console_input_waits_for_the_guest() {
    let (_directory, mut server, poll) = server();
    let client = packet::connect(&server.path).unwrap();
    step(&mut server, &poll);
    packet::send(&client, &Request::Console, &[]).unwrap();
    let (id, _) = step(&mut server, &poll).pop().unwrap();
    let output = server.make_console(id).unwrap();
    server.answer(&poll, id, &Response::Done);
    assert_eq!(response(&client), Some(Response::Done));
    rustix::net::send(&client, b"typed", SendFlags::empty()).unwrap();
    assert!(matches!(step(&mut server, &poll).pop().unwrap().1, Received::Console));
    let mut got = Vec::new();
    server.console_input(&poll, |bytes| {
        got.extend_from_slice(&bytes[..2]);
        2
    });
    rustix::net::send(&client, b"more", SendFlags::empty()).unwrap();
    assert!(
        poll.wait(Some(Duration::ZERO)).unwrap().is_empty(),
        "the guest is not done"
    );
    let mut all = |bytes: &[u8]| {
        got.extend_from_slice(bytes);
        bytes.len()
    };
    server.console_input(&poll, &mut all);
    assert!(matches!(step(&mut server, &poll).pop().unwrap().1, Received::Console));
    server.console_input(&poll, &mut all);
    assert_eq!(got, b"typedmore");
    // Output never waits.
    while send_console(&output, &[0; CONSOLE_PACKET_BYTES]).unwrap() {}
    drop(client);
    assert!(send_console(&output, b"x").is_err());
}

#[test]
fn a_stale_socket_is_replaced_and_nothing_else() {
    let (directory, server, _poll) = server();
    let path = directory.path().join("control.sock");
    assert!(matches!(Server::bind(&path), Err(ControlError::InUse(_))));
    // As a killed process leaves it.
    let Server { listener, .. } = &server;
    rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();
    std::mem::forget(server);
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(Server::bind(&file), Err(ControlError::Bind { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let next = Server::bind(&path).unwrap();
    drop(next);
    assert!(!path.exists());
}

#[test]
fn only_the_vms_user_and_root_are_heard() {
    assert!(is_welcome(65532, 65532) && is_welcome(0, 65532));
    assert!(!is_welcome(65532, 0) && !is_welcome(65534, 65532));
}
