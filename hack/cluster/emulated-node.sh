# shellcheck shell=bash
# A node in a QEMU machine that offers KVM whatever this machine's CPU is: see hack/emulated-machine.

start_emulated_node() { # start_emulated_node NODE KERNEL DISK: DISK is what emulated_disk printed
  local node=$1 kernel=$2 disk=$3 directory
  ! process_pid "$node" >/dev/null || return 0
  directory=$(node_directory "$node")
  make_node_tap "$node"
  route_to_node "$node"
  end_connection "$directory"
  rm -rf "$directory"
  mkdir -p "$directory"
  write_node_config "$node" emulated "$directory/config"
  cp "$hack"/cluster/{emulated-node-init,import-images,node-daemons,supervise}.sh "$directory/config/"
  tar --create --file "$directory/config.tar" --owner 0 --group 0 --directory "$directory/config" .
  truncate -s %512 "$directory/config.tar"
  launch "$node" nsenter --net="$(netns_file control-plane)" \
    "$hack/emulated-machine" "$emulated_cpus" "$(emulated_mebibytes)M" "rng_core.default_quality=1000 hugepages=$emulated_huge_pages" \
    -name "$node" -kernel "$kernel/vmlinuz" -initrd "$disk/initrd" \
    -serial "file:$logs/$node.console" -serial "unix:nodes/$node/shell,server=on,wait=off" \
    -drive "file=$disk/disk.img,if=none,id=root,format=raw,cache=unsafe,snapshot=on" -device virtio-blk-pci,drive=root \
    -drive "file=$directory/config.tar,if=none,id=config,format=raw,readonly=on" -device virtio-blk-pci,drive=config \
    -netdev "tap,id=net,ifname=node$(node_index "$node"),script=no,downscript=no" \
    -device "virtio-net-pci,netdev=net,mac=52:54:00:89:00:1$(node_index "$node"),romfile=" -device virtio-rng-pci
}

emulated_mebibytes() { # the machine's memory: its ordinary one, written as for QEMU, and the pool of huge pages
  local size=${emulated_memory^^}
  case $size in
    *[!0-9]*) size=$(($(numfmt --from=iec "$size") >> 20)) ;;
  esac
  echo $((size + 2 * emulated_huge_pages))
}

end_connection() { # end_connection DIRECTORY: to a machine that is gone
  [ ! -S "$1/ssh" ] || (cd "$1" && ssh -q -O exit -o ControlPath=ssh -F none node) || true
}

emulated_exec() { # emulated_exec NODE COMMAND...: as root, through SSH over the cluster's own network
  local node=$1 terminal=-T
  process_pid "$node" >/dev/null || die "node $node does not run; hack/up starts it"
  shift
  [ ! -t 0 ] || [ ! -t 1 ] || terminal=-t
  # A connection takes the emulated CPU a second or two: it is kept for the next command. Its socket's path is relative because it
  # may be no longer than 108 bytes.
  cd "$state" || exit
  exec nsenter --net="$(netns_file control-plane)" \
    ssh -q $terminal -i "$pki/ssh-admin" -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=10 \
    -o ControlMaster=auto -o ControlPersist=300 -o ControlPath="nodes/$node/ssh" \
    -o UserKnownHostsFile="$pki/ssh-known-hosts" -o StrictHostKeyChecking=yes \
    -o Ciphers=chacha20-poly1305@openssh.com -F none "root@$(node_ip "$node")" "$(printf '%q ' "$@")"
}
