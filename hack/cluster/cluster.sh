# shellcheck shell=bash
# The life of a whole cluster: started, or completed where parts of it are missing; waited for; removed.

cluster_inputs() { # what a running cluster was made from: when this changes, it is made anew
  echo "$1 $emulated_cpus $emulated_memory $emulated_huge_pages"
  cat "$components"/.{kubernetes,etcd,containerd,runc,cni,multus}
  cat "$hack"/cluster/{settings,netns,pki,supervise,control-plane-init,node-config,node-daemons,native-node-init,emulated-node-init}.sh \
    "$hack"/cluster/{audit-policy,coredns,multus}.yaml
}

start_cluster() { # start_cluster native|emulated: all that is not running; needs collect_archives
  local kvm=$1 inputs kernel='' disk=''
  started_nodes=
  inputs=$(cluster_inputs "$kvm" | sha256sum | cut -c1-16)
  if [ -e "$state/inputs" ] && [ "$(cat "$state/inputs")" != "$inputs" ]; then
    step "this cluster was made by other versions: removing it"
    remove_cluster
  fi
  if [ "$kvm" = emulated ] && ! process_pid "$kvm_node" >/dev/null; then
    kernel=$("$hack/guest/kernel")
    disk=$(emulated_disk "$kernel" "${base_archives[@]}" "${guest_archives[@]}" -- "${own_archives[@]}")
  fi
  mkdir -p "$state" "$logs"
  echo "$inputs" >"$state/inputs"
  make_pki
  make_control_plane_network
  step "starting what does not run yet: control plane, $native_node, $kvm_node ($kvm)"
  start_control_plane
  start_node "$native_node" native start_native_node without-kvm "${base_archives[@]}" "${own_archives[@]}"
  if [ "$kvm" = emulated ]; then
    start_node "$kvm_node" emulated start_emulated_node "$kernel" "$disk"
  else
    start_node "$kvm_node" native start_native_node with-kvm "${base_archives[@]}" "${own_archives[@]}" "${guest_archives[@]}"
  fi
  start_relay
}

start_node() { # start_node NODE KIND FUNCTION ARGUMENT...: unless it runs; started_nodes gets the names of those that did not
  local node=$1 kind=$2 function=$3
  shift 3
  process_pid "$node" >/dev/null || started_nodes+=" $node"
  "$function" "$node" "$@"
  echo "$kind" >"$(node_directory "$node")/kind"
}

have_cluster() { # have_cluster native|emulated: one that is Ready; what an earlier run left is completed, or else made anew
  local new=yes
  [ ! -e "$state/inputs" ] || new=
  start_cluster "$1"
  if [ -n "$new" ]; then
    wait_for_cluster
  elif ! (wait_for_cluster); then
    step "what an earlier run left does not become Ready: making it anew"
    remove_cluster
    start_cluster "$1"
    wait_for_cluster
  fi
}

wait_for_cluster() {
  wait_for 120 "API server" api_ready || complain control-plane "the API server is not ready; see $logs/kube-apiserver.log"
  step "API server is ready on 127.0.0.1:$(cat "$state/port")"
  # Without it no pod gets a network.
  kubectl apply --server-side -f "$hack/cluster/multus.yaml" >/dev/null || complain control-plane "Multus' rights cannot be applied"
  kubectl apply --server-side -f "$hack/cluster/coredns.yaml" >/dev/null || complain control-plane "DNS cannot be applied"
  local node
  for node in "$native_node" "$kvm_node"; do
    wait_for 240 "node $node" node_ready "$node" || complain "$node" "node $node is not Ready; see $logs and hack/node-exec"
    step "node $node is Ready"
  done
  kubectl -n kube-system rollout status deployment/coredns --timeout 120s >/dev/null ||
    complain "$native_node" "CoreDNS does not become available; see kubectl -n kube-system describe pod"
  step "DNS answers"
}

# Ready, and said so since its machine was started: of a node that died and came back, the old word stays for a while.
node_ready() {
  local ready heartbeat
  process_pid "$1" >/dev/null || return 3
  read -r ready heartbeat < <(kubectl get node "$1" --request-timeout 5s -o \
    'jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{"\n"}{end}') || return 1
  [ "$ready" = True ] && [ "$(date +%s -d "$heartbeat")" -ge "$(stat -c %Y "$state/processes/$1")" ]
}

complain() { # complain LOG WORD...: with the end of the log
  tail -n 20 "$logs/$1.log" "$logs/$1.console" 2>/dev/null >&2 || true
  shift
  die "$@"
}

remove_cluster() {
  local name device file
  for name in relay "$kvm_node" "$native_node" control-plane; do stop "$name"; done
  for name in "$kvm_node" "$native_node"; do
    netns_delete "$name"
    remove_cgroups "$name"
  done
  netns_delete control-plane
  # The kubelet keeps a loop device for each block volume, and one that was killed leaves it.
  while read -r device file; do
    case $file in "$state"/*) losetup --detach "$device" ;; esac
  done < <(losetup --list --noheadings --output NAME,BACK-FILE)
  rm -rf --one-file-system "$state"
}
