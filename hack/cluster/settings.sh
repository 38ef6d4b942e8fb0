# shellcheck shell=bash disable=SC2034 # sourced: what is set here is used by the others
# Names, addresses and paths of a throwaway cluster. Sourced by every script of hack/ that deals with one.
#
# All addresses but loopback live in network namespaces of the cluster's own, so two clusters may use the same ones:
#   10.89.0.1          control plane, on the bridge that joins the nodes
#   10.89.0.11, .12    nodes; node N has pods in 10.244.N.0/24
#   10.96.0.0/16       Services; .1 is the API server, .10 is DNS
shopt -s inherit_errexit # a failure in $(...) is a failure
hack=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${TANDEM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tandem}
components=$cache/components

node_network=10.89.0.0/24
control_plane_ip=10.89.0.1
pod_network=10.244.0.0/16
service_network=10.96.0.0/16
service_ip=10.96.0.1
dns_ip=10.96.0.10

# Size of the emulated node. With two CPUs its kernel now and then loses its GS base on the way out of a guest (QEMU 7.2). Its memory is what VMs on it can have, less about 0.5 GiB for its own system.
emulated_cpus=${TANDEM_KVM_NODE_CPUS:-1}
emulated_memory=${TANDEM_KVM_NODE_MEMORY:-4G}
emulated_huge_pages=${TANDEM_KVM_NODE_HUGE_PAGES:-80} # of 2 MiB, besides this memory: the kubelet offers them as hugepages-2Mi

use_cluster() { # use_cluster NAME: sets everything that depends on the cluster's name
  [[ $1 =~ ^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$ ]] ||
    die "a cluster's name is 1 to 20 of a-z, 0-9 and -, beginning with a letter: $1"
  cluster=$1
  state=$cache/clusters/$cluster
  logs=$state/logs
  pki=$state/pki
  native_node=$cluster-native
  kvm_node=$cluster-kvm
  export KUBECONFIG=$state/kubeconfig
  export PATH=$components:$PATH
}

lock_cluster() { # one up or down of a cluster at a time; the lock is given up when the script ends
  mkdir -p "$cache/clusters"
  exec 9>"$cache/clusters/.$cluster.lock"
  flock -n 9 || {
    echo "waiting for another hack/up or hack/down of cluster $cluster" >&2
    flock 9
  }
}

node_index() { # node_index NODE: the number in its addresses
  case $1 in
    "$native_node") echo 1 ;;
    "$kvm_node") echo 2 ;;
    *) die "cluster $cluster has no node $1; it has $native_node and $kvm_node" ;;
  esac
}

node_ip() { echo "10.89.0.1$(node_index "$1")"; }
node_pods() { echo "10.244.$(node_index "$1").0/24"; }
node_directory() { echo "$state/nodes/$1"; }
