# shellcheck shell=bash
# Tandem itself, in a cluster that runs: the charts, and the examples.

readonly tandem_namespace=tandem-system

install_tandem() {
  local release
  for release in tandem-crds tandem; do
    step "installing chart $release"
    clear_interrupted "$release"
    helm upgrade --install "$release" "$hack/../charts/$release" --namespace $tandem_namespace --create-namespace \
      --wait --timeout 5m >"$logs/helm-$release.log" 2>&1 || {
      cat "$logs/helm-$release.log" >&2
      kubectl -n $tandem_namespace get pods -o wide >&2
      kubectl -n $tandem_namespace get events --sort-by .lastTimestamp | tail -n 20 >&2
      die "chart $release does not become ready; look at: kubectl -n $tandem_namespace describe pod"
    }
  done
  restart_updated
  wait_for 180 "KVM on node $kvm_node" kvm_offered || {
    kubectl -n $tandem_namespace logs --tail 20 --prefix -l 'app.kubernetes.io/component in (device-plugin, node-agent)' >&2
    die "node $kvm_node does not offer tandem.dev/kvm; see why above"
  }
  step "node $kvm_node offers KVM"
}

kvm_offered() {
  local count
  count=$(kubectl get node "$kvm_node" --request-timeout 5s -o 'jsonpath={.status.allocatable.tandem\.dev/kvm}') || return 1
  [ "${count:-0}" -gt 0 ]
}

clear_interrupted() { # clear_interrupted RELEASE: helm refuses to touch what an earlier helm was killed over
  local status
  status=$(helm status "$1" --namespace $tandem_namespace --output json 2>/dev/null | sed -n 's/.*"status": *"\(pending-[a-z]*\|uninstalling\)".*/\1/p') || return 0
  [ -n "$status" ] || return 0
  step "chart $1 was left in state $status: removing it first"
  # The CRDs, and with them every VM, would go with their release: only what says that it is pending does.
  kubectl -n $tandem_namespace delete secret -l "owner=helm,name=$1,status=$status" >/dev/null
}

restart_updated() { # pods go on running an image that was built anew under the same name, until they are told
  local workload image
  # shellcheck disable=SC2154 # images.sh
  [ ${#updated_images[@]} -gt 0 ] || return 0
  while read -r workload image; do
    image=${image##*/}
    printf '%s\n' "${updated_images[@]}" | grep -qxF "${image%:*}" || continue
    step "restarting $workload: its image is new"
    kubectl -n $tandem_namespace rollout restart "$workload" >/dev/null
    kubectl -n $tandem_namespace rollout status "$workload" --timeout 5m >/dev/null
  done < <(kubectl -n $tandem_namespace get deployment,daemonset \
    -o 'jsonpath={range .items[*]}{.kind}/{.metadata.name} {.spec.template.spec.containers[0].image}{"\n"}{end}')
}

apply_examples() { # and waits for the VM, telling how far it is
  local last='' now progress
  step "applying examples/"
  kubectl apply -f "$hack/../examples/" | sed 's/^/           /'
  kubectl wait --for=condition=Ready --timeout 15m vm --all >"$logs/wait.log" 2>&1 9>&- &
  progress=$!
  while kill -0 $progress 2>/dev/null; do
    now=$(vm_progress) || now=$last
    if [ "$now" != "$last" ]; then
      step "  $now"
      last=$now
    fi
    sleep 5 # each look costs the emulated node as much as a small container
  done
  wait $progress || die "the VM is not Ready; look at: kubectl describe vm,pod"
  kubectl wait --for=condition=Ready --timeout 2m pod/web pod/client >"$logs/wait.log" 2>&1 ||
    die "the pods of examples/ are not Ready; look at: kubectl describe pod"
}

vm_progress() { # one line about each VM: where it is, and the latest line of its console
  local name
  for name in $(kubectl get vm -o name); do
    name=${name##*/}
    kubectl get vm "$name" --no-headers | awk '{ printf "%s: %s, ready %s; ", $1, $2, $3 }'
    kubectl logs "$name" --tail 1 2>/dev/null | tr -cd '[:print:]' | cut -c1-90
  done
}
