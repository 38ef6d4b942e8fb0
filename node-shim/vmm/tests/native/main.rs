//! Whole VMs on this machine's own `/dev/kvm`, with a guest of our own: it runs on `KVM_PVM` too, where no ordinary kernel does.
#![allow(missing_docs, reason = "a test")]

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant, SystemTime};

use node_shim_protocol::control::{FailureKind, Response, SnapshotDone, VmState, VmStatus};

use self::vm::{Place, Report, Vm};

mod disks;
mod guest;
mod isolation;
mod lent;
mod vm;

const MIB: u64 = 1 << 20;
/// What the guest puts into an XMM register.
const XMM: u64 = 0x0123_4567_89ab_cdef;

/// Whether there is a KVM to test with. Where there is none, says so as loudly as a passing test can.
fn has_kvm() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &opened {
        eprintln!("\n*** SKIPPED: this test needs /dev/kvm, which cannot be opened here: {error} ***\n");
    }
    opened.is_ok()
}

fn status(vm: &Vm) -> VmStatus {
    let response = vm.ask(&["status"]);
    let Response::Status(status) = response else {
        panic!("{response:?}")
    };
    status
}

fn snapshot(vm: &Vm, folder: &std::path::Path, more: &[&str]) -> SnapshotDone {
    let arguments = [&["snapshot", folder.to_str().unwrap()], more].concat();
    let response = vm.ask(&arguments);
    let Response::Snapshot(done) = response else {
        panic!("{response:?}")
    };
    done
}

fn refused(response: &Response) -> FailureKind {
    let Response::Error(failure) = response else {
        panic!("{response:?}")
    };
    failure.kind
}

/// Both counters, and the clock, go on from what they were.
fn assert_goes_on(before: Report, after: Report) {
    assert_eq!((after.counter, after.xmm), (after.register, XMM), "{after:?}");
    assert!(after.counter > before.counter, "{before:?} {after:?}");
    assert!(after.clock_ns > before.clock_ns, "{before:?} {after:?}");
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut vm = Vm::boot(&place, 64 * MIB, "[]");
    let before = vm.report();
    assert_eq!(vm.ask(&["pause"]), Response::Done);
    assert_eq!(vm.ask(&["pause"]), Response::Done, "again");
    assert_eq!(status(&vm).state, VmState::Paused);
    let paused = Instant::now();
    // What is typed waits in the UART, and nobody reads it while CPU time of the process does not grow.
    vm.type_in("s");
    let cpu_time =
        || std::fs::read_to_string(format!("/proc/{}/task/{}/schedstat", vm.pid(), vcpu_thread(vm.pid()))).unwrap();
    let first = cpu_time();
    assert_eq!(status(&vm).state, VmState::Paused);
    assert_eq!(cpu_time(), first, "the vCPU's thread has not run");
    let stood_still = paused.elapsed();
    assert_eq!(vm.ask(&["resume"]), Response::Done);
    let after = Report::parse(&vm.line());
    assert_goes_on(before, after);
    assert!(
        u128::from(after.clock_ns - before.clock_ns) >= stood_still.as_nanos(),
        "kvmclock goes on"
    );
    assert_eq!(status(&vm).state, VmState::Booting);
    vm.type_in("q");
    assert_eq!(vm.end().0, Some(0));
}

/// Id of the thread of the first vCPU.
fn vcpu_thread(pid: u32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut threads = threads.map(|thread| thread.unwrap().path());
    let path = threads.find(|path| std::fs::read_to_string(path.join("comm")).unwrap().trim() == "vcpu0");
    path.unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn pausing_again_and_again_loses_nothing() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut vm = Vm::boot(&place, 64 * MIB, "[]");
    let sum = vm.sum();
    let mut last = vm.report();
    for _ in 0..20 {
        // In the middle of the output of an answer, byte by byte.
        vm.type_in("s");
        assert_eq!(vm.ask(&["pause"]), Response::Done);
        assert_eq!(vm.ask(&["resume"]), Response::Done);
        let report = Report::parse(&vm.line());
        assert_goes_on(last, report);
        last = report;
    }
    assert_eq!(vm.sum(), sum);
}

#[test]
fn a_snapshot_is_restored_twice_and_each_goes_on_by_itself() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let disks = r#"[{"name": "data", "source": {"empty": {"sizeBytes": 1048576}}}]"#;
    let mut vm = Vm::boot(&place, 128 * MIB, disks);
    let sum = vm.sum();
    let folder = place.path("snapshot");
    std::os::unix::fs::FileExt::write_all_at(
        &File::options()
            .write(true)
            .open(place.path("scratch/data.raw"))
            .unwrap(),
        b"contents",
        4096,
    )
    .unwrap();
    let before = vm.report();
    let real = SystemTime::now();
    let done = snapshot(&vm, &folder, &[]);
    assert!((16 * MIB..24 * MIB).contains(&done.memory_bytes), "{done:?}");
    assert!(std::fs::metadata(folder.join("memory")).unwrap().blocks() * 512 < 24 * MIB);
    assert_eq!(status(&vm).state, VmState::Booting, "it goes on");
    let original = vm.report();
    assert_goes_on(before, original);
    assert_eq!(
        refused(&vm.ask(&["snapshot", folder.to_str().unwrap()])),
        FailureKind::Failed,
        "it is there already"
    );
    assert_goes_on(original, vm.report());
    drop(vm);

    for name in ["first", "second"] {
        let scratch = place.path(name);
        let mut vm = Vm::restore(&folder, &scratch, place.path(&format!("{name}.sock")));
        let after = vm.report();
        let elapsed = real.elapsed().unwrap();
        assert_goes_on(before, after);
        assert_eq!(vm.sum(), sum);
        let clock = Duration::from_nanos(after.clock_ns - before.clock_ns);
        assert!(
            clock.abs_diff(elapsed) < Duration::from_secs(1),
            "kvmclock: {clock:?}, wall clock: {elapsed:?}"
        );
        let status = status(&vm);
        assert!(status.restored_in_us.is_some(), "{status:?}");
        assert_eq!((status.vcpus, status.memory_bytes), (1, 128 * MIB));
        let disk = std::fs::read(scratch.join("data.raw")).unwrap();
        assert_eq!(&disk[4096..4104], b"contents");
        // It can be changed, saved again and restored from that.
        vm.type_in("t");
        assert_eq!(vm.line(), "touched");
        let again = place.path(&format!("{name}-again"));
        snapshot(&vm, &again, &["--stay-paused"]);
        assert_eq!(self::status(&vm).state, VmState::Paused);
        assert_eq!(vm.ask(&["power", "off"]), Response::Done);
        let (code, errors) = vm.end();
        assert_eq!(code, Some(10), "{errors}");
        let mut vm = Vm::restore(
            &again,
            &place.path(&format!("{name}-scratch")),
            place.path("again.sock"),
        );
        assert_goes_on(after, vm.report());
        assert_eq!(vm.sum(), sum);
        // A reset starts from the kernel, and nothing of the snapshot is left.
        vm.type_in("x");
        assert_eq!(vm.line(), "up");
        assert_eq!(vm.sum(), sum);
        assert_eq!(vm.ask(&["power", "off"]), Response::Done);
    }
}

#[test]
fn a_damaged_snapshot_is_refused_with_what_to_do() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let vm = Vm::boot(&place, 64 * MIB, "[]");
    let folder = place.path("snapshot");
    snapshot(&vm, &folder, &[]);
    drop(vm);
    let state = std::fs::read(folder.join("state")).unwrap();
    let try_with = |state: &[u8]| {
        std::fs::write(folder.join("state"), state).unwrap();
        Vm::restore(&folder, &place.path("scratch"), place.path("r.sock")).end()
    };
    let mut damaged = state.clone();
    damaged[state.len() / 2] ^= 1;
    let (code, errors) = try_with(&damaged);
    assert!(
        code == Some(20) && errors.contains("checksum is wrong"),
        "{code:?} {errors}"
    );
    let mut older = state.clone();
    older[8] = 0;
    let (code, errors) = try_with(&older);
    assert!(
        code == Some(20) && errors.contains("format version 0"),
        "{code:?} {errors}"
    );
    std::fs::write(folder.join("state"), &state).unwrap();
    File::options()
        .write(true)
        .open(folder.join("memory"))
        .unwrap()
        .set_len(MIB)
        .unwrap();
    let (code, errors) = try_with(&state);
    assert!(
        code == Some(20) && errors.contains("should be 67108864 bytes"),
        "{code:?} {errors}"
    );
}

#[test]
fn requests_that_cannot_be_are_refused_and_the_guest_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut vm = Vm::boot(&place, 64 * MIB, "[]");
    let memory = (128 * MIB).to_string();
    for request in [
        vec!["resize", "--memory-bytes", &memory],
        vec!["resize", "--vcpus", "2"],
        vec!["resize", "--vcpus", "0"],
        vec!["detach-disk", "data"],
        vec!["detach-network", "default"],
        vec!["attach-disk", "No Name", "/dev/null"],
    ] {
        assert_eq!(refused(&vm.ask(&request)), FailureKind::Invalid, "{request:?}");
    }
    assert_eq!(
        refused(&vm.ask(&["attach-disk", "data", "/dev/null"])),
        FailureKind::Failed
    );
    let nowhere = place.path("no/where");
    assert_eq!(
        refused(&vm.ask(&["snapshot", nowhere.to_str().unwrap()])),
        FailureKind::Failed
    );
    assert_eq!(refused(&vm.ask(&["snapshot", "relative"])), FailureKind::Failed);
    let report = vm.report();
    assert_eq!(vm.ask(&["power", "reset"]), Response::Done);
    assert_eq!(vm.line(), "up");
    assert!(vm.report().counter < report.counter + 1_000_000);
    assert_eq!(status(&vm).resets, 1);
    // The guest knows no power button: the grace period ends it, also from a pause.
    assert_eq!(vm.ask(&["pause"]), Response::Done);
    assert_eq!(refused(&vm.ask(&["power", "reset"])), FailureKind::Refused);
    assert_eq!(vm.ask(&["power", "button"]), Response::Done);
    let (code, errors) = vm.end();
    assert_eq!(code, Some(10), "{errors}");
    assert!(!place.path("control.sock").exists(), "the socket goes with its VM");
}

#[test]
fn vcpus_and_disks_come_on_request_and_a_snapshot_has_the_vcpus() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut vm = Vm::boot_with(&place, 64 * MIB, "[]", r#", "maxCores": 3"#);
    assert_eq!(status(&vm).vcpus, 1);
    assert_eq!(vm.ask(&["resize", "--vcpus", "3"]), Response::Done);
    assert_eq!(status(&vm).vcpus, 3, "the guest need not have taken them");
    let before = vm.report();
    let folder = place.path("snapshot");
    snapshot(&vm, &folder, &[]);
    std::fs::write(place.path("disk"), [0; 4096]).unwrap();
    let disk = place.path("disk");
    let attach = ["attach-disk", "more", disk.to_str().unwrap()];
    assert_eq!(vm.ask(&attach), Response::Done);
    assert_eq!(status(&vm).disks, ["more"]);
    assert_eq!(refused(&vm.ask(&attach)), FailureKind::Invalid, "it is there");
    let again = ["attach-disk", "again", disk.to_str().unwrap()];
    assert_eq!(refused(&vm.ask(&again)), FailureKind::Failed, "it is in use");
    let another = place.path("another");
    let response = vm.ask(&["snapshot", another.to_str().unwrap()]);
    assert_eq!(refused(&response), FailureKind::Failed, "it would leave the disk out");
    // Gone with a reset at the latest: a guest that starts anew uses nothing.
    assert_eq!(vm.ask(&["detach-disk", "more"]), Response::Done);
    assert_eq!(vm.ask(&["power", "reset"]), Response::Done);
    assert_eq!(vm.line(), "up");
    assert_eq!((status(&vm).disks, status(&vm).vcpus), (Vec::new(), 3));
    drop(vm);
    let mut vm = Vm::restore(&folder, &place.path("restored"), place.path("r.sock"));
    assert_goes_on(before, vm.report());
    assert_eq!(status(&vm).vcpus, 3);
}

#[test]
fn the_console_is_shared_with_the_control_socket() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut vm = Vm::boot(&place, 64 * MIB, "[]");
    let mut client = Command::new(env!("CARGO_BIN_EXE_node-shim"))
        .args(["control", "--socket"])
        .arg(vm.socket())
        .arg("console")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(client.stdout.take().unwrap());
    client.stdin.as_mut().unwrap().write_all(b"c").unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), vm.line(), "both see the answer");
    // More input than the UART holds at once: nothing is lost.
    client.stdin.as_mut().unwrap().write_all(&[b's'; 200]).unwrap();
    let mut last = None;
    for _ in 0..200 {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let report = Report::parse(line.trim_end());
        if let Some(last) = last {
            assert_goes_on(last, report);
        }
        last = Some(report);
    }
    vm.type_in("q");
    assert!(client.wait().unwrap().success(), "it ends with the VM");
}
