# shellcheck shell=bash
# The disk that emulated nodes start from. It is never written to: each machine has its changes in a file that ends with it.
# Unpacking an image inside the machine takes twenty times as long as outside, so the disk has all images when it is first used.

readonly emulated_disk_size=12G # sparse; what is not in use takes no room

emulated_disk() { # emulated_disk KERNEL BASE_ARCHIVE... -- OWN_ARCHIVE...: prints a directory with disk.img and initrd
  local kernel=$1 directory base
  local -a base_images=()
  shift
  while [ "$1" != -- ]; do
    base_images+=("$1")
    shift
  done
  shift
  mkdir -p "$cache/emulated"
  exec 8>"$cache/emulated/.lock"
  flock 8
  find "$cache/emulated" -maxdepth 1 -type d -name '.new-*' -exec rm -rf --one-file-system {} + # of runs that were killed
  base=$cache/emulated/base-$(emulated_inputs "$kernel" "${base_images[@]}" | digest_of)
  directory=$cache/emulated/disk-$({ echo "$base" && digests "$@"; } | digest_of)
  if [ ! -e "$directory/disk.img" ]; then
    [ -e "$base/disk.img" ] || make_base_disk "$base" "$kernel" "${base_images[@]}"
    make_disk "$directory" "$base" "$@"
  fi
  touch "$directory" "$base"
  discard_old base-
  discard_old disk-
  echo "$directory"
}

emulated_inputs() { # what the base disk's content depends on
  local kernel=$1
  shift
  echo "$kernel" $emulated_disk_size "${emulated_packages[@]}"
  cat "$components"/.{kubernetes,containerd,runc,cni,multus} "$hack"/cluster/emulated-{root,disk}.sh
  digests "$@"
}

digests() { # digests ARCHIVE...
  local archive
  for archive; do archive_digest "$archive"; done
}

make_base_disk() { # make_base_disk DIRECTORY KERNEL ARCHIVE...: with the images that change rarely
  local directory=$1 kernel=$2 temporary
  shift 2
  step "making the disk of the emulated node" >&2
  temporary=$(mktemp -d "$cache/emulated/.new-XXXXXX")
  make_emulated_tree "$temporary/tree" "$kernel"
  preload_images "$temporary/tree" "$@"
  make_initrd "$kernel" "$temporary/initrd"
  truncate -s $emulated_disk_size "$temporary/disk.img"
  mke2fs -q -F -t ext4 -O has_journal,^metadata_csum -J size=32 -E lazy_itable_init=1,nodiscard -m 0 \
    -d "$temporary/tree" "$temporary/disk.img"
  rm -rf --one-file-system "$temporary/tree"
  mv -T "$temporary" "$directory"
}

make_disk() { # make_disk DIRECTORY BASE ARCHIVE...: a copy of the base with Tandem's own images added
  local directory=$1 base=$2 temporary
  shift 2
  step "adding images to the disk of the emulated node: $(basename --multiple "$@" | paste -sd' ')" >&2
  temporary=$(mktemp -d "$cache/emulated/.new-XXXXXX")
  cp --reflink=auto --sparse=always "$base"/{disk.img,initrd} "$temporary/"
  mkdir "$temporary/tree"
  # The mount, and with it its loop device, ends with this process's mount namespace.
  (
    export -f preload_images
    export cache hack
    # shellcheck disable=SC2016 # expanded in that namespace
    exec unshare --mount bash -euc 'mount -o loop,noatime "$1/disk.img" "$1/tree"
      tree=$1/tree
      shift
      preload_images "$tree" "$@"
      umount "$tree"' add "$temporary" "$@"
  )
  rmdir "$temporary/tree"
  mv -T "$temporary" "$directory"
}

discard_old() { # discard_old PREFIX: all but the three that were used last; a machine that runs keeps its own open
  local directory
  for directory in $(find "$cache/emulated" -maxdepth 1 -name "$1*" -printf '%T@ %p\n' | sort -rn | tail -n +4 | cut -d' ' -f2); do
    rm -rf --one-file-system "$directory"
  done
}
