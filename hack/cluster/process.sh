# shellcheck shell=bash
# Processes that outlive the script that starts them. All but QEMU are started in a PID namespace of their own, so that whatever
# they start ends with them (`unshare --pid --fork --kill-child`). A process is known by its id and its start time, so that an id that was given to somebody else is never killed.

start_time() { # start_time PID: clock ticks since boot, field 22 of /proc/PID/stat (proc_pid_stat(5))
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) } # the command's name, in parentheses, may hold anything
  cut -d' ' -f20 <<<"$stat"
}

launch() { # launch NAME COMMAND...: COMMAND in the background, with its output in the log NAME
  local name=$1
  shift
  mkdir -p "$state/processes" "$logs"
  rm -f "$state/processes/$name"
  (
    pid=$BASHPID # in $(...) it would be another
    # The record comes before the process: nothing runs that down does not know. exec keeps the id and the start time.
    echo "$pid $(start_time "$pid")" >"$state/processes/$name"
    exec 9>&-
    cd "$state" || exit
    exec setsid "$@"
  ) >>"$logs/$name.log" 2>&1 </dev/null &
  disown
  until [ -s "$state/processes/$name" ]; do sleep 0.01; done
}

process_pid() { # process_pid NAME: its id, when it is alive
  local pid started
  read -r pid started 2>/dev/null <"$state/processes/$1" || return 1
  [ "$(start_time "$pid")" = "$started" ] || return 1
  ! ended "$pid" || return 1 # a zombie has a start time, too
  echo "$pid"
}

stop() { # stop NAME: at once, and waits until it and all that it started have ended
  local pid children
  if pid=$(process_pid "$1"); then
    children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null) || children=
    kill -KILL "$pid" 2>/dev/null || true
    # The first process of a PID namespace is gone only when all the others are.
    for pid in $pid $children; do wait_for 30 "end of $1 (pid $pid)" ended "$pid"; done
  fi
  rm -f "$state/processes/$1"
}

ended() { # ended PID: it is not there, or is a zombie
  ! grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null
}
