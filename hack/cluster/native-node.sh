# shellcheck shell=bash
# A node on this machine itself.

start_native_node() { # start_native_node NODE with-kvm|without-kvm ARCHIVE...: the archives are its images
  local node=$1 kvm=$2 directory
  shift 2
  ! process_pid "$node" >/dev/null || return 0
  directory=$(node_directory "$node")
  make_node_network "$node"
  route_to_node "$node"
  make_cgroups "$node"
  rm -rf "$directory/config"
  write_node_config "$node" native "$directory/config"
  mkdir -p "$directory/config/bin" "$directory/config/images"
  ln -sf "$@" "$directory/config/images/"
  launch "$node" bash "$hack/cluster/in-cgroups.sh" "$cluster" "$node" nsenter --net="$(netns_file "$node")" \
    unshare --mount --uts --ipc --pid --cgroup --fork --kill-child \
    bash "$hack/cluster/native-node-init.sh" "$cluster" "$node" "$kvm"
}

native_exec() { # native_exec NODE COMMAND...: as root in all the node's namespaces
  local pid init
  pid=$(process_pid "$1") || die "node $1 does not run; hack/up starts it"
  shift
  init=$(cat "/proc/$pid/task/$pid/children")
  [ -n "$init" ] || die "node has no first process: it is just starting or ending"
  # shellcheck disable=SC2086 # the list has one word and a blank
  exec nsenter --target ${init} --mount --uts --ipc --net --pid --cgroup --wd=/ env -i \
    PATH=/run/node/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-dumb}" \
    CONTAINERD_ADDRESS=/run/containerd/containerd.sock CONTAINERD_NAMESPACE=k8s.io "$@"
}
