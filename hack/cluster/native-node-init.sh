#!/usr/bin/env bash
# Process 1 of a native node, in network, mount, PID, UTS, IPC and cgroup namespaces of its own. It sees the machine's programs,
# and its own /etc, /var, /run, /dev and /sys. Run by native-node.sh:  native-node-init.sh CLUSTER NODE with-kvm|without-kvm
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=report.sh
. "$here/report.sh"
# shellcheck source=settings.sh
. "$here/settings.sh"
# shellcheck source=cgroups.sh
. "$here/cgroups.sh"
# shellcheck source=supervise.sh
. "$here/supervise.sh"
# shellcheck source=node-daemons.sh
. "$here/node-daemons.sh"
use_cluster "$1"
directory=$(node_directory "$2")
kvm=$3

mount_cgroups() { # the same hierarchies as outside, of which the namespace shows the node's own part
  local hierarchies path type options
  hierarchies=$(cgroup_mounts)
  mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
  if [ "$(wc -l <<<"$hierarchies")" -gt 1 ]; then mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup; fi
  while read -r path type options; do
    mkdir -p "$path"
    if [ "$type" = cgroup2 ]; then
      mount -t cgroup2 cgroup2 "$path"
    else
      options=$(tr , '\n' <<<"$options" | grep -vE '^(rw|ro|nosuid|nodev|noexec|relatime|xattr|release_agent=.*|clone_children)$' | paste -sd,)
      case $options in name=*) options=none,$options ;; esac
      mount -t cgroup -o "$options" cgroup "$path"
    fi
  done <<<"$hierarchies"
  # v2 lets a group have either processes or children with controllers: the node's own processes go into a group beside the pods'.
  if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mkdir -p /sys/fs/cgroup/node
    while read -r path; do echo "$path" >/sys/fs/cgroup/node/cgroup.procs || true; done </sys/fs/cgroup/cgroup.procs
    delegate_controllers /sys/fs/cgroup
  fi
}

mount_own_directories() {
  mount -t proc proc /proc
  mkdir -p "$directory"/{etc,var}/{upper,work} "$directory"/{kubelet,containerd,pods,logs}
  mount -t overlay overlay -o "lowerdir=/etc,upperdir=$directory/etc/upper,workdir=$directory/etc/work" /etc
  mount -t overlay overlay -o "lowerdir=/var,upperdir=$directory/var/upper,workdir=$directory/var/work" /var
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /var/lib/{kubelet,containerd} /var/log/{pods,node} /run/node
  mount --bind "$directory/kubelet" /var/lib/kubelet
  mount --bind "$directory/containerd" /var/lib/containerd # an overlay cannot lie on an overlay
  mount --bind "$directory/pods" /var/log/pods
  mount --bind "$directory/logs" /var/log/node
  mount --bind "$directory/config" /run/node
  mount --bind "$components" /run/node/bin
}

mount_own_devices() { # the usual ones; /dev/kvm only where it is good for an ordinary kernel, or asked for
  local name major minor
  mount -t tmpfs -o mode=755,nosuid tmpfs /dev
  while read -r name major minor; do mknod -m 666 "/dev/$name" c "$major" "$minor"; done <<'DEVICES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
fuse 10 229
DEVICES
  mkdir /dev/{pts,shm,mqueue,net}
  mknod -m 666 /dev/net/tun c 10 200
  mknod -m 600 /dev/kmsg c 1 11
  mknod -m 600 /dev/loop-control c 10 237
  for minor in {0..15}; do mknod -m 600 "/dev/loop$minor" b 7 "$minor"; done
  if [ "$kvm" = with-kvm ]; then mknod -m 660 /dev/kvm c 10 232; fi
  mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
  mount -t tmpfs tmpfs /dev/shm
  mount -t mqueue mqueue /dev/mqueue
  ln -s pts/ptmx /dev/ptmx
  ln -s /proc/self/fd /dev/fd
  ln -s fd/0 /dev/stdin
  ln -s fd/1 /dev/stdout
  ln -s fd/2 /dev/stderr
}

shield_sysctls() { # the kubelet sets values for the whole machine: it gets files that hold them already
  local setting key file
  mkdir -p /run/sysctl /run/proc
  mount -t proc proc /run/proc # unobstructed, or pods with user namespaces cannot mount a proc of theirs
  for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    key=${setting%=*}
    [ -e "/proc/sys/$key" ] || continue
    file=/run/sysctl/${key//\//.}
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/$key"
  done
}

# The environment goes to every daemon of the node, and to whoever runs `hack/node-exec`.
# shellcheck disable=SC1091 # written by node-config.sh
. "$directory/config/environment"
hostname "$2"
mount --make-rprivate /
mount_cgroups
mount_own_directories
mount_own_devices
shield_sysctls
mount --make-rshared /
echo "$2" >/etc/hostname
echo "127.0.0.1 localhost $2" >/etc/hosts
# shellcheck disable=SC2154 # dns: the environment file
echo "nameserver $dns" >/etc/resolv.conf
cd /
export PATH=/run/node/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export CONTAINERD_ADDRESS=/run/containerd/containerd.sock CONTAINERD_NAMESPACE=k8s.io
start_containerd
start_proxy
wait_for_containerd
"$here/import-images.sh" "$image_records" /run/node/images/*.tar
start_kubelet
reap_forever
