//! Commands inside a guest: SSH through `kubectl port-forward`, as a user without any other way in would do it, or Tandem's agent.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::cluster::{Cluster, PATIENCE};

/// What `control guest` in the VM's pod answers to this verb.
///
/// # Errors
/// When it fails, with what it said.
pub async fn ask_agent(cluster: &Cluster, namespace: &str, vm: &str, verb: &[&str]) -> Result<String> {
    let command = ["exec", "-n", namespace, vm, "--", "/node-shim", "control", "guest"];
    cluster.kubectl(&[&command[..], verb].concat()).await
}

/// A key pair of this run.
pub struct SshKey {
    /// The private key's file.
    pub private: PathBuf,
    /// The public key's line, for `authorized_keys`.
    pub public: String,
}

impl SshKey {
    /// Makes a key pair in a directory.
    ///
    /// # Errors
    /// When ssh-keygen fails.
    pub async fn generate(directory: &Path) -> Result<Self> {
        let private = directory.join("id_ed25519");
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "tandem-e2e", "-f"])
            .arg(&private)
            .status()
            .await
            .context("cannot run ssh-keygen (Debian package openssh-client)")?;
        ensure!(status.success(), "ssh-keygen failed");
        let public = tokio::fs::read_to_string(private.with_extension("pub"))
            .await?
            .trim()
            .to_owned();
        Ok(Self { private, public })
    }
}

/// A running `kubectl port-forward`; it ends with this value.
pub struct PortForward {
    _process: Child,
    /// The local port that kubectl chose.
    pub port: u16,
}

impl PortForward {
    /// Forwards a free local port to a port of a pod.
    ///
    /// # Errors
    /// When kubectl does not say that it forwards.
    pub async fn start(namespace: &str, pod: &str, port: u16) -> Result<Self> {
        let mut process = Command::new("kubectl")
            .args([
                "port-forward",
                "-n",
                namespace,
                &format!("pod/{pod}"),
                &format!(":{port}"),
                "--address",
                "127.0.0.1",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        // "Forwarding from 127.0.0.1:41234 -> 22"
        let Some(line) = lines.next_line().await? else {
            bail!("kubectl port-forward of {pod}:{port} ended at once")
        };
        let local = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
        let port = local
            .and_then(|port| port.parse().ok())
            .with_context(|| format!("kubectl port-forward printed {line}"))?;
        // kubectl goes on printing a line a connection; an unread pipe would stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self {
            _process: process,
            port,
        })
    }
}

/// A login in a guest.
pub struct Guest<'a> {
    key: &'a SshKey,
    forward: PortForward,
}

impl<'a> Guest<'a> {
    /// Reaches the guest of this VM, as soon as its SSH server lets the user in: cloud-init makes the user after the pod is ready.
    ///
    /// # Errors
    /// When it does not within [`PATIENCE`], with what ssh said last.
    pub async fn connect(namespace: &str, vm: &str, key: &'a SshKey) -> Result<Self> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // Nothing tells when a server inside of the guest begins to listen, so this asks. kubectl ends its forwarding when a connection
        // is refused.
        loop {
            let forward = PortForward::start(namespace, vm, 22).await?;
            let guest = Self { key, forward };
            let Err(refusal) = guest.run("true").await else {
                return Ok(guest);
            };
            ensure!(tokio::time::Instant::now() < deadline, "no login in {vm}: {refusal:#}");
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
    }

    /// Runs a shell command as the user `tandem` and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn run(&self, command: &str) -> Result<String> {
        let output = self
            .ssh(command)
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot run ssh (Debian package openssh-client)")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(
            output.status.success(),
            "in the guest: {command}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        Ok(text(&output.stdout))
    }

    /// The ssh command itself, for a session that stays open.
    pub fn ssh(&self, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-o",
            "LogLevel=ERROR",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
        ])
        .args(["-o", "ConnectTimeout=60", "-p", &self.forward.port.to_string(), "-i"])
        .arg(&self.key.private)
        .args(["tandem@127.0.0.1", command])
        .kill_on_drop(true);
        ssh
    }
}
