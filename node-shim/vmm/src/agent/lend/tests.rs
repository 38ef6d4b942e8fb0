use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::*;

/// A listener at `path` whose connections wait for what is said.
fn listen(path: &Path) -> OwnedFd {
    // What an agent that restarts leaves behind.
    let _ = std::fs::remove_file(path);
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let socket = socket.unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    socket
}

fn hear(agent: &OwnedFd) -> Option<(Request, usize)> {
    let heard = packet::receive::<Request>(agent).unwrap();
    heard.map(|(request, descriptors)| (request, descriptors.len()))
}

fn is_lend(heard: Option<(Request, usize)>) -> bool {
    matches!(heard, Some((Request::Lend { version: VERSION, pod_uid, .. }, 1)) if pod_uid == "v1")
}

/// Lends a file until it ends.
fn lender(socket: &Path) -> Result<(), AgentError> {
    let signals = Signals::none().unwrap();
    let disk = File::open("/dev/null").unwrap();
    let address = Address {
        socket: socket.to_owned(),
        pod_uid: "v1".to_owned(),
    };
    lend(&address, &DiskOptions::default(), &disk, &signals)
}

#[test]
fn a_disk_is_lent_again_to_an_agent_that_was_restarted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let first = listen(&path);
    std::thread::scope(|scope| {
        let lender = scope.spawn(|| lender(&path));
        let agent = rustix::net::accept(&first).unwrap();
        assert!(is_lend(hear(&agent)));
        packet::send(&agent, &Response::Lent, &[]).unwrap();
        let next = listen(&path);
        drop((agent, first));
        let agent = rustix::net::accept(&next).unwrap();
        assert!(is_lend(hear(&agent)));
        packet::send(&agent, &Response::Lent, &[]).unwrap();
        packet::send(&agent, &Response::Returned, &[]).unwrap();
        assert!(lender.join().unwrap().is_ok());
    });
}

#[test]
fn what_can_be_no_more_is_said_and_what_may_pass_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let listener = listen(&path);
    let refuse = |retryable| {
        let agent = rustix::net::accept(&listener).unwrap();
        assert!(is_lend(hear(&agent)));
        let reason = "because".to_owned();
        packet::send(&agent, &Response::Refused { reason, retryable }, &[]).unwrap();
        agent
    };
    std::thread::scope(|scope| {
        let lender = scope.spawn(|| lender(&path));
        drop(refuse(true));
        let _agent = refuse(false);
        let error = lender.join().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the node agent refused: because");
    });
}
