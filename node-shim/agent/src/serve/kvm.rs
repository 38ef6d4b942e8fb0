//! Whether VMs can run here.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use kvm_ioctls::{Cap, Kvm};
use rustix::fs::{Mode, OFlags};
use tokio::sync::watch;

/// `KVM_API_VERSION` (linux/kvm.h): the only one there is.
const API_VERSION: i32 = 12;
/// What `node-shim` needs, with the names of the KVM API documentation.
const CAPABILITIES: [(Cap, &str); 5] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];
/// Between two trials: KVM says nothing by itself when its module is unloaded or another hypervisor takes the CPUs.
const INTERVAL: Duration = Duration::from_mins(1);

/// Why VMs cannot run here.
#[derive(Debug, thiserror::Error)]
pub(super) enum KvmError {
    /// Not there or not allowed.
    #[error("failed to open /dev/kvm: {0}: load kvm_intel or kvm_amd on the node, then restart the agent's pod")]
    Open(io::Error),
    /// Another KVM.
    #[error("KVM has API version {0} and not {API_VERSION}")]
    ApiVersion(i32),
    /// It does not work.
    #[error("KVM cannot make a VM: {0}: does another hypervisor use the CPUs?")]
    MakeVm(kvm_ioctls::Error),
    /// It lacks something.
    #[error("KVM lacks {0}, which a VM needs")]
    Capability(&'static str),
    /// It interprets kernels.
    #[error(
        "/dev/kvm is there, but neither vmx nor svm is in /proc/cpuinfo: it is a paravirtual KVM, which cannot boot Linux; \
         --allow-paravirtual-kvm offers it nevertheless"
    )]
    Paravirtual,
    /// No /proc.
    #[error("failed to read /proc/cpuinfo: {0}")]
    CpuInfo(io::Error),
}

/// Tries KVM now and then, and keeps `kvm` to what it finds.
pub(super) async fn watch(
    allow_paravirtual: bool,
    kvm: watch::Sender<Result<(), String>>,
) -> Result<(), super::ServeError> {
    log(&kvm.borrow());
    loop {
        tokio::time::sleep(INTERVAL).await;
        let found = tokio::task::block_in_place(|| trial(allow_paravirtual));
        kvm.send_if_modified(|known| {
            let changed = *known != found;
            if changed {
                log(&found);
                *known = found;
            }
            changed
        });
    }
}

fn log(found: &Result<(), String>) {
    match found {
        Ok(()) => tracing::info!("KVM works"),
        Err(reason) => tracing::warn!(%reason, "KVM does not work"),
    }
}

/// Whether VMs can run here now, and why not. Takes some milliseconds.
pub(super) fn trial(allow_paravirtual: bool) -> Result<(), String> {
    probe(allow_paravirtual).map_err(|error| error.to_string())
}

/// Opens `/dev/kvm` for a shim, which makes its VM on it.
pub(super) fn open() -> Result<OwnedFd, KvmError> {
    rustix::fs::open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| KvmError::Open(error.into()))
}

fn probe(allow_paravirtual: bool) -> Result<(), KvmError> {
    let kvm = Kvm::new().map_err(|error| KvmError::Open(error.into()))?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::ApiVersion(version));
    }
    if let Some((_, name)) = CAPABILITIES
        .iter()
        .find(|(capability, _)| !kvm.check_extension(*capability))
    {
        return Err(KvmError::Capability(name));
    }
    kvm.create_vm().map_err(KvmError::MakeVm)?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").map_err(KvmError::CpuInfo)?;
    if allow_paravirtual || has_hardware_virtualization(&cpuinfo) {
        Ok(())
    } else {
        Err(KvmError::Paravirtual)
    }
}

/// Whether the first CPU of a `/proc/cpuinfo` has VT-x or SVM.
fn has_hardware_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim_end() == "flags");
    flags.is_some_and(|(_, flags)| {
        flags
            .split_ascii_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_virtualization_is_a_whole_flag() {
        let cases = [
            ("processor\t: 0\nflags\t\t: fpu vme svm sse\n", true),
            ("flags\t\t: fpu vmx\nflags\t\t: fpu\n", true),
            (
                "flags\t\t: fpu svm_lock vmxx\nvmx flags\t: vnmi\nmodel name: svm vmx\n",
                false,
            ),
            ("", false),
        ];
        for (cpuinfo, expected) in cases {
            assert_eq!(has_hardware_virtualization(cpuinfo), expected, "{cpuinfo}");
        }
    }
}
