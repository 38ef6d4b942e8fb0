#!/usr/bin/env bash
# Process 1 of the control plane's PID namespace: etcd, the API server, the controller manager, the scheduler, and the inner half
# of the relay to 127.0.0.1 of the host. Run by control-plane.sh with the name of the cluster.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=report.sh
. "$here/report.sh"
# shellcheck source=settings.sh
. "$here/settings.sh"
# shellcheck source=supervise.sh
. "$here/supervise.sh"
use_cluster "$1"
cd "$state"

# A throwaway cluster need not survive the loss of power: no fsync.
supervise "$logs/etcd.log" etcd --name etcd --data-dir "$state/etcd" --log-level warn --unsafe-no-fsync \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
  --initial-cluster etcd=http://127.0.0.1:2380 --auto-compaction-mode periodic --auto-compaction-retention 10m

supervise "$logs/kube-apiserver.log" kube-apiserver --etcd-servers http://127.0.0.1:2379 \
  --bind-address 0.0.0.0 --secure-port 6443 --advertise-address "$control_plane_ip" \
  --service-cluster-ip-range "$service_network" --allow-privileged \
  --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
  --client-ca-file "$pki/ca.crt" --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
  --kubelet-client-certificate "$pki/kubelet-client.crt" --kubelet-client-key "$pki/kubelet-client.key" \
  --kubelet-certificate-authority "$pki/ca.crt" --kubelet-preferred-address-types InternalIP \
  --service-account-issuer https://kubernetes.default.svc.cluster.local \
  --service-account-key-file "$pki/service-accounts.pub" --service-account-signing-key-file "$pki/service-accounts.key" \
  --audit-policy-file "$here/audit-policy.yaml" --audit-log-path "$state/audit.log" --audit-log-maxsize 100 --audit-log-maxbackup 1

client() { # client NAME: the flags by which a part of the control plane finds the API server
  local config=$pki/$1.kubeconfig
  printf '%s\n' --kubeconfig "$config" --authentication-kubeconfig "$config" --authorization-kubeconfig "$config" \
    --bind-address 127.0.0.1 --leader-elect=false --kube-api-qps 300 --kube-api-burst 600
}

mapfile -t flags < <(client kube-controller-manager)
supervise "$logs/kube-controller-manager.log" kube-controller-manager "${flags[@]}" \
  --use-service-account-credentials --root-ca-file "$pki/ca.crt" --service-account-private-key-file "$pki/service-accounts.key" \
  --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" --node-monitor-grace-period 40s

mapfile -t flags < <(client kube-scheduler)
supervise "$logs/kube-scheduler.log" kube-scheduler "${flags[@]}"

# A Unix socket is found by its path, whatever the network namespace: that is how the host gets in. Its path is relative because
# it may be no longer than 108 bytes.
supervise "$logs/relay.log" socat -t 10 UNIX-LISTEN:api.sock,fork,unlink-early,backlog=128 TCP:127.0.0.1:6443,nodelay

reap_forever
