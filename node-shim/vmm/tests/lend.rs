//! `node-shim lend` as a volume pod runs it, with an agent that the test plays. It needs no KVM.
#![allow(missing_docs, reason = "a test")]

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use node_shim_protocol::agent::{Request, Response};
use node_shim_protocol::{ExitReason, Termination};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix, SocketType,
};

fn listen(path: &Path) -> OwnedFd {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    socket
}

fn receive(socket: &OwnedFd) -> (Request, Vec<OwnedFd>) {
    let mut text = vec![0; 65536];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::empty(),
    );
    let rights = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        RecvAncillaryMessage::ScmCredentials(_) | _ => None,
    });
    let descriptors = rights.flatten().collect();
    (
        serde_json::from_slice(&text[..message.unwrap().bytes]).unwrap(),
        descriptors,
    )
}

fn send(socket: &OwnedFd, response: &Response) {
    rustix::net::send(socket, &serde_json::to_vec(response).unwrap(), SendFlags::empty()).unwrap();
}

/// Starts it with this source.
fn start(directory: &Path, source: &str) -> Child {
    let config = format!(
        r#"{{"version":1,"disk":{{"name":"data","source":{source}}},"scratch":{:?}}}"#,
        directory.to_str().unwrap()
    );
    std::fs::write(directory.join("disk.json"), config).unwrap();
    Command::new(env!("CARGO_BIN_EXE_node-shim"))
        .arg("lend")
        .args(["--pod-uid", "v1", "--config"])
        .arg(directory.join("disk.json"))
        .arg("--agent")
        .arg(directory.join("agent.sock"))
        .arg("--termination-log")
        .arg(directory.join("end"))
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn end(directory: &Path) -> Termination {
    serde_json::from_str(&std::fs::read_to_string(directory.join("end")).unwrap()).unwrap()
}

fn terminate(lender: &Child) {
    let pid = rustix::process::Pid::from_child(lender);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

#[test]
fn a_disk_is_lent_until_nobody_has_it_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let listener = listen(&directory.path().join("agent.sock"));
    let mut lender = start(directory.path(), r#"{"empty":{"sizeBytes":1048576}}"#);
    let agent = rustix::net::accept(&listener).unwrap();
    let (request, descriptors) = receive(&agent);
    assert!(matches!(request, Request::Lend { .. }), "{request:?}");
    let [disk] = <[_; 1]>::try_from(descriptors).unwrap();
    assert_eq!(File::from(disk).metadata().unwrap().len(), 1 << 20);
    send(&agent, &Response::Lent);
    // The agent restarts, and SIGTERM comes before it is back.
    drop(agent);
    let agent = rustix::net::accept(&listener).unwrap();
    terminate(&lender);
    assert!(matches!(receive(&agent).0, Request::Lend { .. }));
    send(&agent, &Response::Lent);
    assert_eq!(receive(&agent).0, Request::Withdraw);
    assert!(lender.try_wait().unwrap().is_none(), "a guest may still have it");
    send(&agent, &Response::Returned);
    assert_eq!(lender.wait().unwrap().code(), Some(0));
    assert_eq!(end(directory.path()).reason, ExitReason::PoweredOff);
}

#[test]
fn what_was_never_lent_needs_nobody_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let listener = listen(&directory.path().join("agent.sock"));
    let mut lender = start(directory.path(), r#"{"empty":{"sizeBytes":1048576}}"#);
    drop(rustix::net::accept(&listener).unwrap());
    drop(listener);
    terminate(&lender);
    assert_eq!(lender.wait().unwrap().code(), Some(0));
}

#[test]
fn a_disk_that_is_not_there_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let source = format!(r#"{{"file":{{"path":{:?}}}}}"#, directory.path().join("disk.img"));
    let code = start(directory.path(), &source).wait().unwrap().code();
    assert_eq!(code, Some(i32::from(ExitReason::DiskUnavailable.code())));
    let end = end(directory.path());
    assert!(end.message.contains("put a raw disk image there"), "{}", end.message);
}
