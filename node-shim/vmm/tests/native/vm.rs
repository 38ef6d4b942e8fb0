//! A VM of these tests: a `node-shim` process, its console and its control socket.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use node_shim_protocol::control::Response;

use crate::guest;

const SHIM: &str = env!("CARGO_BIN_EXE_node-shim");

/// What the guest says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Polls, counted in memory.
    pub(crate) counter: u64,
    /// Polls, counted in a register.
    pub(crate) register: u64,
    /// What it put into an XMM register at its start.
    pub(crate) xmm: u64,
    /// kvmclock in nanoseconds.
    pub(crate) clock_ns: u64,
}

/// A running VM; killed when it is dropped.
pub(crate) struct Vm {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    socket: PathBuf,
}

/// Where a VM has its files.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the kernel and a configuration with this much memory and, in JSON, these disks and more of `cpu`.
    pub(crate) fn configure(&self, memory_bytes: u64, disks: &str, cpu: &str) -> PathBuf {
        std::fs::write(self.path("kernel"), guest::kernel()).unwrap();
        std::fs::create_dir_all(self.path("scratch")).unwrap();
        let config = format!(
            r#"{{"version": 1, "name": "test", "uuid": "123e4567-e89b-12d3-a456-426614174000", "cpu": {{"cores": 1{cpu}}},
             "memory": {{"sizeBytes": {memory_bytes}}}, "boot": {{"kernel": {{"kernel": "{}"}}}}, "disks": {disks},
             "shutdown": {{"gracePeriodSeconds": 1}}, "scratch": "{}"}}"#,
            self.path("kernel").display(),
            self.path("scratch").display()
        );
        let path = self.path("vm.json");
        std::fs::write(&path, config).unwrap();
        path
    }
}

impl Vm {
    /// Starts a VM and waits until its guest is up.
    pub(crate) fn boot(place: &Place, memory_bytes: u64, disks: &str) -> Self {
        Self::boot_with(place, memory_bytes, disks, "")
    }

    /// Starts a VM with more in `cpu`, and waits until its guest is up.
    pub(crate) fn boot_with(place: &Place, memory_bytes: u64, disks: &str, cpu: &str) -> Self {
        let config = place.configure(memory_bytes, disks, cpu);
        let mut vm = Self::spawn(&[Path::new("--config"), &config], place.path("control.sock"));
        assert_eq!(vm.line(), "up");
        vm
    }

    /// Goes on from a snapshot.
    pub(crate) fn restore(snapshot: &Path, scratch: &Path, socket: PathBuf) -> Self {
        std::fs::create_dir_all(scratch).unwrap();
        let arguments = [Path::new("--restore"), snapshot, Path::new("--scratch"), scratch];
        Self::spawn(&arguments, socket)
    }

    pub(crate) fn spawn(arguments: &[&Path], socket: PathBuf) -> Self {
        let mut child = Command::new(SHIM)
            .arg("run")
            .args(arguments)
            .arg("--control")
            .arg(&socket)
            .arg("--snapshots")
            .arg(socket.parent().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            socket,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The next line of the console.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the VM ended: {}", self.errors());
        line.trim_end().to_owned()
    }

    /// The next line of the console, or none of a VM that ends before.
    pub(crate) fn line_or_end(&mut self) -> Option<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| line.trim_end().to_owned())
    }

    fn errors(&mut self) -> String {
        let mut errors = String::new();
        let _ = std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut errors);
        errors
    }

    /// Types a command.
    pub(crate) fn type_in(&mut self, command: &str) {
        self.input.write_all(command.as_bytes()).unwrap();
    }

    /// Asks the guest how it is.
    pub(crate) fn report(&mut self) -> Report {
        self.type_in("s");
        Report::parse(&self.line())
    }

    /// The checksum of the memory that the guest filled.
    pub(crate) fn sum(&mut self) -> String {
        self.type_in("c");
        self.line()
    }

    /// Makes a request with `node-shim control`.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Response {
        let output = Command::new(SHIM)
            .args(["control", "--socket"])
            .arg(&self.socket)
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let response = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(output.status.success(), !matches!(response, Response::Error(_)));
        response
    }

    /// Waits for the VM's end; its exit code and what it said on stderr.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        let errors = self.errors();
        (code, errors)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Report {
    pub(crate) fn parse(line: &str) -> Self {
        let words: Vec<u64> = line
            .strip_prefix("state ")
            .unwrap_or_else(|| panic!("no report: {line}"))
            .split(' ')
            .map(|word| u64::from_str_radix(word, 16).unwrap())
            .collect();
        let [counter, register, xmm, clock_ns] = words[..] else {
            panic!("no report: {line}")
        };
        Self {
            counter,
            register,
            xmm,
            clock_ns,
        }
    }
}
