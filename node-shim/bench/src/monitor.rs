//! The monitors, and how each is told of the same machine.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::sample::OURS;

/// Address of the guest's interface.
pub(crate) const GUEST_MAC: &str = "02:00:00:00:00:02";

/// That of the tap itself, which is the guest's gateway.
pub(crate) const GATEWAY_MAC: &str = "02:00:00:00:00:01";

/// How QEMU does a disk's IO. Both go through the page cache, as `node-shim` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aio {
    /// `io_uring`.
    Uring,
    /// A pool of threads.
    Threads,
}

/// Who runs a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Monitor {
    /// Ours.
    NodeShim,
    /// QEMU's smallest machine. It has no PCI.
    Microvm,
    /// QEMU's usual machine.
    Q35(Aio),
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NodeShim => OURS,
            Self::Microvm => "QEMU microvm",
            Self::Q35(Aio::Uring) => "QEMU q35",
            Self::Q35(Aio::Threads) => "QEMU q35 aio=threads",
        })
    }
}

/// A machine that every monitor can run.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// A PVH kernel.
    pub(crate) kernel: PathBuf,
    /// Its initrd.
    pub(crate) initrd: Option<PathBuf>,
    /// Its command line.
    pub(crate) command_line: String,
    /// Memory.
    pub(crate) memory_mib: u64,
    /// A raw disk, `data.raw` in the machine's directory, of this many bytes.
    pub(crate) disk_bytes: Option<u64>,
    /// An image that the guest may read, as its last disk.
    pub(crate) tools: Option<PathBuf>,
    /// A tap.
    pub(crate) tap: Option<String>,
}

impl Monitor {
    /// The command that runs a machine, with its files in a directory.
    pub(crate) fn command(self, shim: &Path, machine: &Machine, directory: &Path) -> Result<Command> {
        match self {
            Self::NodeShim => {
                let config = directory.join("vm.json");
                std::fs::write(&config, config_json(machine, directory))
                    .context("failed to write the configuration")?;
                let mut command = Command::new(shim);
                command.args(["run", "--config"]).arg(config);
                command.arg("--control").arg(directory.join("control.sock"));
                Ok(command)
            }
            Self::Microvm => Ok(qemu(machine, directory, "microvm", None)),
            Self::Q35(aio) => Ok(qemu(machine, directory, "q35", Some(aio))),
        }
    }
}

fn config_json(machine: &Machine, directory: &Path) -> String {
    let initrd = machine
        .initrd
        .as_ref()
        .map(|initrd| format!(r#""initrd": "{}", "#, initrd.display()));
    let disks = machine.disk_bytes.map(|bytes| {
        format!(r#"{{"name": "data", "serial": "data", "source": {{"empty": {{"sizeBytes": {bytes}}}}}}}"#)
    });
    let tools = machine.tools.as_ref().map(|tools| {
        let source = format!(r#"{{"image": {{"path": "{}", "format": "raw"}}}}"#, tools.display());
        format!(r#"{{"name": "tools", "serial": "tools", "readOnly": true, "source": {source}}}"#)
    });
    let disks: Vec<String> = disks.into_iter().chain(tools).collect();
    let interfaces = machine.tap.as_ref().map(|tap| {
        format!(
            r#"{{"name": "net", "mac": "{GUEST_MAC}", "binding": {{"tap": {{"device": "{tap}", "network": {{"address": "10.0.2.2",
                "prefixLength": 24, "gateway": "10.0.2.1", "gatewayMac": "{GATEWAY_MAC}", "mtu": 1500}}}}}}}}"#,
        )
    });
    format!(
        r#"{{"version": 1, "name": "bench", "uuid": "123e4567-e89b-12d3-a456-426614174000", "cpu": {{"cores": 1}},
            "memory": {{"sizeBytes": {}}}, "boot": {{"kernel": {{"kernel": "{}", {}"commandLine": "{}"}}}}, "disks": [{}],
            "interfaces": [{}], "shutdown": {{"gracePeriodSeconds": 1}}, "scratch": "{}"}}"#,
        machine.memory_mib << 20,
        machine.kernel.display(),
        initrd.unwrap_or_default(),
        machine.command_line,
        disks.join(", "),
        interfaces.unwrap_or_default(),
        directory.display()
    )
}

fn qemu(machine: &Machine, directory: &Path, kind: &str, aio: Option<Aio>) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    command.args([
        "-accel",
        "kvm",
        "-cpu",
        // Some hosts offer IA32_ARCH_CAPABILITIES and do not let it be set, on which QEMU 7.2 aborts. No guest here asks for it.
        "host,-arch-capabilities",
        "-machine",
        kind,
        "-m",
        &machine.memory_mib.to_string(),
    ]);
    command
        .arg("-kernel")
        .arg(&machine.kernel)
        .args(["-append", &machine.command_line]);
    if let Some(initrd) = &machine.initrd {
        command.arg("-initrd").arg(initrd);
    }
    if let (Some(_), Some(aio)) = (machine.disk_bytes, aio) {
        let aio = match aio {
            Aio::Uring => "io_uring",
            Aio::Threads => "threads",
        };
        let file = directory.join("data.raw");
        let drive = format!(
            "if=none,id=data,format=raw,cache=writeback,aio={aio},file={}",
            file.display()
        );
        command.args(["-drive", &drive, "-object", "iothread,id=io"]);
        command.args([
            "-device",
            "virtio-blk-pci,drive=data,serial=data,disable-legacy=on,iothread=io",
        ]);
    }
    if let Some(tools) = &machine.tools {
        let drive = format!("if=none,id=tools,format=raw,readonly=on,file={}", tools.display());
        command.args(["-drive", &drive]);
        command.args(["-device", "virtio-blk-pci,drive=tools,serial=tools,disable-legacy=on"]);
    }
    if let Some(tap) = &machine.tap {
        command.args([
            "-netdev",
            &format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off"),
        ]);
        command.args([
            "-device",
            &format!("virtio-net-pci,netdev=net,disable-legacy=on,romfile=,mac={GUEST_MAC}"),
        ]);
    }
    command
}
