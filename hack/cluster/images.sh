# shellcheck shell=bash
# Which image archives there are, and which node gets them when.

# Sets: base_archives (change rarely: the emulated node's disk holds them), own_archives (Tandem's), guest_archives (for VMs).
# TANDEM_IMAGES=DIR takes the archives of that directory instead of building any; there, guests are called guest*.tar. TANDEM_MORE_IMAGES=ARCHIVE
# is one more for the nodes, of a guest that a test needs.
collect_archives() {
  local directory archive
  base_archives=() own_archives=() guest_archives=()
  if [ -n "${TANDEM_IMAGES:-}" ]; then
    directory=$TANDEM_IMAGES
  else
    step "building Tandem's images (hack/images/build)"
    directory=$("$hack/images/build")
    step "building the guest's image (hack/guest/build)"
    guest_archives=("$("$hack/guest/build")")
    step "building the guest agent's image (hack/guest/agent)"
    own_archives=("$("$hack/guest/agent")/guest-agent.tar")
  fi
  for archive in "$directory"/*.tar; do
    case $(basename "$archive") in
      pause.tar | tools.tar | coredns.tar) base_archives+=("$archive") ;;
      guest*.tar) [ -z "${TANDEM_IMAGES:-}" ] || guest_archives+=("$archive") ;;
      *) own_archives+=("$archive") ;;
    esac
  done
  [ -z "${TANDEM_MORE_IMAGES:-}" ] || own_archives+=("$TANDEM_MORE_IMAGES")
  [ ${#base_archives[@]} = 3 ] || die "$directory must hold pause.tar, tools.tar and coredns.tar, and holds: $(ls "$directory")"
}

# An archive may have close to a gigabyte: its digest is kept until its size, time or inode changes.
archive_digest() { # archive_digest ARCHIVE
  local kept
  kept=$cache/digests/$(stat --dereference --format '%d-%i-%s-%Y-%Z' "$1")
  if [ ! -s "$kept" ]; then
    mkdir -p "$cache/digests"
    find "$cache/digests" -type f -mtime +7 -delete
    sha256sum <"$1" | cut -d' ' -f1 >"$kept.$$"
    mv "$kept.$$" "$kept"
  fi
  cat "$kept"
}

node_exec() { # node_exec NODE COMMAND...: its output and exit code; its standard input is ours
  if [ "$(cat "$(node_directory "$1")/kind" 2>/dev/null)" = emulated ]; then
    (emulated_exec "$@")
  else
    (native_exec "$@")
  fi
}

send_archives() { # send_archives NODE ARCHIVE...: imports those of which the node has not that very content; prints their names
  local node=$1 importer=/run/node/import-images.sh records archive name digest
  shift
  [ "$(cat "$(node_directory "$node")/kind")" = emulated ] || importer=$hack/cluster/import-images.sh # it sees our files
  records=$(node_exec "$node" sh -c 'cd /var/lib/containerd/imported 2>/dev/null && grep -H . *.tar || true' </dev/null)
  for archive; do
    name=$(basename "$archive")
    digest=$(archive_digest "$archive")
    ! grep -qxF "$name:$digest" <<<"$records" || continue
    step "importing $name into $node" >&2
    # shellcheck disable=SC2016 # expanded on the node
    node_exec "$node" sh -euc '
      directory=$(mktemp -d /var/tmp/import.XXXXXX)
      trap "rm -rf \"$directory\"" EXIT
      cat >"$directory/$1"
      [ "$(sha256sum <"$directory/$1" | cut -d" " -f1)" = "$2" ] || { echo "$1 arrived damaged" >&2; exit 1; }
      "$3" /var/lib/containerd/imported "$directory/$1"' import "$name" "$digest" "$importer" <"$archive"
    echo "${name%.tar}"
  done
}

# Into nodes that ran already when an image was built anew. A node that was started just now has them all.
update_images() { # sets updated_images to the names of those that some node had not
  local node sent
  local -a archives
  updated_images=()
  for node in "$native_node" "$kvm_node"; do
    [[ " $started_nodes " != *" $node "* ]] || continue
    archives=("${base_archives[@]}" "${own_archives[@]}")
    [ "$node" = "$native_node" ] || archives+=("${guest_archives[@]}")
    sent=$(send_archives "$node" "${archives[@]}")
    mapfile -t -O ${#updated_images[@]} updated_images < <(printf '%s' "${sent:+$sent$'\n'}")
  done
}
