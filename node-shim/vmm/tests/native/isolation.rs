//! What a running VM's process has given up, as the kernel says.

use std::path::Path;

use node_shim_protocol::control::{FailureKind, Response, SeccompMode};

use super::vm::{Place, Vm};
use super::{MIB, has_kvm, refused, status};

/// A field of /proc/PID/task/TID/status.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

/// Names of the threads. Every one has a filter and no way to more privileges.
fn check_threads(pid: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut names = Vec::new();
    for thread in threads {
        let text = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let name = field(&text, "Name:").to_owned();
        // `SECCOMP_MODE_FILTER`.
        assert_eq!(field(&text, "Seccomp:"), "2", "{name}");
        assert_eq!(field(&text, "NoNewPrivs:"), "1", "{name}");
        names.push(name);
    }
    names.sort_unstable();
    names
}

/// No program that the process could start would inherit a descriptor, but for the standard ones.
fn check_descriptors(pid: u32) -> usize {
    let mut count = 0;
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        let path = descriptor.unwrap().path();
        let number: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let flags = i32::from_str_radix(field(&text, "flags:"), 8).unwrap();
        let target = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        assert!(
            number < 3 || flags & CLOSE_ON_EXEC != 0,
            "{number}: {}",
            target.display()
        );
        count += 1;
    }
    count
}

/// `O_CLOEXEC` (Linux include/uapi/asm-generic/fcntl.h).
const CLOSE_ON_EXEC: i32 = 0o200_0000;

#[test]
fn every_thread_has_a_filter_and_every_descriptor_ends_with_the_process() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let disks = r#"[{"name": "data", "source": {"empty": {"sizeBytes": 1048576}}}]"#;
    // Ends `cpu` and opens what the configuration closes.
    let more = format!(
        r#", "maxCores": 2}}, "vsock": {{"guestCid": 3, "socket": "{}""#,
        place.path("vsock").display()
    );
    let vm = Vm::boot_with(&place, 64 * MIB, disks, &more);
    let isolation = status(&vm).isolation;
    assert!(isolation.no_new_privs);
    assert_eq!(isolation.seccomp, SeccompMode::Enforced);
    let names = check_threads(vm.pid());
    for expected in ["blk0", "blk0-io0", "console", "node-shim", "vcpu0"] {
        assert!(names.iter().any(|name| name == expected), "{expected}: {names:?}");
    }
    let descriptors = check_descriptors(vm.pid());
    assert!(descriptors > 20, "{descriptors}");
    // What comes later has filters too.
    assert_eq!(vm.ask(&["resize", "--vcpus", "2"]), Response::Done);
    std::fs::write(place.path("disk"), [0; 4096]).unwrap();
    assert_eq!(
        vm.ask(&["attach-disk", "more", place.path("disk").to_str().unwrap()]),
        Response::Done
    );
    // A new thread names itself; until then, too, it has a filter: that of the thread that started it.
    let all_there = |names: &[String]| {
        ["blk-more", "blk-more-io0", "vcpu1"]
            .iter()
            .all(|expected| names.iter().any(|name| name == expected))
    };
    let tries = (0..1000).find(|_| all_there(&check_threads(vm.pid())));
    assert!(tries.is_some(), "{:?}", check_threads(vm.pid()));
    assert!(check_descriptors(vm.pid()) > descriptors);
}

#[test]
fn snapshots_go_where_the_process_may_write_and_nowhere_else() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let elsewhere = Place::new();
    let mut vm = Vm::boot(&place, 64 * MIB, "[]");
    let snapshot = |vm: &Vm, folder: &Path| vm.ask(&["snapshot", folder.to_str().unwrap()]);
    let response = snapshot(&vm, &elsewhere.path("snapshot"));
    let Response::Error(failure) = &response else {
        panic!("{response:?}")
    };
    assert!(
        failure.message.contains("is not below") && failure.message.contains("--snapshots"),
        "{failure:?}"
    );
    // A name that looks right: this one the kernel refuses.
    if status(&vm).isolation.landlock_abi > 0 {
        std::os::unix::fs::symlink(elsewhere.directory.path(), place.path("link")).unwrap();
        assert_eq!(
            refused(&snapshot(&vm, &place.path("link/snapshot"))),
            FailureKind::Failed
        );
    }
    assert!(std::fs::read_dir(elsewhere.directory.path()).unwrap().next().is_none());
    // What one left that did not come to its end is removed.
    let left = place.path("scratch/.snapshot.partial/disks");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("disk"), "left").unwrap();
    assert!(matches!(
        snapshot(&vm, &place.path("scratch/snapshot")),
        Response::Snapshot(_)
    ));
    assert!(!left.exists());
    assert!(matches!(snapshot(&vm, &place.path("snapshot")), Response::Snapshot(_)));
    vm.type_in("q");
    assert_eq!(vm.end().0, Some(0));
}
