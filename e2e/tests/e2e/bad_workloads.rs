//! What only shows when the VM is to start: each fault has its own clear message on the VM, and none starts a crash loop.

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, condition, has_condition};
use e2e::manifest::{GUEST_IMAGE, TOOLS_IMAGE, small_vm, with};
use e2e::runner::Runner;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-bad-workloads";

/// A VM that cannot start, the condition that says so, and what its message must say.
struct Broken {
    case: &'static str,
    name: &'static str,
    vm: Value,
    condition: &'static str,
    says: &'static [&'static str],
}

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    for broken in waiting() {
        runner.case(broken.case, is_explained(cluster, &broken)).await;
    }
    for broken in stalled() {
        runner
            .case(broken.case, is_explained_and_left_alone(cluster, &broken))
            .await;
    }
    runner
        .case(
            "a Secret that appears later starts the VM that waits for it",
            late_secret(cluster),
        )
        .await;
    runner
        .case(
            "user data over the limit in a Secret is explained",
            large_secret(cluster),
        )
        .await;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

fn vm(name: &str) -> Value {
    small_vm(NAMESPACE, name)
}

/// Faults that somebody else may mend: the VM waits.
fn waiting() -> Vec<Broken> {
    let secret = json!({"userDataSecretRef": {"name": "no-such-secret"}});
    vec![
        Broken {
            case: "a missing image is explained",
            name: "no-image",
            vm: with(
                vm("no-image"),
                "/spec/boot/kernel/image",
                json!("registry.tandem.local/no-such-image:1"),
            ),
            condition: "ImageReady",
            says: &["registry.tandem.local/no-such-image:1"],
        },
        Broken {
            case: "a Secret that is not there is explained",
            name: "no-secret",
            vm: with(vm("no-secret"), "/spec/cloudInit", secret),
            condition: "DisksReady",
            says: &["no-such-secret"],
        },
        Broken {
            case: "no node with KVM is explained",
            name: "no-kvm",
            vm: with(
                vm("no-kvm"),
                "/spec/nodeSelector",
                json!({"tandem.dev/lab-node": "native"}),
            ),
            condition: "Scheduled",
            says: &["tandem.dev/kvm"],
        },
    ]
}

/// Faults of the VM itself: it is not tried again before its spec changes.
fn stalled() -> Vec<Broken> {
    let path = "/spec/boot/kernel/kernelPath";
    let corrupt = json!([{"name": "root", "image": {"image": TOOLS_IMAGE, "path": "/etc/passwd"}}]);
    vec![
        Broken {
            case: "an image without the named kernel is explained",
            name: "no-kernel",
            vm: with(vm("no-kernel"), path, json!("/boot/no-such-kernel")),
            condition: "Stalled",
            says: &["/boot/no-such-kernel"],
        },
        Broken {
            case: "a kernel that is not one is explained",
            name: "not-a-kernel",
            vm: with(vm("not-a-kernel"), path, json!("/boot/initrd.img")),
            condition: "Stalled",
            says: &["initrd.img", "bzImage"],
        },
        Broken {
            case: "a corrupt disk is explained",
            name: "corrupt-disk",
            vm: with(vm("corrupt-disk"), "/spec/disks", corrupt),
            condition: "Stalled",
            says: &["root", "512"],
        },
        Broken {
            case: "memory that kernel and initrd do not fit into is explained",
            name: "little-memory",
            vm: with(vm("little-memory"), "/spec/memory/size", json!("32Mi")),
            condition: "Stalled",
            says: &["memory"],
        },
    ]
}

async fn is_explained(cluster: &Cluster, broken: &Broken) -> Result<()> {
    let wanted = if broken.condition == "Stalled" { "True" } else { "False" };
    cluster.apply(&broken.vm).await?;
    let explained = |vm: &Value| {
        has_condition(vm, broken.condition, wanted)
            && has_condition(vm, "Ready", "False")
            && condition(vm, broken.condition)
                .is_some_and(|(_, _, message)| broken.says.iter().all(|part| message.contains(part)))
    };
    let what = format!(
        "{}={wanted} with a message that says {:?}",
        broken.condition, broken.says
    );
    let found = cluster
        .until(&cluster.vms(NAMESPACE), broken.name, &what, explained)
        .await?;
    ensure!(
        condition(&found, "Ready").is_some_and(|ready| !ready.2.is_empty()),
        "Ready has no message"
    );
    if broken.condition != "Stalled" {
        cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, broken.name]).await?;
    }
    Ok(())
}

/// The pod that failed is still the only one that was ever made: its UID does not change while the VM is stalled.
async fn is_explained_and_left_alone(cluster: &Cluster, broken: &Broken) -> Result<()> {
    is_explained(cluster, broken).await?;
    // The failed pod is kept for its log.
    cluster
        .until(&cluster.pods(NAMESPACE), broken.name, "failed", |pod| {
            pod["status"]["phase"] == "Failed"
        })
        .await?;
    let created = e2e::audit::writes_of(&cluster.name, NAMESPACE, broken.name).await?;
    let created = created
        .iter()
        .filter(|write| write.resource == "pods" && ["create", "patch"].contains(&write.verb.as_str()))
        .count();
    ensure!(
        created == 1,
        "the operator made {created} pods for a VM that cannot start"
    );
    // Mending the spec is all that it takes to start it.
    cluster.apply(&vm(broken.name)).await?;
    if broken.name == "no-kernel" {
        cluster
            .until(
                &cluster.vms(NAMESPACE),
                broken.name,
                "ready after its spec was mended",
                |vm| has_condition(vm, "Ready", "True"),
            )
            .await?;
    }
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, broken.name]).await?;
    cluster.until_gone(&cluster.pods(NAMESPACE), broken.name).await
}

async fn late_secret(cluster: &Cluster) -> Result<()> {
    cluster
        .apply(&with(
            vm("late"),
            "/spec/cloudInit",
            json!({"userDataSecretRef": {"name": "late", "key": "cloud"}}),
        ))
        .await?;
    let waits = |vm: &Value| has_condition(vm, "DisksReady", "False");
    cluster
        .until(&cluster.vms(NAMESPACE), "late", "waiting for its Secret", waits)
        .await?;
    cluster
        .kubectl(&[
            "create",
            "secret",
            "generic",
            "late",
            "-n",
            NAMESPACE,
            "--from-literal=cloud=#cloud-config",
        ])
        .await?;
    cluster
        .until(&cluster.vms(NAMESPACE), "late", "ready", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, "late"]).await?;
    Ok(())
}

async fn large_secret(cluster: &Cluster) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "large", "namespace": NAMESPACE},
        "stringData": {"userdata": "x".repeat(600 * 1024)},
    });
    let output = cluster
        .kubectl_unchecked(&["apply", "--server-side", "-f", "-"], &secret.to_string())
        .await?;
    ensure!(output.success, "{}", output.stderr);
    let broken = Broken {
        case: "",
        name: "large",
        vm: with(
            vm("large"),
            "/spec/cloudInit",
            json!({"userDataSecretRef": {"name": "large"}, "networkData": GUEST_IMAGE}),
        ),
        condition: "Stalled",
        says: &["cloudInit.userData", "524288"],
    };
    is_explained(cluster, &broken).await?;
    cluster.kubectl(&["delete", "vm", "-n", NAMESPACE, "large"]).await?;
    Ok(())
}
