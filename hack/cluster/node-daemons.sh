# shellcheck shell=bash
# The daemons of a node, the same natively and in an emulated machine. Sourced by the node's first process, which has set up
# /run/node, the network and the mounts.
daemon_logs=/var/log/node
# shellcheck disable=SC2034 # for native-node-init.sh
image_records=/var/lib/containerd/imported # see import-images.sh

start_containerd() {
  mkdir -p "$daemon_logs" /run/containerd
  supervise "$daemon_logs/containerd.log" containerd --config /run/node/containerd.toml
}

wait_for_containerd() {
  until ctr version >/dev/null 2>&1; do sleep 0.1; done
}

start_kubelet() {
  # A starting node has no container that lives, so no state of the managers is worth keeping; a stale file stops the kubelet.
  rm -f /var/lib/kubelet/{cpu,memory}_manager_state /var/lib/kubelet/device-plugins/kubelet.sock
  # shellcheck disable=SC2154 # node, label and address: the node's environment file
  supervise "$daemon_logs/kubelet.log" kubelet --config /run/node/kubelet.yaml --kubeconfig /run/node/kubelet.kubeconfig \
    --hostname-override "$node" --node-ip "${address%/*}" --node-labels "tandem.dev/lab-node=$label" --housekeeping-interval 60s --v 2
}

start_proxy() {
  nft -f /run/node/masquerade.nft
  supervise "$daemon_logs/kube-proxy.log" kube-proxy --config /run/node/kube-proxy.yaml --v 2
}
