//! The operator's own binary as a process of this machine, for faults that need it to die at an exact moment.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

/// An operator that talks to the API server through a proxy of ours.
pub struct OperatorProcess {
    child: Child,
}

impl OperatorProcess {
    /// Starts the binary that the environment names (`TANDEM_OPERATOR`), against this server.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(server: &str, directory: &Path, shim_image: &str) -> Result<Self> {
        let binary: PathBuf = std::env::var_os("TANDEM_OPERATOR")
            .context("TANDEM_OPERATOR is not set: run hack/test")?
            .into();
        let kubeconfig = directory.join("operator.kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: proxy\nclusters: [{{name: proxy, cluster: {{server: \"{server}\"}}}}]\n\
             users: [{{name: nobody, user: {{}}}}]\ncontexts: [{{name: proxy, context: {{cluster: proxy, user: nobody}}}}]\n"
        );
        tokio::fs::write(&kubeconfig, text).await?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(directory.join("operator.log"))?;
        let child = Command::new(&binary)
            .env("KUBECONFIG", &kubeconfig)
            .env("TANDEM_SHIM_IMAGE", shim_image)
            .env("TANDEM_LEADER_ELECTION", "false")
            .env("TANDEM_HTTP_ADDRESS", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        Ok(Self { child })
    }

    /// `kill -9`, as a node that loses power would do it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}
