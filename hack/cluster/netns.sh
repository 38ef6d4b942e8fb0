# shellcheck shell=bash
# Network namespaces of the cluster. They are kept by mounts in the cluster's own directory rather than in /run/netns, so that
# `hack/down` leaves nothing behind on the machine, not even that directory.

netns_file() { echo "$state/netns/$1"; }

netns_exists() { [ "$(stat -f -c %T "$(netns_file "$1")" 2>/dev/null)" = nsfs ]; }

netns_add() { # netns_add NAME
  if ! netns_exists "$1"; then
    mkdir -p "$state/netns"
    touch "$(netns_file "$1")"
    unshare --net="$(netns_file "$1")" true
  fi
  in_netns "$1" ip link set lo up
}

in_netns() { # in_netns NAME COMMAND...
  local file
  file=$(netns_file "$1")
  shift
  nsenter --net="$file" "$@"
}

netns_delete() { # netns_delete NAME: with whatever process is still in it
  local file inode process
  file=$(netns_file "$1")
  if netns_exists "$1"; then
    inode=$(stat -L -c %i "$file")
    for process in /proc/[0-9]*; do
      [ "$(stat -L -c %i "$process/ns/net" 2>/dev/null)" != "$inode" ] || kill -KILL "${process#/proc/}" 2>/dev/null || true
    done
  fi
  while netns_exists "$1"; do umount "$file"; done
  rm -f "$file"
}

# Below, the last thing that is done to a device says that it is complete. One that an interrupted run left is made anew.

make_control_plane_network() { # the bridge that joins everything is in the control plane's namespace
  netns_add control-plane
  [ -z "$(in_netns control-plane ip link show br0 up 2>/dev/null)" ] || return 0
  in_netns control-plane ip link delete br0 2>/dev/null || true
  in_netns control-plane sh -euc "
    sysctl -qw net.ipv4.ip_forward=1
    ip link add br0 type bridge forward_delay 0
    ip address add $control_plane_ip/${node_network#*/} dev br0
    ip link set br0 up"
}

route_to_node() { # route_to_node NODE: to its pods; and to Services, for which the native node's kube-proxy is used
  in_netns control-plane ip route replace "$(node_pods "$1")" via "$(node_ip "$1")"
  [ "$1" != "$native_node" ] || in_netns control-plane ip route replace "$service_network" via "$(node_ip "$1")"
}

make_node_network() { # make_node_network NODE: a namespace with an eth0 on the bridge
  local node=$1 port other
  port=node$(node_index "$node")
  netns_add "$node"
  [ -z "$(in_netns "$node" ip route show default 2>/dev/null)" ] || return 0
  in_netns control-plane ip link delete "$port" 2>/dev/null || true
  in_netns control-plane ip link add "$port" type veth peer name eth0 netns "$(netns_file "$node")"
  in_netns control-plane ip link set "$port" master br0 up
  other=$kvm_node
  [ "$node" != "$kvm_node" ] || other=$native_node
  in_netns "$node" sh -euc "
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip address add $(node_ip "$node")/${node_network#*/} dev eth0
    ip link set eth0 up
    ip route add $(node_pods "$other") via $(node_ip "$other")
    ip route add default via $control_plane_ip"
}

make_node_tap() { # make_node_tap NODE: a port of the bridge for an emulated machine
  local port
  port=node$(node_index "$1")
  [ -z "$(in_netns control-plane ip link show "$port" master br0 2>/dev/null)" ] || return 0
  in_netns control-plane ip link delete "$port" 2>/dev/null || true
  in_netns control-plane ip tuntap add dev "$port" mode tap
  in_netns control-plane ip link set "$port" master br0 up
}
