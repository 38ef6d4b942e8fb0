# shellcheck shell=bash
# The control plane: started in its own network and PID namespace, and reached from the host through 127.0.0.1.

start_control_plane() {
  process_pid control-plane >/dev/null && return
  mkdir -p "$state/etcd" "$logs"
  chmod 700 "$state/etcd"
  launch control-plane nsenter --net="$(netns_file control-plane)" \
    unshare --mount --pid --fork --kill-child --mount-proc bash "$hack/cluster/control-plane-init.sh" "$cluster"
}

start_relay() { # on the port of the last time, or on the first that is free from 6443
  local port first=6443
  if ! process_pid relay >/dev/null; then
    [ ! -s "$state/port" ] || first=$(cat "$state/port")
    for ((port = first; port < first + 100; port++)); do
      ! listening "$port" || continue
      launch relay unshare --pid --fork --kill-child \
        socat -t 10 "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr,backlog=128,nodelay" UNIX-CONNECT:api.sock
      wait_for 10 "relay on 127.0.0.1:$port" relay_decided "$port"
      ! process_pid relay >/dev/null || break # it ends at once when somebody else was quicker
    done
    process_pid relay >/dev/null || die "no free port on 127.0.0.1 from $first on; see $logs/relay.log"
    echo "$port" >"$state/port"
  fi
  write_kubeconfig admin "https://127.0.0.1:$(cat "$state/port")" "$pki" "$KUBECONFIG"
}

listening() { # listening PORT: whether somebody listens on that port of 127.0.0.1
  [ -n "$(ss --no-header --listening --tcp --numeric "sport = :$1")" ]
}

relay_decided() { listening "$1" || ! process_pid relay >/dev/null; }

api_ready() { [ "$(kubectl get --raw /readyz --request-timeout 2s 2>/dev/null)" = ok ]; }
