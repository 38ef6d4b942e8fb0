# shellcheck shell=bash
# For the first process of a node or of the control plane: keeps its daemons running.

supervise() { # supervise LOG COMMAND...: in the background, and again whenever it ends
  local log=$1
  shift
  (
    while :; do
      code=0
      "$@" >>"$log" 2>&1 || code=$?
      echo "supervise: $1 ended with $code; starting it again in a second" >>"$log"
      sleep 1
    done
  ) &
}

reap_forever() { # as process 1: orphans come here to be reaped, which bash does while it waits for its own children
  wait
  echo "nothing is left to supervise" >&2
  exit 1
}
