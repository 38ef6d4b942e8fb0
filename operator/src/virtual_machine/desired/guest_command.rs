//! What the kubelet runs in the VM's container to reach the agent in the guest: `node-shim control guest`, see docs/guest-agent.md.

use crds::probe::Probe;

/// The program in the shim's image.
const PROGRAM: [&str; 3] = ["/node-shim", "control", "guest"];
/// The kubelet's own, where a probe says nothing (`k8s.io/kubernetes/pkg/apis/core/v1`, `SetDefaults_Probe`).
const DEFAULT_TIMEOUT_SECONDS: i32 = 1;

/// Asks whether the agent is there.
pub(crate) fn ping(timing: &Probe) -> Vec<String> {
    command("ping", timing).collect()
}

/// Runs a command in the guest; its exit code is the probe's.
pub(crate) fn exec(arguments: &[String], timing: &Probe) -> Vec<String> {
    command("exec", timing)
        .chain(["--".to_owned()])
        .chain(arguments.iter().cloned())
        .collect()
}

/// The verb, with the probe's own timeout: what the kubelet gives up must not go on in the guest.
fn command(verb: &str, timing: &Probe) -> impl Iterator<Item = String> {
    let seconds = timing.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS).clamp(1, 3600);
    PROGRAM
        .into_iter()
        .map(str::to_owned)
        .chain([verb.to_owned(), format!("--timeout={seconds}")])
}
