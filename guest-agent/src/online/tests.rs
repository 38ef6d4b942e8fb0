use super::*;

/// A tree as sysfs has it, of plain files.
fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let system = System {
        sys: directory.path().to_owned(),
        proc: directory.path().to_owned(),
    };
    (directory, system)
}

/// A plain file is not emptied by who opens it as sysfs wants it, so what was longer has a rest.
fn state(system: &System, path: &str) -> String {
    fs::read_to_string(system.sys().join(path)).unwrap()
}

#[test]
fn what_is_offline_comes_online_and_nothing_else_is_touched() {
    let (_directory, system) = tree(&[
        ("devices/system/cpu/online", "0-1"),
        ("devices/system/cpu/cpu1/online", "1\n"),
        ("devices/system/cpu/cpu2/online", "0\n"),
        ("devices/system/cpu/cpuidle/online", "0\n"),
        ("devices/system/cpu/cpu0/topology/core_id", "0"),
        ("devices/system/memory/auto_online_blocks", "offline"),
        ("devices/system/memory/memory0/state", "online\n"),
        ("devices/system/memory/memory32/state", "offline"),
        ("devices/system/memory/memory33/state", "going-offline"),
        ("module/memory_hotplug/parameters/online_policy", "contig-zones\n"),
    ]);
    let done = Online {
        cpus: 1,
        memory_blocks: 1,
        failed: 0,
    };
    assert_eq!(system.online_all(), done);
    assert_eq!(state(&system, "devices/system/cpu/cpu2/online"), "1\n");
    assert_eq!(state(&system, "devices/system/cpu/cpuidle/online"), "0\n");
    assert_eq!(state(&system, "devices/system/memory/memory32/state"), "onlinee");
    assert_eq!(state(&system, "devices/system/memory/memory33/state"), "going-offline");
    assert_eq!(state(&system, "devices/system/memory/auto_online_blocks"), "offline");
    assert_eq!(system.online_all(), Online::default(), "twice");
}

#[test]
fn a_kernel_without_policies_is_told_that_memory_is_movable() {
    let (_directory, system) = tree(&[("devices/system/memory/memory32/state", "offline")]);
    assert_eq!(system.online_all().memory_blocks, 1);
    assert_eq!(state(&system, "devices/system/memory/memory32/state"), "online_movable");
}

#[test]
fn the_policy_is_chosen_only_where_nobody_has() {
    let file = "module/memory_hotplug/parameters/online_policy";
    for (before, after) in [
        ("contig-zones\n", "auto-movable\n"),
        ("auto-movable\n", "auto-movable\n"),
    ] {
        let (_directory, system) = tree(&[(file, before)]);
        system.choose_policy();
        assert_eq!(state(&system, file), after);
    }
    let (_directory, system) = tree(&[]);
    system.choose_policy();
    assert!(!system.policy().exists());
}

#[test]
fn what_the_kernel_does_not_take_is_counted() {
    let (_directory, system) = tree(&[("devices/system/cpu/cpu1/online", "0")]);
    let file = system.sys().join("devices/system/cpu/cpu1/online");
    // A file that root too may not write to: there are such on a read-only file system, and in a directory's place.
    let mut done = Online::default();
    fs::remove_file(&file).unwrap();
    system.online_one(Kind::Cpu, "cpu1", &mut done);
    assert_eq!(done, Online::default(), "a device that is gone is no failure");
    std::os::unix::fs::symlink("/proc/self/limits", &file).unwrap();
    system.online_one(Kind::Cpu, "cpu1", &mut done);
    assert_eq!(done, Online::default(), "nor is one in another state");
}

#[test]
fn what_failed_is_tried_again_for_a_while() {
    let failed = Online {
        failed: 1,
        ..Online::default()
    };
    let mut retries = Retries::default();
    assert_eq!(retries.pause(), None, "nothing failed");
    retries.tried_one(&failed);
    let mut pauses = Vec::new();
    while let Some(pause) = retries.pause() {
        pauses.push(pause.as_secs());
        retries.tried_one(&Online::default());
        retries.tried_all(&failed);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32]);
    retries.tried_one(&failed);
    assert_eq!(retries.pause(), Some(Duration::from_secs(1)), "another one");
    retries.tried_all(&Online::default());
    assert_eq!(retries.pause(), None, "it works");
}
