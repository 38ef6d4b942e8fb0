# shellcheck shell=bash
# Everything that a node is told, in one directory. The node sees it as /run/node, whether it runs natively or in an emulated
# machine, with the components below it in /run/node/bin.

write_node_config() { # write_node_config NODE native|emulated DIRECTORY
  local node=$1 kind=$2 directory=$3
  mkdir -p "$directory/pki" "$directory/cni" "$directory/ssh"
  cp "$pki"/ca.crt "$pki/$node".{crt,key} "$pki"/{kube-proxy,multus}.{crt,key} "$directory/pki/"
  write_kubeconfig "$node" "https://$control_plane_ip:6443" /run/node/pki "$directory/kubelet.kubeconfig"
  write_kubeconfig kube-proxy "https://$control_plane_ip:6443" /run/node/pki "$directory/kube-proxy.kubeconfig"
  write_kubeconfig multus "https://$control_plane_ip:6443" /run/node/pki "$directory/multus.kubeconfig"
  node_environment "$node" >"$directory/environment"
  node_multus "$node" >"$directory/cni/10-multus.conf"
  node_masquerade >"$directory/masquerade.nft"
  node_containerd "$kind" >"$directory/containerd.toml"
  node_kubelet "$node" "$kind" >"$directory/kubelet.yaml"
  node_proxy "$node" >"$directory/kube-proxy.yaml"
  cp "$pki/ssh-node" "$pki/ssh-admin.pub" "$directory/ssh/"
}

node_environment() { # what the node's first process needs to know
  local other=$kvm_node label=native
  [ "$1" != "$kvm_node" ] || other=$native_node label=kvm
  cat <<CONFIG
node=$1
label=$label
address=$(node_ip "$1")/${node_network#*/}
gateway=$control_plane_ip
other_pods=$(node_pods "$other")
other_node=$(node_ip "$other")
dns=$dns_ip
CONFIG
}

node_multus() { # every pod is on the network of node_bridge, and on those that its annotation names
  cat <<CONFIG
{"cniVersion": "1.0.0", "name": "multus", "type": "multus", "capabilities": {"portMappings": true}, "cniDir": "/run/multus",
 "kubeconfig": "/run/node/multus.kubeconfig", "delegates": [$(node_bridge "$1")]}
CONFIG
}

node_bridge() { # pods of the node share a bridge; other nodes' pods are reached by routes
  cat <<CONFIG
{"cniVersion": "1.0.0", "name": "tandem", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{"subnet": "$(node_pods "$1")"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}
]}
CONFIG
}

node_masquerade() { # pods keep their addresses inside the cluster, and take the node's outside
  cat <<CONFIG
table ip node
delete table ip node
table ip node {
  chain postrouting {
    type nat hook postrouting priority 110; policy accept;
    ip saddr $pod_network ip daddr != { $pod_network, $node_network } oifname != "cni0" masquerade
  }
}
CONFIG
}

node_containerd() {
  cat <<CONFIG
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  device_ownership_from_security_context = true # a pod's user has the block devices of its claims
  stats_collect_period = "60s" # instead of each second, which costs an emulated CPU a tenth of its time
CONFIG
  # The machine that this runs on may not let anybody lower an OOM score (no CAP_SYS_RESOURCE).
  [ "$1" != native ] || echo "  restrict_oom_score_adj = true"
  cat <<CONFIG
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/run/node/bin/cni"]
    conf_dir = "/run/node/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "/run/node/bin/runc"
      SystemdCgroup = false
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "registry.tandem.local/pause:1"
CONFIG
}

node_kubelet() {
  local reserved=300Mi
  # A native node is told of all the memory of this machine, half of which others need: the control plane, builds, QEMU.
  [ "$2" != native ] || reserved=$(awk '/^MemTotal:/ { print int($2 / 2) "Ki" }' /proc/meminfo)
  cat <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_ip "$1")
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /run/node/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /run/node/pki/$1.crt
tlsPrivateKeyFile: /run/node/pki/$1.key
clusterDNS: [$dns_ip]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
resolvConf: /etc/resolv.conf
systemReserved: {cpu: 100m, memory: $reserved}
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
CONFIG
  # A node with CPUs to spare gives some away as a whole, for VMs with cpu.dedicated: one is the system's, one everybody's.
  [ "$2" = native ] || [ "$emulated_cpus" -lt 3 ] || printf '%s\n' 'cpuManagerPolicy: static' 'reservedSystemCPUs: "0"'
  # Lets the kubelet go on where it may not change the machine's own settings.
  [ "$2" != native ] || echo 'featureGates: {KubeletInUserNamespace: true}'
}

node_proxy() {
  cat <<CONFIG
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /run/node/kube-proxy.kubeconfig}
mode: nftables
hostnameOverride: $1
clusterCIDR: $pod_network
nodePortAddresses: [primary]
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
CONFIG
}
