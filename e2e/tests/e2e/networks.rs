//! Each binding of an interface, on the pod's network and on networks of Multus, by IPv4 and by IPv6.
//!
//! ```text
//! bridge e2e-lan on the node    10.77.0.1  fd00:77::1    addresses by the network: peer pod, VMs
//! bridge e2e-open on the node                            none by the network: the VM chooses; the peer has 10.79.0.0/24 and fd00:79::/64
//! ```

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, has_condition, value};
use e2e::guest::ask_agent;
use e2e::manifest::{bare_debian_vm, kvm_node, native_node, pod, service, small_vm};
use e2e::runner::Runner;
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-networks";
const PEER: &str = "peer";
/// Where the VMs and the peer serve their names.
const PORT: u16 = 8000;
/// What a guest without services does to be on its networks as Debian is: links by udev, addresses by networkd, which says the rest in files.
const NETWORKD: &str = "modprobe virtio_net; hostname guest; \
    grep -qE '^[0-9a-f]{32}$' /etc/machine-id || tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id; \
    /lib/systemd/systemd-udevd --daemon && udevadm trigger --action=add && udevadm settle; \
    mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/systemd/network; \
    chown -R systemd-network: /run/systemd/netif; \
    setsid /lib/systemd/systemd-networkd </dev/null >/run/networkd.log 2>&1 & \
    mkdir -p /run/www; echo served by the guest >/run/www/index.html; ip link set lo up; \
    setsid busybox httpd -p 8000 -h /run/www </dev/null >/dev/null 2>&1";

pub(crate) async fn run(cluster: &Cluster, runner: &mut Runner) -> Result<()> {
    cluster.restricted_namespace(NAMESPACE).await?;
    prepare(cluster).await?;
    runner
        .case("a network that is not there is named", missing(cluster))
        .await;
    runner
        .case(
            "a guest has masquerade on the pod's network and bridges on two others",
            several(cluster),
        )
        .await;
    runner
        .case("masquerade on a network of Multus, by IPv4 and IPv6", behind(cluster))
        .await;
    runner
        .case(
            "a guest is its pod's interface: probe, Service, DNS",
            on_the_pods_network(cluster),
        )
        .await;
    cluster
        .kubectl(&["delete", "vm", "-n", NAMESPACE, "--all", "--timeout", "5m"])
        .await?;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    Ok(())
}

fn attachment(name: &str, bridge: &str, rest: &Value) -> Value {
    let mut config = json!({"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": bridge});
    if let (Some(config), Some(rest)) = (config.as_object_mut(), rest.as_object()) {
        config.extend(rest.clone());
    }
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"config": config.to_string()},
    })
}

/// The networks, and a pod on both of them beside the VMs.
async fn prepare(cluster: &Cluster) -> Result<()> {
    let ipam = |ranges: Value, routes: Value| json!({"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges, "routes": routes});
    let lan = json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]);
    let routes = json!([{"dst": "10.78.0.0/16", "gw": "10.77.0.1"}, {"dst": "::/0", "gw": "fd00:77::1"}]);
    let others = json!([[{"subnet": "10.79.0.0/24"}], [{"subnet": "fd00:79::/64"}]]);
    for network in [
        attachment("lan", "e2e-lan", &json!({"isGateway": true, "ipam": ipam(lan, routes)})),
        attachment("open", "e2e-open", &json!({"ipam": {}})),
        attachment("open-peer", "e2e-open", &json!({"ipam": ipam(others, json!([]))})),
    ] {
        cluster.apply(&network).await?;
    }
    let serve = format!(
        "mkdir /tmp/www && echo served by the peer >/tmp/www/index.html && exec busybox httpd -f -p {PORT} -h /tmp/www"
    );
    let mut peer = pod(NAMESPACE, PEER, &kvm_node(), &["sh", "-c", &serve]);
    peer["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/networks": "lan,open-peer"});
    cluster.apply(&peer).await?;
    let client = pod(NAMESPACE, "client", &native_node(), &["sleep", "infinity"]);
    cluster.apply(&client).await?;
    for name in [PEER, "client"] {
        cluster
            .until(&cluster.pods(NAMESPACE), name, "ready", |pod| {
                has_condition(pod, "Ready", "True")
            })
            .await?;
    }
    Ok(())
}

/// The addresses that a network gave a pod, as Multus writes them down: IPv4 first.
async fn addresses(cluster: &Cluster, pod: &str, network: &str) -> Result<Vec<String>> {
    let pod = value(&cluster.pods(NAMESPACE).get(pod).await?);
    let status = pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"]
        .as_str()
        .context("Multus wrote no status")?;
    let networks: Vec<Value> = serde_json::from_str(status)?;
    let name = format!("{NAMESPACE}/{network}");
    let found = networks.iter().find(|found| found["name"] == name.as_str());
    let mut addresses: Vec<String> = found
        .and_then(|found| found["ips"].as_array())
        .with_context(|| format!("no {name} in {status}"))?
        .iter()
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    addresses.sort_by_key(|address| address.contains(':'));
    Ok(addresses)
}

/// A VM with these interfaces that can be asked, until its guest is on its networks.
async fn start(cluster: &Cluster, name: &str, interfaces: Value, rest: &Value) -> Result<()> {
    let mut vm = bare_debian_vm(NAMESPACE, name);
    vm["spec"]["interfaces"] = interfaces;
    // The readiness probe may be the network's.
    vm["spec"]["startupProbe"] =
        json!({"guestAgentPing": {}, "periodSeconds": 2, "timeoutSeconds": 10, "failureThreshold": 150});
    if let (Some(spec), Some(rest)) = (vm["spec"].as_object_mut(), rest.as_object()) {
        spec.extend(rest.clone());
    }
    cluster.apply(&vm).await?;
    let started = |pod: &Value| pod.pointer("/status/containerStatuses/0/started") == Some(&json!(true));
    cluster
        .until(&cluster.pods(NAMESPACE), name, "started", started)
        .await?;
    in_guest(cluster, name, NETWORKD).await?;
    Ok(())
}

/// Runs a shell command in a guest, and returns what it printed.
async fn in_guest(cluster: &Cluster, vm: &str, command: &str) -> Result<String> {
    let verb = ["exec", "--timeout=180", "--", "sh", "-c", command];
    let printed = ask_agent(cluster, NAMESPACE, vm, &verb).await?;
    Ok(printed.trim().to_owned())
}

/// Waits until an interface of the guest has an address, and nobody else may have it.
async fn has_address(cluster: &Cluster, vm: &str, device: &str, address: &str) -> Result<()> {
    let wait = format!(
        "timeout 150 sh -c \"until ip -o addr show dev {device} -tentative | grep -qF ' {address}/'; do sleep 1; done\" || \
         {{ ip addr; ip route; ip -6 route; tail -n 40 /run/networkd.log; exit 1; }}"
    );
    in_guest(cluster, vm, &wait)
        .await
        .with_context(|| format!("{device} of {vm} has no {address}"))?;
    Ok(())
}

/// An address as a part of a URL.
fn host(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

/// Whether the guest gets the peer's page from this address.
async fn reaches_peer(cluster: &Cluster, vm: &str, address: &str) -> Result<()> {
    let fetch = format!("curl -sS -m 60 http://{}:{PORT}/", host(address));
    let said = in_guest(cluster, vm, &fetch).await?;
    ensure!(said == "served by the peer", "{address} says {said:?} to {vm}");
    Ok(())
}

/// Whether a pod gets the guest's page from this host and port.
async fn reached_from(cluster: &Cluster, pod: &str, host: &str, port: u16) -> Result<()> {
    let url = format!("http://{host}:{port}/");
    let fetch = ["exec", "-n", NAMESPACE, pod, "--", "curl", "-sS", "-m", "60", &url];
    let said = cluster.kubectl(&fetch).await?;
    ensure!(said.trim() == "served by the guest", "{url} says {said:?} to {pod}");
    Ok(())
}

async fn remove(cluster: &Cluster, name: &str) -> Result<()> {
    cluster
        .kubectl(&["delete", "vm", "-n", NAMESPACE, name, "--timeout", "5m"])
        .await?;
    Ok(())
}

async fn missing(cluster: &Cluster) -> Result<()> {
    let mut vm = small_vm(NAMESPACE, "missing");
    vm["spec"]["interfaces"] = json!([{"name": "lan", "bridge": {}, "multus": {"networkName": "nowhere"}}]);
    cluster.apply(&vm).await?;
    let deadline = tokio::time::Instant::now() + e2e::cluster::PATIENCE;
    // Only the kubelet knows, and says it in events.
    loop {
        let events = [
            "get",
            "events",
            "-n",
            NAMESPACE,
            "--field-selector",
            "involvedObject.name=missing",
            "-o",
            "jsonpath={.items[*].message}",
        ];
        let said = cluster.kubectl(&events).await?;
        if said.contains("nowhere") {
            break;
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "no event names the network: {said}"
        );
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
    remove(cluster, "missing").await
}

async fn several(cluster: &Cluster) -> Result<()> {
    let interfaces = json!([
        {"name": "default", "masquerade": {}},
        {"name": "lan", "bridge": {}, "multus": {"networkName": "lan"}},
        {"name": "open", "bridge": {}, "multus": {"networkName": format!("{NAMESPACE}/open")}},
    ]);
    start(cluster, "several", interfaces, &json!({})).await?;
    has_address(cluster, "several", "eth0", "10.0.2.2").await?;

    // The network's own addresses, which the guest learns as any machine there, and its routes.
    let own = addresses(cluster, "several", "lan").await?;
    ensure!(own.len() == 2, "lan gave {own:?}");
    for address in &own {
        has_address(cluster, "several", "eth1", address).await?;
    }
    let routes = in_guest(
        cluster,
        "several",
        "ip route show dev eth1; ip -6 route show default dev eth1",
    )
    .await?;
    ensure!(
        routes.contains("10.78.0.0/16 via 10.77.0.1") && routes.contains("default via fe80::"),
        "{routes}"
    );
    for address in addresses(cluster, PEER, "lan").await? {
        reaches_peer(cluster, "several", &address).await?;
    }
    // The router of the default route, whose MAC address the guest was told.
    in_guest(
        cluster,
        "several",
        "ping -c 1 -W 60 fd00:77::1; ping -c 1 -W 60 -I eth1 10.77.0.1",
    )
    .await?;
    for address in &own {
        reached_from(cluster, PEER, &host(address), PORT).await?;
    }
    // The VM's own MAC address, which Multus was asked for.
    let mac = in_guest(cluster, "several", "cat /sys/class/net/eth1/address").await?;
    let pod = value(&cluster.pods(NAMESPACE).get("several").await?);
    let asked = pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"].as_str();
    ensure!(
        asked.is_some_and(|asked| asked.contains(&mac)),
        "the guest has {mac}, asked was {asked:?}"
    );
    // What is not the guest's own goes nowhere.
    let stolen = "ip addr add 10.77.0.250/24 dev eth1 && ! ping -c 1 -W 3 -I 10.77.0.250 10.77.0.1 >/dev/null; ip addr del 10.77.0.250/24 dev eth1";
    in_guest(cluster, "several", stolen).await?;

    // A network without addresses: the guest chooses.
    let choose = "ip link set eth2 up; ip addr add 10.79.0.200/24 dev eth2; ip addr add fd00:79::200/64 dev eth2 nodad";
    in_guest(cluster, "several", choose).await?;
    for address in addresses(cluster, PEER, "open-peer").await? {
        reaches_peer(cluster, "several", &address).await?;
    }
    for address in ["10.79.0.200", "[fd00:79::200]"] {
        reached_from(cluster, PEER, address, PORT).await?;
    }
    remove(cluster, "several").await
}

async fn behind(cluster: &Cluster) -> Result<()> {
    let interfaces = json!([{"name": "lan", "masquerade": {}, "multus": {"networkName": "lan"}}]);
    start(cluster, "behind", interfaces, &json!({})).await?;
    for address in ["10.0.2.2", "fd10:0:2::2"] {
        has_address(cluster, "behind", "eth0", address).await?;
    }
    for address in addresses(cluster, PEER, "lan").await? {
        reaches_peer(cluster, "behind", &address).await?;
    }
    for address in addresses(cluster, "behind", "lan").await? {
        reached_from(cluster, PEER, &host(&address), PORT).await?;
    }
    remove(cluster, "behind").await
}

async fn on_the_pods_network(cluster: &Cluster) -> Result<()> {
    let rest = json!({
        "podMetadata": {"labels": {"app": "bridged"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 2, "timeoutSeconds": 10},
    });
    cluster.apply(&service(NAMESPACE, "bridged", 80, PORT)).await?;
    start(cluster, "bridged", json!([{"name": "default", "bridge": {}}]), &rest).await?;
    let vm = cluster
        .until(&cluster.vms(NAMESPACE), "bridged", "ready", |vm| {
            has_condition(vm, "Ready", "True")
        })
        .await?;
    let address = vm["status"]["podIP"].as_str().context("the VM has no address")?;
    has_address(cluster, "bridged", "eth0", address).await?;
    for pod in ["client", PEER] {
        reached_from(cluster, pod, "bridged", 80).await?;
        reached_from(cluster, pod, &host(address), PORT).await?;
    }
    // Out, and names: by the servers that DHCP told.
    let peer = value(&cluster.pods(NAMESPACE).get(PEER).await?);
    let peer = peer["status"]["podIP"].as_str().context("the peer has no address")?;
    reaches_peer(cluster, "bridged", peer).await?;
    let resolve = "rm -f /etc/resolv.conf; sed -n 's/^DNS=/nameserver /p' /run/systemd/netif/leases/* >/etc/resolv.conf; \
                   busybox nslookup kubernetes.default.svc.cluster.local";
    let found = in_guest(cluster, "bridged", resolve).await?;
    ensure!(found.contains("Address"), "{found}");
    // A guest that goes takes nothing of its network with it: the next pod has another.
    remove(cluster, "bridged").await
}
