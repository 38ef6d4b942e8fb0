#!/usr/bin/env bash
# Puts itself into the cgroups of a node and becomes COMMAND:  in-cgroups.sh CLUSTER NODE COMMAND...
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=report.sh
. "$here/report.sh"
# shellcheck source=settings.sh
. "$here/settings.sh"
# shellcheck source=cgroups.sh
. "$here/cgroups.sh"
use_cluster "$1"
while read -r directory; do echo $$ >"$directory/cgroup.procs"; done < <(cgroup_directories "$2")
shift 2
exec "$@"
