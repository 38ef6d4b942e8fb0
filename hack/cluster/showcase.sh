# shellcheck shell=bash
# What hack/up ends with: what runs, what the VM and a pod get from each other, and what to try next.

show_what_runs() {
  step "what runs now:"
  printf '\n'
  kubectl get vm,pod,svc -o wide
  printf '\n'
  show_answer "a pod gets from the VM through its Service" http://debian.default.svc.cluster.local
  show_answer "the VM got from a pod through its Service, when it started" http://debian.default.svc.cluster.local/from-pod
  next_commands
}

show_answer() { # show_answer WHAT URL: as the pod `client` of the examples gets it; cloud-init may not be done yet
  printf '# what %s:\n$ kubectl exec client -- curl -s %s\n' "$1" "$2"
  kubectl exec client -- curl --silent --show-error --fail --max-time 20 --retry 150 --retry-all-errors --retry-delay 2 "$2" \
    2>"$logs/showcase.log" || {
    cat "$logs/showcase.log" >&2
    die "pod client gets nothing from $2"
  }
  printf '\n'
}

next_commands() {
  cat <<TEXT
# try next:
export KUBECONFIG=$KUBECONFIG PATH=$components:\$PATH
kubectl logs debian                     # the guest's boot log
kubectl attach -it debian               # its console: user tandem, password tandem; Ctrl-P Ctrl-Q leaves
kubectl port-forward pod/debian 8080:80 # and then: curl http://127.0.0.1:8080
kubectl get vm -w                       # in another terminal: kubectl delete pod debian
kubectl explain vm.spec
$hack/node-exec --name $cluster $kvm_node ps aux
$hack/down --name $cluster
TEXT
}
