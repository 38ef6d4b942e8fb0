//! Disks that a volume pod lends: they come from the node agent, which the test plays.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use node_shim_protocol::agent::{AttachDisk, DiskOptions, Plugged, Request, Response};
use node_shim_protocol::control::{self, FailureKind};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketType,
};

use crate::vm::{Place, Vm};
use crate::{MIB, has_kvm, status};

fn listen(path: &Path) -> OwnedFd {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    socket
}

fn send(socket: &OwnedFd, response: &Response, descriptors: &[BorrowedFd<'_>]) {
    let text = serde_json::to_vec(response).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::empty()).unwrap();
}

/// The next packet; descriptors are closed.
fn receive(socket: &OwnedFd) -> Request {
    let mut text = vec![0; 65536];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::empty(),
    );
    let bytes = message.unwrap().bytes;
    assert!(bytes > 0, "the shim hung up");
    serde_json::from_slice(&text[..bytes]).unwrap()
}

/// Names and lenders of the disks that the guest was given, as the shim says next.
fn given(request: Request) -> Vec<(String, String)> {
    let (Request::Status(status) | Request::Plugged(Plugged { status, .. })) = request else {
        panic!("{request:?}")
    };
    status.disks.into_iter().map(|disk| (disk.name, disk.lender)).collect()
}

fn answer(socket: &OwnedFd) -> Plugged {
    loop {
        match receive(socket) {
            Request::Plugged(plugged) => return plugged,
            Request::Status(_) => {}
            other @ (Request::Hello { .. }
            | Request::Resume { .. }
            | Request::Resized(_)
            | Request::Lend { .. }
            | Request::Withdraw) => panic!("{other:?}"),
        }
    }
}

fn disk(name: &str, lender: &str) -> AttachDisk {
    AttachDisk {
        name: name.to_owned(),
        lender: lender.to_owned(),
        options: DiskOptions::default(),
    }
}

/// A VM that was granted KVM, and its agent.
fn boot(place: &Place) -> (Vm, OwnedFd) {
    let socket = place.path("agent.sock");
    let listener = listen(&socket);
    let config = place.configure(64 * MIB, "[]", "");
    let arguments = [
        Path::new("--config"),
        &config,
        Path::new("--agent"),
        &socket,
        Path::new("--pod-uid"),
        Path::new("p1"),
    ];
    let mut vm = Vm::spawn(&arguments, place.path("control.sock"));
    let agent = rustix::net::accept(&listener).unwrap();
    assert!(matches!(receive(&agent), Request::Hello { .. }));
    let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let interfaces = Vec::new();
    send(&agent, &Response::Granted { interfaces }, &[kvm.as_fd()]);
    assert_eq!(vm.line(), "up");
    (vm, agent)
}

#[test]
fn what_is_lent_comes_and_goes_and_nothing_hostile_is_taken() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    std::fs::write(place.path("disk"), [0; 4096]).unwrap();
    let file = || File::options().read(true).write(true).open(place.path("disk")).unwrap();
    let (mut vm, agent) = boot(&place);
    let attach = |disk: &AttachDisk, files: &[&File]| {
        let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        send(&agent, &Response::AttachDisk(disk.clone()), &descriptors);
        answer(&agent)
    };
    for (disk, files, kind) in [
        (disk("data", "v1"), vec![], FailureKind::Invalid),
        (disk("data", "v1"), vec![file(), file()], FailureKind::Invalid),
        (disk("No Name", "v1"), vec![file()], FailureKind::Invalid),
        (disk("data", ""), vec![file()], FailureKind::Invalid),
        (
            disk("data", "v1"),
            vec![File::open("/dev/zero").unwrap()],
            FailureKind::Failed,
        ),
        (
            disk("data", "v1"),
            vec![File::open(place.path("disk")).unwrap()],
            FailureKind::Failed,
        ),
    ] {
        let plugged = attach(&disk, &files.iter().collect::<Vec<_>>());
        assert_eq!(plugged.failure.map(|failure| failure.kind), Some(kind), "{disk:?}");
        assert!(plugged.status.disks.is_empty());
    }
    let there = vec![("data".to_owned(), "v1".to_owned())];
    for _ in 0..2 {
        // The same again is there already.
        let plugged = attach(&disk("data", "v1"), &[&file()]);
        assert_eq!(plugged.failure, None);
        assert_eq!(given(Request::Plugged(plugged)), there);
    }
    let other = attach(&disk("data", "v2"), &[&file()]);
    assert_eq!(
        other.failure.map(|failure| failure.kind),
        Some(FailureKind::Invalid),
        "its name is taken"
    );
    assert_eq!(status(&vm).disks, ["data"]);

    // This guest has no ACPI: it gives the disk up with a reset.
    let name = "data".to_owned();
    send(&agent, &Response::DetachDisk { name: name.clone() }, &[]);
    let asked = answer(&agent);
    assert_eq!(asked.failure, None);
    assert_eq!(given(Request::Plugged(asked)), there);
    assert_eq!(vm.ask(&["power", "reset"]), control::Response::Done);
    while !given(receive(&agent)).is_empty() {}
    assert_eq!(vm.line(), "up");
    send(&agent, &Response::DetachDisk { name }, &[]);
    assert_eq!(answer(&agent).failure, None, "it is gone already");
    let again = attach(&disk("data", "v2"), &[&file()]);
    assert_eq!(given(Request::Plugged(again)), [("data".to_owned(), "v2".to_owned())]);
    vm.type_in("q");
    assert_eq!(vm.end().0, Some(0));
}
