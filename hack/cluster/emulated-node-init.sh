#!/usr/bin/env bash
# Process 1 of the emulated node. The disk's own /sbin/node has unpacked /run/node, of which this is a part. A shell is on the console's second port for whoever must look at a node that
# does not start; otherwise one comes in through SSH.
set -euo pipefail
export PATH=/run/node/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export CONTAINERD_ADDRESS=/run/containerd/containerd.sock CONTAINERD_NAMESPACE=k8s.io
# shellcheck source=supervise.sh
. /run/node/supervise.sh
# shellcheck source=node-daemons.sh
. /run/node/node-daemons.sh
# shellcheck disable=SC1091 # written by node-config.sh
. /run/node/environment

say() { echo "node: $(cut -d' ' -f1 /proc/uptime) s: $*" >/dev/console; }
trap 'say "line $LINENO failed: $BASH_COMMAND"' ERR

mount_system() {
  mount -t sysfs sysfs /sys
  mkdir -p /dev/{pts,shm,mqueue}
  mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
  mount -t tmpfs tmpfs /dev/shm
  mount -t mqueue mqueue /dev/mqueue
  mount -t tmpfs tmpfs /tmp
  mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
  mount -t bpf bpf /sys/fs/bpf
  mount --make-rshared /
  ln -sf /proc/self/fd /dev/fd
  ln -sf fd/0 /dev/stdin
  ln -sf fd/1 /dev/stdout
  ln -sf fd/2 /dev/stderr
  ln -sfn /opt/node/bin /run/node/bin
}

set_names() {
  # shellcheck disable=SC2154 # node, dns: the environment file
  hostname "$node"
  echo "$node" >/etc/hostname
  echo "127.0.0.1 localhost $node" >/etc/hosts
  echo "nameserver $dns" >/etc/resolv.conf
  tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
}

set_up_network() {
  modprobe virtio_net
  ip link set lo up
  # shellcheck disable=SC2154 # address, gateway, other_pods, other_node: the environment file
  ip address add "$address" dev eth0
  ip link set eth0 up
  # shellcheck disable=SC2154
  ip route add default via "$gateway"
  # shellcheck disable=SC2154
  ip route add "$other_pods" via "$other_node"
  sysctl -qw net.ipv4.ip_forward=1 fs.inotify.max_user_instances=8192
}

start_ssh() { # only root, only with the key of whoever made the cluster
  mkdir -p /run/sshd /run/ssh
  cp /run/node/ssh/ssh-node /run/ssh/host
  cp /run/node/ssh/ssh-admin.pub /run/ssh/authorized
  chmod 600 /run/ssh/*
  supervise "$daemon_logs/sshd.log" /usr/sbin/sshd -D -e -f /dev/null -o HostKey=/run/ssh/host -o AuthorizedKeysFile=/run/ssh/authorized \
    -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o UsePAM=no \
    -o UseDNS=no -o MaxSessions=100 -o MaxStartups=100 -o PidFile=none -o PermitUserEnvironment=no \
    -o "SetEnv=PATH=$PATH CONTAINERD_ADDRESS=$CONTAINERD_ADDRESS CONTAINERD_NAMESPACE=$CONTAINERD_NAMESPACE"
}

load_modules() { # nf_tables and its expressions load themselves when they are first used
  modprobe -a bridge br_netfilter veth loop tun vhost_net virtio_rng kvm_amd
}

# The Go runtime of each daemon looks every 20 us whether a thread was descheduled, finds that one was, and starts another: on one slow CPU
# that took half of it. A sleep may end this many nanoseconds late, here and in every process that this one starts.
echo 10000000 >/proc/self/timerslack_ns
export GOGC=400 # collect garbage less often
mount_system
set_names
modprobe overlay
start_containerd # while the rest comes up
set_up_network
start_ssh
load_modules
say "network and modules are up; kvm: $(ls /dev/kvm)"
start_proxy
wait_for_containerd
say "containerd is up"
start_kubelet
say "kubelet is started"
(while :; do setsid bash -i </dev/ttyS1 >/dev/ttyS1 2>&1 || sleep 1; done) &
reap_forever
