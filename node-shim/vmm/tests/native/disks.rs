//! Disks of every source, as a process has them: who else may have them, and what a reset makes of them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use node_shim_protocol::control::{FailureKind, Response};
use node_shim_virtio::testing::LoopDevice;

use super::vm::{Place, Vm};
use super::{MIB, has_kvm, refused, status};

/// Exit code of a VM whose disk is not there, or in use.
const DISK_UNAVAILABLE: Option<i32> = Some(31);

/// A disk in a claim's file, in JSON, with more of its settings.
fn in_file(path: &Path, source: &str, more: &str) -> String {
    format!(
        r#"[{{"name": "data"{more}, "source": {{"file": {{"path": "{}"{source}}}}}}}]"#,
        path.display()
    )
}

/// How a VM with these disks ends that does not get as far as its guest.
fn ends(place: &Place, disks: &str) -> (Option<i32>, String) {
    let config = place.configure(64 * MIB, disks, "");
    let mut vm = Vm::spawn(&[Path::new("--config"), &config], place.path("ends.sock"));
    if vm.line_or_end().is_some() {
        // It should not have got there: its exit code says so.
        vm.type_in("q");
    }
    vm.end()
}

#[test]
fn a_claims_file_is_made_and_has_one_vm() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let path = place.path("disk.img");
    let disks = in_file(&path, r#", "sizeBytes": 1048576"#, "");
    let vm = Vm::boot(&place, 64 * MIB, &disks);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (MIB, 0));
    for more in ["", r#", "readOnly": true"#] {
        let (code, errors) = ends(&place, &in_file(&path, "", more));
        assert_eq!(code, DISK_UNAVAILABLE, "{errors}");
        assert!(errors.contains("in use by another process"), "{errors}");
    }
    let response = vm.ask(&["snapshot", place.path("snapshot").to_str().unwrap()]);
    let Response::Error(failure) = response else {
        panic!("{response:?}")
    };
    assert!(
        failure.kind == FailureKind::Failed && failure.message.contains("disk `data`"),
        "{failure:?}"
    );
    drop(vm);
    let read_only = in_file(&path, "", r#", "readOnly": true"#);
    let mut readers = [&place, &Place::new()].map(|place| Vm::boot(place, 64 * MIB, &read_only));
    for vm in &mut readers {
        assert!(vm.report().counter > 0);
    }
    assert_eq!(ends(&place, &disks).0, DISK_UNAVAILABLE, "it is being read");
}

#[test]
fn what_leads_out_of_a_claim_is_not_followed() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let path = place.path("disk.img");
    symlink("/etc/passwd", &path).unwrap();
    let (code, errors) = ends(&place, &in_file(&path, "", r#", "readOnly": true"#));
    assert_eq!(code, DISK_UNAVAILABLE, "{errors}");
    assert!(errors.contains("symlinks in a claim are not followed"), "{errors}");
    fs::remove_file(&path).unwrap();
    fs::write(&path, [0; 1000]).unwrap();
    let (code, errors) = ends(&place, &in_file(&path, "", ""));
    assert_eq!(code, DISK_UNAVAILABLE, "{errors}");
    assert!(errors.contains("whole number of 512-byte sectors"), "{errors}");
}

#[test]
fn every_option_of_a_disk_starts() {
    if !has_kvm() {
        return;
    }
    for more in [
        r#", "io": "threads""#,
        r#", "io": "ioUring""#,
        r#", "cache": "none""#,
        r#", "cache": "none", "io": "threads", "discard": "ignore""#,
    ] {
        let place = Place::new();
        let disks = in_file(&place.path("disk.img"), r#", "sizeBytes": 1048576"#, more);
        let config = place.configure(64 * MIB, &disks, "");
        let mut vm = Vm::spawn(&[Path::new("--config"), &config], place.path("control.sock"));
        let Some(line) = vm.line_or_end() else {
            // Where there is no such thing it is said, and what to do.
            let (_, errors) = vm.end();
            assert!(
                errors.contains("leave `io` out") || errors.contains("leave `cache` out"),
                "{errors}"
            );
            eprintln!("\n*** SKIPPED:{more}: {errors} ***\n");
            continue;
        };
        assert_eq!(line, "up");
        assert_eq!(status(&vm).disks, ["data"]);
        vm.type_in("q");
        assert_eq!(vm.end().0, Some(0));
    }
}

#[test]
fn a_block_device_has_one_vm() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let Some(device) = LoopDevice::new(&place.path("."), 512, 1 << 20) else {
        return;
    };
    let disks = |more: &str| {
        format!(
            r#"[{{"name": "data"{more}, "source": {{"device": {{"path": "{}"}}}}}}]"#,
            device.path.display()
        )
    };
    for more in ["", r#", "cache": "none""#] {
        let mut vm = Vm::boot(&place, 64 * MIB, &disks(more));
        for other in ["", r#", "readOnly": true"#] {
            let (code, errors) = ends(&place, &disks(other));
            assert_eq!(code, DISK_UNAVAILABLE, "{errors}");
            assert!(errors.contains("another VMM uses it, or it is mounted"), "{errors}");
        }
        vm.type_in("q");
        assert_eq!(vm.end().0, Some(0));
    }
    drop(Vm::boot(&place, 64 * MIB, &disks(r#", "readOnly": true"#)));
}

/// Replaces the one key of a `ConfigMap`, as the kubelet does.
fn publish(directory: &Path, version: &str, contents: &str) {
    fs::create_dir_all(directory.join(version)).unwrap();
    fs::write(directory.join(version).join("key"), contents).unwrap();
    symlink(version, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
}

/// Whether a process has a text somewhere in what is its own of memory.
fn has_in_memory(pid: u32, text: &str) -> bool {
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps")).unwrap());
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().any(|line| {
        let line = line.unwrap();
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with("rw-p") {
            return false;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // What is not there any more, or cannot be read, has no text.
        let read = memory.read_at(&mut bytes, start).unwrap_or(0);
        bytes[..read]
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    })
}

#[test]
fn files_are_read_again_when_the_guest_is_reset() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let directory: PathBuf = place.path("conf");
    fs::create_dir(&directory).unwrap();
    publish(&directory, "..1", "the first contents of the key");
    let disks = format!(
        r#"[{{"name": "conf", "readOnly": true, "source": {{"files": {{"path": "{}", "label": "conf"}}}}}}]"#,
        directory.display()
    );
    let mut vm = Vm::boot(&place, 64 * MIB, &disks);
    assert!(has_in_memory(vm.pid(), "the first contents of the key"));
    publish(&directory, "..2", "the second contents of the key");
    fs::remove_dir_all(directory.join("..1")).unwrap();
    assert!(!has_in_memory(vm.pid(), "the second contents of the key"));
    vm.type_in("x");
    assert_eq!(vm.line(), "up");
    assert!(has_in_memory(vm.pid(), "the second contents of the key"));
    // The jail lets it read there and no more; what cannot be read leaves what was read.
    fs::remove_dir_all(&directory).unwrap();
    vm.type_in("x");
    assert_eq!(vm.line(), "up");
    assert!(has_in_memory(vm.pid(), "the second contents of the key"));
    assert_eq!(status(&vm).resets, 2);
    assert_eq!(refused(&vm.ask(&["detach-disk", "none"])), FailureKind::Invalid);
    vm.type_in("q");
    let (code, errors) = vm.end();
    assert_eq!(code, Some(0), "{errors}");
    assert!(
        errors.contains("disk `conf` has the files that it had before"),
        "{errors}"
    );
}
