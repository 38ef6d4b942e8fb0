# shellcheck shell=bash
# Control groups of the nodes that run on this machine itself: one subtree for each node, in every hierarchy that the machine has
# (cgroup v2 alone, or v1 with v2 beside it), which a cgroup namespace then shows to the node as the root.

cgroup_mounts() { # one line per hierarchy: its mount point, type and mount options
  awk '($3 == "cgroup" || $3 == "cgroup2") && $2 ~ "^/sys/fs/cgroup" && !seen[$2]++ { print $2, $3, $4 }' /proc/self/mounts
}

cgroup_directories() { # cgroup_directories NODE: its subtree in each hierarchy
  local mount
  while read -r mount _; do echo "$mount/tandem-$cluster/$1"; done < <(cgroup_mounts)
}

make_cgroups() { # make_cgroups NODE: empty ones; what a node that crashed left would cost its kubelet 3 s for each pod
  local mount type top
  remove_cgroups "$1"
  while read -r mount type _; do
    top=$mount/tandem-$cluster
    mkdir -p "$top"
    if [ "$type" = cgroup2 ]; then
      delegate_controllers "$mount"
      delegate_controllers "$top"
    elif [ -e "$top/cpuset.cpus" ]; then # v1: a new group has no CPU at all unless it is told
      cat "$mount/cpuset.cpus" >"$top/cpuset.cpus"
      cat "$mount/cpuset.mems" >"$top/cpuset.mems"
      echo 1 >"$top/cgroup.clone_children"
    fi
    mkdir -p "$top/$1"
  done < <(cgroup_mounts)
}

delegate_controllers() { # delegate_controllers DIRECTORY: v2: gives every controller that it has on to its children
  local controller
  for controller in $(<"$1/cgroup.controllers"); do
    echo "+$controller" >"$1/cgroup.subtree_control" 2>/dev/null || true # some cannot be had by some kinds of group
  done
}

remove_cgroups() { # remove_cgroups NODE: whatever still runs in them is the node's, and ends
  local directory
  while read -r directory; do
    [ -d "$directory" ] || continue
    wait_for 30 "end of the processes in $directory" cgroup_emptied "$directory"
    find "$directory" -depth -type d -exec rmdir {} +
    rmdir "$(dirname "$directory")" 2>/dev/null || true # the last node takes the cluster's group with it
  done < <(cgroup_directories "$1")
}

cgroup_emptied() {
  local pids
  pids=$(find "$1" -name cgroup.procs -exec cat {} +)
  [ -n "$pids" ] || return 0
  # shellcheck disable=SC2086 # one word per process
  kill -KILL $pids 2>/dev/null || true
  return 1
}
