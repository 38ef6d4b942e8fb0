//! `info`: what the guest says of itself.

mod interfaces;
mod os_release;

use std::fs;
use std::path::Path;

use node_shim_protocol::guest::{Info, Response, TEXT_MAX_BYTES, printable};

use crate::online::System;

/// Where os-release(5) is, the administrator's own first.
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// Asks the kernel. What it does not tell is empty or zero.
pub(crate) fn collect(system: &System) -> Response {
    let names = rustix::system::uname();
    let text = |text: &str| printable(text, TEXT_MAX_BYTES);
    let os = OS_RELEASE.iter().find_map(|path| fs::read_to_string(path).ok());
    let (interfaces, interfaces_omitted) = interfaces::list(&system.sys().join("class/net"));
    let memory = read(&system.proc().join("meminfo"));
    Response::Info(Box::new(Info {
        hostname: text(&names.nodename().to_string_lossy()),
        kernel: text(&names.release().to_string_lossy()),
        os: os.map(|os| os_release::parse(&os)).unwrap_or_default(),
        boot_id: text(&read(&system.proc().join("sys/kernel/random/boot_id"))),
        interfaces,
        interfaces_omitted,
        cpus: count_cpus(&read(&system.sys().join("devices/system/cpu/online"))),
        memory_bytes: meminfo(&memory, "MemTotal"),
        memory_available_bytes: meminfo(&memory, "MemAvailable"),
    }))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// How many CPUs a list of the kernel's names: `0-3,7`.
fn count_cpus(names: &str) -> u32 {
    let count = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    names.trim().split(',').filter_map(count).fold(0, u32::saturating_add)
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        for (list, count) in [
            ("0\n", 1),
            ("0-3\n", 4),
            ("0,2-3,7\n", 4),
            ("", 0),
            ("3-1", 0),
            ("0-4294967295", 0),
            ("x", 0),
        ] {
            assert_eq!(count_cpus(list), count, "{list}");
        }
        let text = "MemTotal:         987652 kB\nMemFree:  1 kB\nMemAvailable:     18446744073709551615 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), 987_652 * 1024);
        assert_eq!(meminfo(text, "MemAvailable"), u64::MAX);
        assert_eq!(meminfo(text, "Mem"), 0);
    }

    #[test]
    fn this_machine_says_something_of_itself_that_a_host_takes() {
        let response = collect(&System::default());
        response.check().unwrap();
        let Response::Info(info) = response else {
            panic!("{response:?}")
        };
        assert!(
            info.cpus > 0 && info.memory_bytes > 1 << 20 && info.memory_available_bytes > 0,
            "{info:?}"
        );
        assert_eq!(
            info.kernel,
            fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim()
        );
        assert_eq!(info.boot_id.len(), 36);
        assert!(
            info.interfaces.iter().all(|interface| interface.name != "lo"),
            "{info:?}"
        );
    }
}
